"""Writes what a round decided: all of it in one transaction, behind the leader's fence, in a handful of statements.

The rows of every job concerned are locked first, in order of id; whoever changes what a lease is locks its job first, so
nothing here changes under the hands. Then each decision is made only if what it rests on still holds. One whose job or request
is gone is left out: the event that took it away brings the next round.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.ledgers import hold
from control_plane.budgets.reserving import LeaseToReserve, reserve_many
from control_plane.db.events import EventType, Happening, append_events, notify
from control_plane.db.leases import OUTCOME_LOST, OUTCOME_REFUSED, Ending, end_leases
from control_plane.db.tables import CHANNEL_OUTBOX
from control_plane.jobs import states
from control_plane.jobs.states import UNDER_WAY, JobState
from scheduler.core.types import Grant, Micros, Plan, Pool, Preempt, QueuedJob, QueueNode
from scheduler.core.words import words
from scheduler.spans import decided
from scheduler.tree import scopes_above
from workers.workflows.contracts import LeaseEnd, LeaseGrant, MembersOnNode, PreemptOrder

_T = TypeVar("_T")

PREEMPTED = "its accelerators are needed by work that goes before it"
"""What a lease is told that is to yield."""


class StaleSnapshotError(Exception):
    """A lease that was to end was revived meanwhile; its accelerators may have been promised. Nothing was written."""


class Outgoing(NamedTuple):
    """A row for the outbox."""

    kind: str
    job_id: str
    dedupe_key: str
    payload: str
    trace_parent: str


class _Job(NamedTuple):
    """What is known of a locked job."""

    state: str
    attempt: int
    trace_parent: str


class _Lease(NamedTuple):
    state: str
    phase: str
    preempted: bool


@dataclass(slots=True)
class Written:
    """What came of a plan: what still held."""

    ends: int = 0
    refusals: int = 0
    grants: list[Grant] = field(default_factory=list[Grant])
    preemptions: list[Preempt] = field(default_factory=list[Preempt])
    claims: int = 0
    admissions: list[QueuedJob] = field(default_factory=list[QueuedJob])
    at: Micros | None = None
    """When, by the database's clock; None: there was nothing to do."""

    @property
    def changes(self) -> int:
        """How many decisions were carried out."""
        return self.ends + self.refusals + len(self.grants) + len(self.preemptions) + self.claims + len(self.admissions)


_LOCK_JOBS = text(
    """
    SELECT job_id::text, state, attempt, trace_parent FROM jobs
    WHERE job_id = ANY(CAST(:ids AS uuid[])) ORDER BY job_id FOR UPDATE
    """
)
_LEASES = text(
    "SELECT lease_id::text, state, phase, preempted_for IS NOT NULL AS preempted FROM leases"
    " WHERE lease_id = ANY(CAST(:ids AS uuid[]))"
)
# Silence is counted as in the core: from the database's start at the earliest.
_REVIVED = text(
    """
    SELECT lease_id::text FROM leases
    WHERE lease_id = ANY(CAST(:ids AS uuid[])) AND state = 'GRANTED' AND expires_at >= now() AND NOT EXISTS (
        SELECT 1 FROM jsonb_array_elements(placement) AS part LEFT JOIN workers ON workers.name = part ->> 0
        WHERE workers.incarnation::text IS DISTINCT FROM part ->> 2
            OR greatest(heartbeat_at, pg_postmaster_start_time()) < now() - make_interval(secs => :lost_seconds)
    )
    ORDER BY lease_id FOR UPDATE
    """
)
# One that was taken out of service meanwhile takes nothing new.
_INCARNATIONS = text(
    "SELECT name, incarnation::text FROM workers WHERE name = ANY(CAST(:names AS text[])) AND NOT cordoned AND NOT draining"
)
_GRANT = text(
    """
    UPDATE leases
    SET state = 'GRANTED', attempt = given.attempt, worker = given.worker, worker_incarnation = given.incarnation,
        granted_kind = given.kind, pool = given.pool, placement = given.placement::jsonb, leader_epoch = :epoch,
        granted_at = now(), expires_at = now() + make_interval(secs => :lease_seconds)
    FROM unnest(
        CAST(:lease_ids AS uuid[]), CAST(:attempts AS int[]), CAST(:workers AS text[]), CAST(:incarnations AS uuid[]),
        CAST(:kinds AS text[]), CAST(:pools AS text[]), CAST(:placements AS text[])
    ) AS given (lease_id, attempt, worker, incarnation, kind, pool, placement)
    WHERE leases.lease_id = given.lease_id
    """
)
# One that was asked to leave its node has no more time for it.
_PREEMPT = text(
    """
    UPDATE leases
    SET preempted_for = given.request_id, preempted_at = coalesce(preempted_at, now()), preempted_ms = given.lost_ms
    FROM unnest(CAST(:lease_ids AS uuid[]), CAST(:request_ids AS uuid[]), CAST(:lost_ms AS bigint[]))
        AS given (lease_id, request_id, lost_ms)
    WHERE leases.lease_id = given.lease_id
    """
)
_CLAIM = text(
    """
    UPDATE leases SET claim = given.placement::jsonb
    FROM unnest(CAST(:lease_ids AS uuid[]), CAST(:placements AS text[])) AS given (lease_id, placement)
    WHERE leases.lease_id = given.lease_id AND state = 'REQUESTED'
    """
)
# The triggers that note changes for the leader look at this.
_WITHOUT_NOTES = text(
    """
    SELECT (date_part('epoch', now()) * 1e6)::bigint
    FROM (SELECT set_config('headway.without_notes', 'on', true)) AS setting
    """
)
_SEND = text(
    """
    INSERT INTO outbox (kind, job_id, dedupe_key, payload, trace_parent, state)
    SELECT kind, job_id, dedupe_key, payload::jsonb, trace_parent, 'ready'
    FROM unnest(
        CAST(:kinds AS text[]), CAST(:job_ids AS uuid[]), CAST(:dedupe_keys AS text[]), CAST(:payloads AS text[]),
        CAST(:trace_parents AS text[])
    ) WITH ORDINALITY AS given (kind, job_id, dedupe_key, payload, trace_parent, place)
    ORDER BY place
    ON CONFLICT (dedupe_key) DO NOTHING
    """
)


