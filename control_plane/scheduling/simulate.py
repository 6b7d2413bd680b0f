"""Simulate: a submission, a quota or a lost node against the live state, in the round that would come next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TypeAlias

from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.jobs.spec import ProjectName
from control_plane.quotas import wire
from control_plane.quotas.tree import NodeKind
from control_plane.rpc.convert import validated_value
from control_plane.scheduling.reasons import Sees, reason_messages
from control_plane.scheduling.shapes import shape_of_message
from headway.scheduler.v1 import scheduler_service_pb2 as pb
from headway.scheduler.v1 import snapshot_pb2
from scheduler.core.backlog import Backlog, group_of
from scheduler.core.reasons import ExceedsMaximum
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import ANY_KIND, Cell, Limits, Micros, QueueNode, Quota, Request, Resource, Shape
from scheduler.core.words import words
from scheduler.simulation.whatif import Outcome, outcome
from scheduler.tree import ROOT, node_name

_COUNT_MAX = 10_000
_RUN_SECONDS_MAX = 2_592_000
_RUN_SECONDS = 3_600
_PRIORITY = 500
_DISPLACED_MAX = 100
_NEVER = Micros(0)


@dataclass(frozen=True, slots=True)
class Submitted:
    """Jobs that are tried."""

    project: str
    shape: Shape
    priority: int
    run_micros: int
    count: int

    def requests(self, now: Micros) -> list[Request]:
        """Their leases, as they would be asked for at once."""
        return [
            Request(request_id(number), request_id(number), self.project, self.shape, self.priority, now, self.run_micros)
            for number in range(self.count)
        ]


@dataclass(frozen=True, slots=True)
class Requoted:
    """A node of the quota tree that is set."""

    node: QueueNode


@dataclass(frozen=True, slots=True)
class Lost:
    """A node that falls silent."""

    name: str


Tried: TypeAlias = Submitted | Requoted | Lost


def request_id(number: int) -> str:
    """What a tried job is called. No real one is: those are UUIDs."""
    return f"tried-{number:05}"


def change_of(request: pb.SimulateRequest) -> Tried:
    """The change that a request tries.

    Raises:
        RefusedError: it is not exactly one, or breaks its limits.
    """
    given = [name for name in ("submission", "quota") if request.HasField(name)] + ["lost_node"] * bool(request.lost_node)
    if len(given) != 1:
        raise invalid_field(
            given[0] if given else "submission",
            f"{' and '.join(given) or 'nothing'} is set; expected exactly one of submission, quota and lost_node",
        )
    match given[0]:
        case "submission":
            return _submitted(request.submission)
        case "quota":
            return _requoted(request)
        case _:
            return Lost(validated_value(ProjectName, request.lost_node, "lost_node"))


def _submitted(asked: pb.Submission) -> Submitted:
    priority = asked.priority if asked.HasField("priority") else _PRIORITY
    limited = {
        "priority": (priority, 1_000),
        "max_run_seconds": (asked.max_run_seconds, _RUN_SECONDS_MAX),
        "count": (asked.count, _COUNT_MAX),
    }
    for name, (value, most) in limited.items():
        if not 0 <= value <= most:
            raise invalid_field(f"submission.{name}", f"is {value}; expected 0 to {most:,}")
    return Submitted(
        validated_value(ProjectName, asked.project, "submission.project"),
        shape_of_message(asked.shape, "submission.shape"),
        priority,
        (asked.max_run_seconds or _RUN_SECONDS) * 1_000_000,
        asked.count or 1,
    )


def _requoted(request: pb.SimulateRequest) -> Requoted:
    node = wire.node_of(request.quota, "quota")
    parent = wire.parent_of(request.quota, node)
    cells = wire.cells_of(request.quota)
    quotas: dict[Cell, Quota] = {
        (cell["pool"], Resource[cell["resource"].upper()]): Quota(
            cell["nominal"], cell["borrowing_limit"], cell["lending_limit"]
        )
        for cell in cells
    }
    above = None if node.kind is NodeKind.ORGANISATION else ROOT if parent is None else node_name("TEAM", parent)
    return Requoted(QueueNode(node_name(node.kind, node.name), above, wire.weight_of(request.quota), quotas))


def tried(snapshot: Snapshot, change: Tried, now: Micros, limits: Limits, sees: Sees) -> pb.SimulateResponse:
    """What the next round would come to with the change, against the same without it.

    Raises:
        RefusedError: the change cannot be made, or what is submitted could never run.
    """
    without = outcome(snapshot, now, limits, rounds=1)
    changed = changed_by(snapshot, change, now)
    with_change = outcome(changed, now, limits, rounds=1)
    response = pb.SimulateResponse()
    if isinstance(change, Submitted):
        _tell_submission(response, change, with_change, now, sees)
    _tell_effects(response, snapshot, without, with_change, sees)
    return response


def changed_by(snapshot: Snapshot, change: Tried, now: Micros) -> Snapshot:
    """The state with the change.

    Raises:
        RefusedError: it cannot be made.
    """
    match change:
        case Submitted():
            _require_known_kind(snapshot, change.shape)
            waiting = Backlog((*snapshot.requests, *change.requests(now)), aging_micros=snapshot.requests.aging_micros)
            return replace(snapshot, requests=waiting)
        case Requoted(node):
            return replace(snapshot, tree=_with_node(snapshot.tree, node))
        case Lost(name):
            if all(node.name != name for node in snapshot.nodes):
                raise RefusedError(Reason.RESOURCE_NOT_FOUND, f"lost_node: there is no node {name}", {"name": name})
            # It is known all the same: what the cluster can be at most does not change.
            heard = tuple(
                replace(node, heartbeat=_NEVER if node.name == name else max(node.heartbeat, snapshot.database_started))
                for node in snapshot.nodes
            )
            return replace(snapshot, nodes=heard, database_started=_NEVER)


def _require_known_kind(snapshot: Snapshot, shape: Shape) -> None:
    kinds = sorted({pool.kind for pool in snapshot.pools})
    if kinds and shape.kind not in (ANY_KIND, *kinds):
        raise invalid_field(
            "submission.shape.accelerator_kind",
            f"is {shape.kind!r}, which no node has; expected {ANY_KIND} or one of {', '.join(kinds)}",
        )


def _with_node(tree: tuple[QueueNode, ...], node: QueueNode) -> tuple[QueueNode, ...]:
    known = {each.name: each for each in tree}
    before = known.get(node.name)
    known[node.name] = node if before is None else replace(node, past_use=before.past_use, budget=before.budget)
    step, seen = node.parent, {node.name}
    while step is not None:
        if step not in known or step in seen:
            what = "no team" if step not in known else "below the node itself"
            raise invalid_field("quota.parent", f"is {what}; expected a team of the tree that is not below the node")
        seen.add(step)
        step = known[step].parent
    return tuple(known[name] for name in sorted(known))


def _tell_submission(response: pb.SimulateResponse, change: Submitted, with_change: Outcome, now: Micros, sees: Sees) -> None:
    requests = change.requests(now)
    refusal = with_change.refusals.get(requests[0].request_id)
    if refusal is not None:
        reason = refusal.reason
        numbers = (
            {"requested": str(reason.requested), "maximum": str(reason.maximum)} if isinstance(reason, ExceedsMaximum) else {}
        )
        raise RefusedError(Reason.EXCEEDS_MAXIMUM, f"submission.shape: {words(reason)}", numbers)
    grants = [with_change.grants[each.request_id] for each in requests if each.request_id in with_change.grants]
    response.started = len(grants)
    if grants:
        response.placement.extend(
            snapshot_pb2.MembersOnNode(node=node, members=members) for node, members in grants[0].placement
        )
    if len(grants) < len(requests):
        reasons = with_change.waiting.get(group_of(requests[0]), ())
        response.reasons.extend(reason_messages(reasons, sees))


def _tell_effects(
    response: pb.SimulateResponse, snapshot: Snapshot, without: Outcome, with_change: Outcome, sees: Sees
) -> None:
    leases = {lease.lease_id: lease for lease in snapshot.leases}
    displaced = sorted(_displaced(with_change) - _displaced(without))
    response.displaced = len(displaced)
    granted = Counter(_queues(with_change)) - Counter(_queues(without))
    denied = Counter(_queues(without)) - Counter(_queues(with_change))
    jobs: dict[str, list[str]] = {}
    for lease_id in displaced:
        jobs.setdefault(leases[lease_id].queue, []).append(leases[lease_id].job_id)
    for project in sorted({*granted, *denied, *jobs}):
        if sees(project):
            response.effects.append(
                pb.SimulatedEffect(
                    project=project,
                    granted_change=granted[project] - denied[project],
                    displaced_job_ids=jobs.get(project, [])[:_DISPLACED_MAX],
                )
            )


def _displaced(of: Outcome) -> set[str]:
    return {*of.preemptions, *of.ends}


def _queues(of: Outcome) -> list[str]:
    """Whose the grants are, those of tried jobs left out."""
    return [grant.request.queue for name, grant in of.grants.items() if not name.startswith("tried-")]
