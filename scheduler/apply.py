"""Writes a plan: all of it in one transaction, behind the leader's fence.

The rows of every job concerned are locked first, in order of id; then each decision is made only if what it rests on
still holds. A decision whose job or request is gone is left out: the event that took it away brings the next round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.events import EventType, append_event, notify
from control_plane.db.leases import OUTCOME_LOST, OUTCOME_REFUSED, end_lease
from control_plane.db.tables import CHANNEL_OUTBOX, jobs, outbox
from control_plane.jobs import states
from control_plane.jobs.states import JobState
from headway_client.telemetry import continued, traceparent, tracer
from scheduler.core import Admit, EndLease, Grant, NotEvaluated, Plan, Refuse, Waiting
from workers.workflows.contracts import LeaseEnd, LeaseGrant


class StaleSnapshotError(Exception):
    """A lease that was to end was revived meanwhile; its accelerators may have been promised. Nothing was written."""


_LOCK_JOBS = text("SELECT job_id FROM jobs WHERE job_id = ANY(CAST(:ids AS uuid[])) ORDER BY job_id FOR UPDATE")
# Silence is counted as in the core: from the database's start at the earliest.
_LOCK_ENDING = text(
    """
    SELECT lease_id::text, expires_at >= now() AND EXISTS (
        SELECT 1 FROM workers
        WHERE name = leases.worker AND incarnation = leases.worker_incarnation
        AND greatest(heartbeat_at, pg_postmaster_start_time()) >= now() - make_interval(secs => :lost_seconds)
    ) AS living
    FROM leases WHERE lease_id = ANY(CAST(:ids AS uuid[])) AND state = 'GRANTED'
    ORDER BY lease_id FOR UPDATE
    """
)
_GRANT = text(
    """
    UPDATE leases
    SET state = 'GRANTED', attempt = jobs.attempt + 1, worker = :worker, worker_incarnation = :incarnation,
        granted_kind = :kind, leader_epoch = :epoch, granted_at = now(), waiting_reason = '',
        expires_at = now() + make_interval(secs => :lease_seconds)
    FROM jobs
    WHERE leases.lease_id = :lease_id AND leases.state = 'REQUESTED'
        AND jobs.job_id = leases.job_id AND jobs.state IN ('STARTING','RUNNING')
        AND EXISTS (SELECT 1 FROM workers WHERE name = :worker AND incarnation = :incarnation)
    RETURNING leases.attempt, leases.phase, jobs.trace_parent
    """
)
_REASONS_OF_JOBS = text(
    """
    UPDATE jobs SET waiting_reason = given.reason, version = version + 1, updated_at = now()
    FROM unnest(CAST(:ids AS uuid[]), CAST(:reasons AS text[])) AS given (job_id, reason)
    WHERE jobs.job_id = given.job_id AND jobs.state = 'QUEUED'
    """
)
_REASONS_OF_LEASES = text(
    """
    WITH waiting AS (
        UPDATE leases SET waiting_reason = given.reason
        FROM unnest(CAST(:ids AS uuid[]), CAST(:reasons AS text[])) AS given (lease_id, reason)
        WHERE leases.lease_id = given.lease_id AND leases.state = 'REQUESTED'
        RETURNING leases.job_id, given.reason
    )
    UPDATE jobs SET waiting_reason = waiting.reason, version = version + 1, updated_at = now()
    FROM waiting WHERE jobs.job_id = waiting.job_id AND jobs.state IN ('STARTING','RUNNING')
    """
)


class Writer:
    """Writes one plan on one connection, whose transaction holds the fence."""

    def __init__(self, connection: AsyncConnection, epoch: int, *, lease_seconds: float, worker_lost_seconds: float) -> None:
        self._connection = connection
        self._epoch = epoch
        self._lease_seconds = lease_seconds
        self._worker_lost_seconds = worker_lost_seconds

    async def write(self, plan: Plan, stored_reasons: Mapping[str, str]) -> None:
        """Writes the plan, and of its reasons those that differ from what is stored.

        Raises:
            StaleSnapshotError: a lease to be ended is alive after all.
        """
        waiting_jobs = _changed(plan.waiting_jobs, stored_reasons)
        waiting_leases = _changed(plan.waiting_leases, stored_reasons)
        decisions = (*plan.ends, *plan.refusals, *plan.grants, *plan.admissions, *waiting_jobs, *waiting_leases)
        if not decisions:
            return
        await self._connection.execute(_LOCK_JOBS, {"ids": sorted({decision.job_id for decision in decisions})})
        await self._refuse_revived(plan.ends)
        for end in plan.ends:
            await self._end(end)
        for refusal in plan.refusals:
            await self._refuse(refusal)
        for grant in plan.grants:
            await self._grant(grant)
        for admission in plan.admissions:
            await self._admit(admission)
        await self._write_reasons(_REASONS_OF_JOBS, waiting_jobs)
        await self._write_reasons(_REASONS_OF_LEASES, waiting_leases)
        if plan.changes:
            await notify(self._connection, CHANNEL_OUTBOX)

    async def _refuse_revived(self, ends: Iterable[EndLease]) -> None:
        ending = await self._connection.execute(
            _LOCK_ENDING, {"ids": [end.lease_id for end in ends], "lost_seconds": self._worker_lost_seconds}
        )
        revived = [row.lease_id for row in ending if row.living]
        if revived:
            raise StaleSnapshotError(f"leases {', '.join(revived)} were renewed while the round was planned")

    async def _end(self, end: EndLease) -> None:
        if await end_lease(self._connection, end.lease_id, OUTCOME_LOST, end.cause.value) is not None:
            await self._tell_lost(end.job_id, end.lease_id, end.cause.value)

    async def _refuse(self, refusal: Refuse) -> None:
        if await end_lease(self._connection, refusal.lease_id, OUTCOME_REFUSED) is not None:
            await self._tell_lost(refusal.job_id, refusal.lease_id, refusal.reason.words())

    async def _tell_lost(self, job_id: str, lease_id: str, reason: str) -> None:
        query = select(jobs.c.trace_parent).where(jobs.c.job_id == job_id)
        parent: str = (await self._connection.execute(query)).scalar_one()
        with continued(parent), tracer().start_as_current_span("scheduler.end_lease"):
            message = LeaseEnd(lease_id=lease_id, reason=reason)
            await self._send("signal_lease_lost", job_id, f"lost/{lease_id}", message)

    async def _grant(self, grant: Grant) -> None:
        parameters = {
            "lease_id": grant.lease_id,
            "worker": grant.worker,
            "incarnation": grant.incarnation,
            "kind": grant.kind,
            "epoch": self._epoch,
            "lease_seconds": self._lease_seconds,
        }
        lease = (await self._connection.execute(_GRANT, parameters)).one_or_none()
        if lease is None:
            return
        message = LeaseGrant(
            lease_id=grant.lease_id,
            attempt=lease.attempt,
            worker=grant.worker,
            accelerators=grant.accelerators,
            accelerator_kind=grant.kind,
        )
        attributes = {"headway.job_id": grant.job_id, "headway.attempt": lease.attempt, "headway.worker": grant.worker}
        with continued(lease.trace_parent), tracer().start_as_current_span("scheduler.grant", attributes=attributes):
            await self._connection.execute(
                update(jobs).where(jobs.c.job_id == grant.job_id).values(attempt=lease.attempt, waiting_reason="")
            )
            await append_event(
                self._connection,
                grant.job_id,
                EventType.LEASE_GRANTED,
                phase=lease.phase,
                detail=message.model_dump(mode="json", exclude={"attempt"}) | {"leader_epoch": self._epoch},
            )
            await self._send("signal_lease_granted", grant.job_id, f"grant/{grant.lease_id}", message)

    async def _admit(self, admission: Admit) -> None:
        job_id = admission.job_id
        job = (
            await self._connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.state == str(JobState.QUEUED))
                .values(waiting_reason="", admitted_at=func.now())
                .returning(jobs.c.trace_parent)
            )
        ).one_or_none()
        if job is None:
            return
        attributes = {"headway.job_id": job_id}
        with continued(job.trace_parent), tracer().start_as_current_span("scheduler.admit", attributes=attributes):
            starting = states.apply(JobState.QUEUED, states.ADMIT)
            await append_event(self._connection, job_id, EventType.STATE_CHANGED, state=starting)
            await self._send("start_workflow", job_id, f"start/{job_id}")

    async def _send(self, kind: str, job_id: str, dedupe_key: str, message: BaseModel | None = None) -> None:
        await self._connection.execute(
            insert(outbox)
            .values(
                kind=kind,
                job_id=job_id,
                dedupe_key=dedupe_key,
                payload={} if message is None else message.model_dump(mode="json"),
                trace_parent=traceparent(),
                state="ready",
            )
            .on_conflict_do_nothing(index_elements=["dedupe_key"])
        )

    async def _write_reasons(self, statement: Any, waiting: list[Waiting]) -> None:
        if waiting:
            ids = [waiter.waiter_id for waiter in waiting]
            reasons = [waiter.reason.words() for waiter in waiting]
            await self._connection.execute(statement, {"ids": ids, "reasons": reasons})


def _changed(waiting: Iterable[Waiting], stored: Mapping[str, str]) -> list[Waiting]:
    return [waiter for waiter in waiting if _news(waiter, stored[waiter.waiter_id])]


def _news(waiter: Waiting, stored: str) -> bool:
    if isinstance(waiter.reason, NotEvaluated):
        # The reason it had says more than that this round did not get to it.
        return not stored
    return waiter.reason.words() != stored
