"""Ends jobs whose workflow cannot do it any more."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.finishing import JobEnd, finish_job
from control_plane.db.tables import jobs
from control_plane.jobs.states import JobState
from workers.workflows.contracts import JobFailure


async def finish(connection: AsyncConnection, job_id: str, state: JobState, failure: JobFailure | None) -> JobState:
    """Moves a job to a final state by the rules that hold for its workflow too; returns the state it is in then.

    Args:
        connection: a connection in a transaction that holds the leader's fence.
        job_id: the job; it must exist.
        state: FAILED or CANCELLED. A job that was asked to stop ends as CANCELLED in any case.
        failure: why, when FAILED.
    """
    attempt = (await connection.execute(select(jobs.c.attempt).where(jobs.c.job_id == job_id).with_for_update())).scalar_one()
    told = None if failure is None else failure.model_dump(mode="json")
    return await finish_job(connection, JobEnd(job_id, attempt, state, told))
