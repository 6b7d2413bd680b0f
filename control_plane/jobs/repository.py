"""Jobs in PostgreSQL. Every function works on a connection in its caller's transaction."""

from __future__ import annotations

from sqlalchemy import RowMapping, select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import jobs
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.waiting import WAITING_REASON


async def get_job(connection: AsyncConnection, job_id: str, *, for_update: bool = False) -> RowMapping:
    """The job's row.

    Raises:
        RefusedError: there is none.
    """
    query = select(jobs, WAITING_REASON.label("waiting_reason")).where(jobs.c.job_id == job_id)
    if for_update:
        query = query.with_for_update(of=jobs)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise job_not_found(job_id)
    return row


def job_not_found(job_id: str) -> RefusedError:
    """The refusal for a job that is not there, and equally for one the caller may not see."""
    return RefusedError(Reason.JOB_NOT_FOUND, f"there is no job {job_id}", {"job_id": job_id})