class Writer:
    """Writes one plan on one connection, whose transaction holds the fence."""

    def __init__(
        self,
        connection: AsyncConnection,
        epoch: int,
        pools: Mapping[str, Pool],
        tree: Sequence[QueueNode],
        *,
        lease_seconds: float,
        node_lost_seconds: float,
    ) -> None:
        """The pools by name and the tree that the plan was made with; the rest as in the settings."""
        self._connection = connection
        self._epoch = epoch
        self._pools = pools
        self._tree = {node.name: node for node in tree}
        self._lease_seconds = lease_seconds
        self._node_lost_seconds = node_lost_seconds
        self._jobs: dict[str, _Job] = {}
        self._leases: dict[str, _Lease] = {}
        self._outgoing: list[Outgoing] = []

    async def write(self, plan: Plan) -> Written:
        """Writes the plan, its reasons apart; returns what of it still held.

        Raises:
            StaleSnapshotError: a lease to be ended is alive after all.
        """
        written = Written()
        if not plan.changes:
            return written
        await self._lock(plan)
        ending = [end.lease_id for end in plan.ends]
        if ending and plan.grants:
            projects = {grant.request.queue for grant in plan.grants}
            await hold(self._connection, ending, {project: scopes_above(project, self._tree) for project in projects})
        if plan.ends:
            await self._refuse_revived([end.lease_id for end in plan.ends])
            lost = [(end.job_id, Ending(end.lease_id, OUTCOME_LOST, end.cause.value)) for end in plan.ends]
            written.ends = await self._end(lost)
        if plan.refusals:
            never = [
                (refusal.request.job_id, Ending(refusal.request.request_id, OUTCOME_REFUSED, words(refusal.reason)))
                for refusal in plan.refusals
            ]
            written.refusals = await self._end(never)
        written.preemptions = await self._preempt(plan.preemptions)
        written.claims = await self._claim(plan)
        # What follows the leader knows without being told: it keeps its state up by itself.
        written.at = Micros((await self._connection.execute(_WITHOUT_NOTES)).scalar_one())
        written.grants = await self._grant(plan.grants)
        written.admissions = await self._admit(plan.admissions)
        await self._send()
        return written

    async def end(self, lost: Sequence[tuple[str, str, str]]) -> int:
        """Ends held leases as lost: job, lease and why of each; returns how many were still held."""
        await self._lock_jobs({job_id for job_id, _, _ in lost})
        ended = await self._end([(job_id, Ending(lease_id, OUTCOME_LOST, why)) for job_id, lease_id, why in lost])
        await self._send()
        return ended

    async def _lock(self, plan: Plan) -> None:
        requests = [decision.request for decision in (*plan.refusals, *plan.grants)]
        decided_on = (*plan.ends, *plan.preemptions, *plan.admissions, *requests)
        await self._lock_jobs({each.job_id for each in decided_on})
        lease_ids = [request.request_id for request in requests] + [preemption.lease_id for preemption in plan.preemptions]
        if lease_ids:
            rows = (await self._connection.execute(_LEASES, {"ids": lease_ids})).all()
            self._leases = {lease_id: _Lease(*rest) for lease_id, *rest in rows}

    async def _lock_jobs(self, job_ids: Iterable[str]) -> None:
        rows = (await self._connection.execute(_LOCK_JOBS, {"ids": list(job_ids)})).all()
        self._jobs = {job_id: _Job(*rest) for job_id, *rest in rows}

    async def _refuse_revived(self, lease_ids: Sequence[str]) -> None:
        parameters = {"ids": lease_ids, "lost_seconds": self._node_lost_seconds}
        revived = (await self._connection.execute(_REVIVED, parameters)).scalars().all()
        if revived:
            raise StaleSnapshotError(f"leases {', '.join(revived)} were renewed while the round was planned")

    async def _end(self, endings: Sequence[tuple[str, Ending]]) -> int:
        ended = await end_leases(self._connection, [ending for _, ending in endings])
        for job_id, ending in endings:
            if ending.lease_id in ended:
                message = LeaseEnd(lease_id=ending.lease_id, reason=ending.reason)
                parent = self._decided("scheduler.end_lease", job_id)
                self._outgo("signal_lease_lost", job_id, f"lost/{ending.lease_id}", message, parent)
        return len(ended)

    async def _grant(self, grants: Sequence[Grant]) -> list[Grant]:
        holding = await self._reserve(await self._still_holding(grants))
        if not holding:
            return []
        numbers = self._attempts(holding)
        parameters: dict[str, Any] = {
            "lease_ids": [grant.request.request_id for grant in holding],
            "attempts": numbers,
            "workers": [grant.placement[0][0] for grant in holding],
            "incarnations": [grant.incarnations[0] for grant in holding],
            "kinds": [self._pools[grant.pool].kind for grant in holding],
            "pools": [grant.pool for grant in holding],
            "placements": [_placed(grant) for grant in holding],
            "epoch": self._epoch,
            "lease_seconds": self._lease_seconds,
        }
        granting = self._connection.execute(_GRANT, parameters)
        events = await _meanwhile(granting, lambda: [self._granted(*each) for each in zip(holding, numbers, strict=True)])
        telling = append_events(self._connection, EventType.LEASE_GRANTED, events)
        await _meanwhile(telling, lambda: [self._tell(*each) for each in zip(holding, numbers, strict=True)])
        return holding

    def _attempts(self, grants: Sequence[Grant]) -> list[int]:
        """Each grant's attempt: one more than its job's last."""
        granted_before: Counter[str] = Counter()
        numbers: list[int] = []
        for grant in grants:
            job_id = grant.request.job_id
            granted_before[job_id] += 1
            numbers.append(self._jobs[job_id].attempt + granted_before[job_id])
        return numbers

    def _granted(self, grant: Grant, attempt: int) -> Happening:
        request = grant.request
        detail = {
            "lease_id": request.request_id,
            "worker": grant.placement[0][0],
            "accelerators": request.shape.accelerators,
            "accelerator_kind": self._pools[grant.pool].kind,
            "pool": grant.pool,
            "placement": grant.placement,
            "leader_epoch": self._epoch,
        }
        return Happening(request.job_id, detail, phase=self._leases[request.request_id].phase, attempt=attempt)

    def _tell(self, grant: Grant, attempt: int) -> None:
        request, worker = grant.request, grant.placement[0][0]
        message = LeaseGrant(
            lease_id=request.request_id,
            attempt=attempt,
            worker=worker,
            accelerators=request.shape.accelerators,
            accelerator_kind=self._pools[grant.pool].kind,
            placement=tuple(MembersOnNode(node=node, members=members) for node, members in grant.placement),
        )
        attributes = {"headway.attempt": attempt, "headway.worker": worker}
        parent = self._decided("scheduler.grant", request.job_id, attributes)
        self._outgo("signal_lease_granted", request.job_id, f"grant/{request.request_id}", message, parent)

    async def _still_holding(self, grants: Sequence[Grant]) -> list[Grant]:
        """The grants whose request is open, whose job goes on, and whose nodes are the same start of them."""
        if not grants:
            return []
        names = sorted({node for grant in grants for node, _ in grant.placement})
        rows = (await self._connection.execute(_INCARNATIONS, {"names": names})).all()
        now = {row.name: row.incarnation for row in rows}
        return [
            grant
            for grant in grants
            if self._is(grant.request.request_id, "REQUESTED")
            and self._goes_on(grant.request.job_id)
            and all(
                now.get(node) == incarnation for (node, _), incarnation in zip(grant.placement, grant.incarnations, strict=True)
            )
        ]

    async def _reserve(self, grants: Sequence[Grant]) -> list[Grant]:
        """Reserves what the grants may cost; those that a budget has no room for are left out, and wait."""
        leases = [
            LeaseToReserve(
                lease_id=grant.request.request_id,
                job_id=grant.request.job_id,
                project=grant.request.queue,
                accelerators=grant.request.shape.accelerators,
                kind=self._pools[grant.pool].kind,
                spot=self._pools[grant.pool].spot,
                run_ms=grant.request.run_micros // 1_000,
            )
            for grant in grants
        ]
        above = {lease.project: scopes_above(lease.project, self._tree) for lease in leases}
        refused = {shortfall.lease_id for shortfall in await reserve_many(self._connection, leases, above)}
        return [grant for grant in grants if grant.request.request_id not in refused]

    async def _preempt(self, preemptions: Sequence[Preempt]) -> list[Preempt]:
        holding = [
            each
            for each in preemptions
            if self._is(each.lease_id, "GRANTED") and not self._leases[each.lease_id].preempted and self._goes_on(each.job_id)
        ]
        if not holding:
            return []
        parameters = {
            "lease_ids": [each.lease_id for each in holding],
            "request_ids": [each.request_id for each in holding],
            "lost_ms": [each.lost_ms for each in holding],
        }
        await self._connection.execute(_PREEMPT, parameters)
        events: list[Happening] = []
        for each in holding:
            detail = {"lease_id": each.lease_id, "by": "system:scheduler", "reason": PREEMPTED, "lost_ms": each.lost_ms}
            events.append(Happening(each.job_id, detail, phase=self._leases[each.lease_id].phase))
            order = PreemptOrder(lease_id=each.lease_id, reason=PREEMPTED)
            parent = self._decided("scheduler.preempt", each.job_id)
            self._outgo("signal_preempt", each.job_id, f"preempt/{each.lease_id}", order, parent)
        await append_events(self._connection, EventType.PREEMPTION_REQUESTED, events)
        return holding

    async def _claim(self, plan: Plan) -> int:
        if not plan.claims:
            return 0
        parameters = {
            "lease_ids": [claim.request_id for claim in plan.claims],
            "placements": [json.dumps(claim.placement) for claim in plan.claims],
        }
        return (await self._connection.execute(_CLAIM, parameters)).rowcount

    async def _admit(self, admissions: Iterable[QueuedJob]) -> list[QueuedJob]:
        queued = [each for each in admissions if (job := self._jobs.get(each.job_id)) and job.state == JobState.QUEUED]
        starting = states.apply(JobState.QUEUED, states.ADMIT)
        events = [Happening(job.job_id, state=starting) for job in queued]
        telling = append_events(self._connection, EventType.STATE_CHANGED, events)
        await _meanwhile(telling, lambda: [self._start(job.job_id) for job in queued])
        return queued

    def _start(self, job_id: str) -> None:
        self._outgo("start_workflow", job_id, f"start/{job_id}", None, self._decided("scheduler.admit", job_id))

    def _is(self, lease_id: str, state: str) -> bool:
        lease = self._leases.get(lease_id)
        return lease is not None and lease.state == state

    def _goes_on(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and job.state in UNDER_WAY

    def _decided(self, name: str, job_id: str, attributes: Mapping[str, str | int] | None = None) -> str:
        return decided(name, self._jobs[job_id].trace_parent, {"headway.job_id": job_id, **(attributes or {})})

    def _outgo(self, kind: str, job_id: str, dedupe_key: str, message: BaseModel | None, trace_parent: str) -> None:
        payload = "{}" if message is None else message.model_dump_json()
        self._outgoing.append(Outgoing(kind, job_id, dedupe_key, payload, trace_parent))

    async def _send(self) -> None:
        if not self._outgoing:
            return
        kinds, job_ids, keys, payloads, parents = (list(column) for column in zip(*self._outgoing, strict=True))
        parameters = {
            "kinds": kinds,
            "job_ids": job_ids,
            "dedupe_keys": keys,
            "payloads": payloads,
            "trace_parents": parents,
        }
        await self._connection.execute(_SEND, parameters)
        await notify(self._connection, CHANNEL_OUTBOX)


async def _meanwhile(statement: Coroutine[Any, Any, Any], work: Callable[[], _T]) -> _T:
    """Has the database carry out a statement and does some work meanwhile, of which there is as much as the database has."""
    executing = asyncio.create_task(statement)
    # Sends it.
    await asyncio.sleep(0)
    try:
        return work()
    finally:
        await executing


def _placed(grant: Grant) -> str:
    return json.dumps(
        [[node, members, incarnation] for (node, members), incarnation in zip(grant.placement, grant.incarnations, strict=True)]
    )
