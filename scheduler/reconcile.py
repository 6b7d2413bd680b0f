"""Compares jobs with their workflows and repairs the difference: Postgres decides, Temporal only drives.

What can have come apart, and what is done:

* Temporal does not know the workflow of an open job (its data was lost): the attempt is given up, its leases end, and the
  workflow is started anew, of a paused job too, where it holds still at once; a job that was being stopped is CANCELLED at
  once, since nothing is left to stop.
* The workflow is closed and the job is not final (it was terminated, or failed in a way it could not report): the job
  FAILED by a fault of the platform; one that was being stopped is CANCELLED.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import structlog
from sqlalchemy import Row, insert, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from control_plane.db.engine import in_transaction
from control_plane.db.events import EventType, append_event, notify
from control_plane.db.leases import OUTCOME_LOST, end_open_leases
from control_plane.db.tables import CHANNEL_OUTBOX, jobs, outbox
from control_plane.jobs.states import FailureKind, JobState
from scheduler import failpoints
from scheduler.failpoints import Failpoint
from scheduler.finish import finish
from scheduler.leader import DeposedError, Leadership
from workers.workflows.contracts import JobFailure

_log = structlog.get_logger()

_CALL_TIMEOUT = timedelta(seconds=10)
_LOST = "Temporal lost the job's workflow"

# Whatever is still to be dispatched may be the very start of the workflow. A job paused before its admission has none.
_OPEN = text(
    """
    SELECT job_id::text, state FROM jobs
    WHERE state IN ('STARTING','RUNNING','PAUSING','PAUSED','CANCELLING') AND admitted_at IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.job_id = jobs.job_id AND outbox.state <> 'done')
    ORDER BY job_id
    """
)
_STILL_OPEN = text(_OPEN.text.replace("ORDER BY job_id", "AND job_id = :job_id FOR UPDATE OF jobs"))


class Reconciler:
    """The leader's comparison. On a standby it does nothing."""

    def __init__(self, engine: AsyncEngine, client: Client, leadership: Leadership, period_seconds: float) -> None:
        self._engine = engine
        self._client = client
        self._leadership = leadership
        self._period_seconds = period_seconds

    async def reconcile(self) -> float:
        """Compares once and repairs what it finds; returns after how many seconds to do so again.

        Raises:
            RPCError: Temporal does not answer; nothing was concluded from that.
            SQLAlchemyError: the database failed.
        """
        if self._leadership.epoch is None:
            return self._period_seconds
        try:
            for job in await self._suspects():
                await self._compare(job.job_id)
        except DeposedError as error:
            _log.warning("reconcile.refused", reason=str(error))
        return self._period_seconds

    async def _suspects(self) -> Sequence[Row[tuple[str, str]]]:
        """Open jobs that Temporal's list of open workflows lacks. The list lags a little, so each is looked at again."""
        async with self._engine.connect() as connection:
            candidates = (await connection.execute(_OPEN)).all()
        if not candidates:
            return []
        # Also finds out whether the namespace is there: without it no workflow would be known, and no job lost.
        running = {execution.id async for execution in self._client.list_workflows("ExecutionStatus = 'Running'")}
        return [job for job in candidates if job.job_id not in running]

    async def _compare(self, job_id: str) -> None:
        status = await self._status(job_id)
        if status is WorkflowExecutionStatus.RUNNING:
            return

        async def mend(connection: AsyncConnection) -> str | None:
            await self._leadership.fence(connection)
            # The workflow was looked at first and the job now: what it recorded before it closed is seen here.
            job = (await connection.execute(_STILL_OPEN, {"job_id": job_id})).one_or_none()
            if job is None:
                return None
            if status is None and job.state != JobState.CANCELLING:
                await _start_anew(connection, job_id)
                repair = "started anew"
            else:
                failure = JobFailure(kind=FailureKind.PLATFORM, message=_closed_message(status))
                repair = str(await finish(connection, job_id, JobState.FAILED, failure))
            failpoints.reach(Failpoint.BEFORE_REPAIR)
            return repair

        repaired = await in_transaction(self._engine, mend)
        if repaired is not None:
            failpoints.reach(Failpoint.AFTER_REPAIR)
            found = "unknown" if status is None else status.name
            _log.warning("reconcile.repaired", job_id=job_id, workflow=found, repair=repaired)

    async def _status(self, job_id: str) -> WorkflowExecutionStatus | None:
        """The status of the job's newest workflow; None if Temporal knows none."""
        try:
            description = await self._client.get_workflow_handle(job_id).describe(rpc_timeout=_CALL_TIMEOUT)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        return description.status


async def _start_anew(connection: AsyncConnection, job_id: str) -> None:
    """Gives the current attempt up and asks for another workflow, which begins as the next attempt.

    The next number is a fence: activities of the lost workflow that still run can write nothing more.
    """
    await end_open_leases(connection, job_id, OUTCOME_LOST, _LOST)
    await append_event(connection, job_id, EventType.ATTEMPT_LOST, detail={"reason": _LOST})
    job = (
        await connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id)
            .values(attempt=jobs.c.attempt + 1)
            .returning(jobs.c.attempt, jobs.c.trace_parent)
        )
    ).one()
    await connection.execute(
        insert(outbox).values(
            kind="start_workflow",
            job_id=job_id,
            dedupe_key=f"start/{job_id}/{job.attempt}",
            trace_parent=job.trace_parent,
            state="ready",
        )
    )
    await notify(connection, CHANNEL_OUTBOX)


def _closed_message(status: WorkflowExecutionStatus | None) -> str:
    how = _LOST if status is None else f"the job's workflow closed as {status.name} without recording the job's end"
    return f"{how}; look into the worker's log and Temporal, then submit the job again"
