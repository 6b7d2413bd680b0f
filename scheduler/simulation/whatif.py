"""What a change changes: rounds of the production planner with it and without it, side by side; nothing real is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from scheduler.core.apply import apply
from scheduler.core.backlog import Backlog
from scheduler.core.planner import plan
from scheduler.core.reasons import Reason
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Cell,
    EndCause,
    Grant,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Node,
    Plan,
    Preempt,
    Quota,
    Refuse,
    Request,
)
from scheduler.simulation.engine import Planner

_T = TypeVar("_T")

_NEVER = Micros(0)


@dataclass(frozen=True, slots=True)
class Submission:
    """More requests, as they would come."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class QuotaChange:
    """Another quota of a cell for a node of the tree."""

    queue: str
    cell: Cell
    quota: Quota


@dataclass(frozen=True, slots=True)
class LostNodes:
    """Nodes that are gone, and known to be."""

    names: frozenset[str]


Change: TypeAlias = Submission | QuotaChange | LostNodes


class UnknownNameError(Exception):
    """A change names what the snapshot has not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What rounds come to."""

    grants: Mapping[str, Grant] = field(default_factory=dict[str, Grant])
    """By request."""
    refusals: Mapping[str, Refuse] = field(default_factory=dict[str, Refuse])
    preemptions: Mapping[str, Preempt] = field(default_factory=dict[str, Preempt])
    """By lease."""
    ends: Mapping[str, EndCause] = field(default_factory=dict[str, EndCause])
    waiting: Mapping[GroupKey, tuple[Reason, ...]] = field(default_factory=dict[GroupKey, tuple[Reason, ...]])
    """What still waits after the last round, and why."""


@dataclass(frozen=True, slots=True)
class Waits:
    """A group that waits in one of the two cases, or for other reasons."""

    group: GroupKey
    without: tuple[Reason, ...]
    """Empty: without the change nothing of it waits."""
    with_change: tuple[Reason, ...]
    """Empty: with the change nothing of it waits."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What comes with a change and not without it, and the other way round. Each in order of id or group."""

    granted: tuple[Grant, ...]
    """Only with it, or somewhere else."""
    not_granted: tuple[Grant, ...]
    """Only without it."""
    preempted: tuple[Preempt, ...]
    spared: tuple[Preempt, ...]
    """Preempted only without it."""
    refused: tuple[Refuse, ...]
    ended: tuple[tuple[str, EndCause], ...]
    """Leases lost with it."""
    waiting: tuple[Waits, ...]

    @property
    def empty(self) -> bool:
        """Whether the change changes nothing, as far as it was looked ahead."""
        return not any((self.granted, self.not_granted, self.preempted, self.spared, self.refused, self.ended, self.waiting))


def simulate(
    snapshot: Snapshot, change: Change, now: Micros, limits: Limits, *, rounds: int = 1, planner: Planner = plan
) -> Difference:
    """What a change would change, if it came now.

    Args:
        snapshot: the live state; it is not changed.
        change: what to suppose.
        now: when the snapshot was read. It stays now: between rounds victims yield at once and, like what lost its lease, ask
            again, but nothing else ends and nothing comes.
        limits: those of production.
        rounds: how far to look: 1 shows who is asked to yield, 2 who gets what they give up.
        planner: the production one.

    Raises:
        UnknownNameError: the change names a node or queue that is not there, or a request that is.
    """
    without = outcome(snapshot, now, limits, rounds, planner)
    changed = outcome(_changed(snapshot, change), now, limits, rounds, planner)
    groups = sorted({**without.waiting, **changed.waiting})
    return Difference(
        granted=_moved(changed.grants, without.grants),
        not_granted=_missing(without.grants, changed.grants),
        preempted=_missing(changed.preemptions, without.preemptions),
        spared=_missing(without.preemptions, changed.preemptions),
        refused=_missing(changed.refusals, without.refusals),
        ended=tuple((name, cause) for name, cause in sorted(changed.ends.items()) if name not in without.ends),
        waiting=tuple(
            Waits(group, without.waiting.get(group, ()), changed.waiting.get(group, ()))
            for group in groups
            if without.waiting.get(group) != changed.waiting.get(group)
        ),
    )


def outcome(snapshot: Snapshot, now: Micros, limits: Limits, rounds: int, planner: Planner = plan) -> Outcome:
    """What so many rounds come to, all at the same moment."""
    grants, refusals = dict[str, Grant](), dict[str, Refuse]()
    preemptions, ends = dict[str, Preempt](), dict[str, EndCause]()
    decided = Plan()
    for _ in range(rounds):
        decided = planner(snapshot, now, limits)
        grants |= {grant.request.request_id: grant for grant in decided.grants}
        refusals |= {refusal.request.request_id: refusal for refusal in decided.refusals}
        preemptions |= {preemption.lease_id: preemption for preemption in decided.preemptions}
        ends |= {end.lease_id: end.cause for end in decided.ends}
        snapshot = _yielded(snapshot, apply(snapshot, decided, now), decided)
    waiting = (*decided.waiting_requests, *decided.waiting_jobs)
    return Outcome(grants, refusals, preemptions, ends, {each.group: each.reasons for each in waiting})


def _missing(these: Mapping[str, _T], those: Mapping[str, _T]) -> tuple[_T, ...]:
    """Of these, what is not among those, in order of name."""
    return tuple(value for name, value in sorted(these.items()) if name not in those)


def _moved(these: Mapping[str, Grant], those: Mapping[str, Grant]) -> tuple[Grant, ...]:
    """Of these grants, those that are not the same among those."""
    return tuple(grant for name, grant in sorted(these.items()) if those.get(name) != grant)


def _changed(snapshot: Snapshot, change: Change) -> Snapshot:
    match change:
        case Submission(requests):
            known = [request.request_id for request in requests if snapshot.requests.get(request.request_id)]
            if known:
                raise UnknownNameError(f"requests {known} wait already; give the supposed ones ids of their own")
            return replace(snapshot, requests=_with(snapshot, requests))
        case QuotaChange(queue, cell, quota):
            if all(node.name != queue for node in snapshot.tree):
                raise UnknownNameError(f"{queue!r} is not in the quota tree; it has {[node.name for node in snapshot.tree]}")
            return replace(
                snapshot,
                tree=tuple(
                    replace(node, quotas={**node.quotas, cell: quota}) if node.name == queue else node for node in snapshot.tree
                ),
            )
        case LostNodes(names):
            if missing := sorted(names - {node.name for node in snapshot.nodes}):
                raise UnknownNameError(f"nodes {missing} are not known; expected names of nodes of the snapshot")
            return replace(
                snapshot, database_started=_NEVER, nodes=tuple(_heard(node, snapshot, names) for node in snapshot.nodes)
            )


def _heard(node: Node, snapshot: Snapshot, lost: frozenset[str]) -> Node:
    """Lost ones were never heard; for the others silence still counts from the start of the database."""
    return replace(node, heartbeat=_NEVER if node.name in lost else max(node.heartbeat, snapshot.database_started))


def _yielded(before: Snapshot, after: Snapshot, decided: Plan) -> Snapshot:
    """What was to yield has, and asks again; so does what lost its lease."""
    ended = {end.lease_id for end in decided.ends}
    yielded = [lease for lease in after.leases if lease.preempted_for is not None]
    lost = [lease for lease in before.leases if lease.lease_id in ended]
    return replace(
        after,
        leases=tuple(lease for lease in after.leases if lease.preempted_for is None),
        requests=_with(after, [_again(lease) for lease in (*yielded, *lost)]),
    )


def _with(snapshot: Snapshot, more: list[Request] | tuple[Request, ...]) -> Backlog[Request]:
    return Backlog((*snapshot.requests, *more), aging_micros=snapshot.requests.aging_micros)


def _again(lease: Lease) -> Request:
    return Request(
        request_id=f"{lease.lease_id}+",
        job_id=lease.job_id,
        queue=lease.queue,
        shape=lease.shape,
        priority=lease.priority,
        submitted=lease.submitted,
        run_micros=lease.run_micros,
    )
