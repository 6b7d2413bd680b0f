"""The fence: a worker's write happens only for the attempt that is current, checked in the statement that locks the job."""

from __future__ import annotations

from sqlalchemy import RowMapping, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import jobs, leases
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.repository import job_not_found
from control_plane.jobs.states import FINAL_STATES

_FINAL = [str(state) for state in FINAL_STATES]


async def lock_current(connection: AsyncConnection, job_id: str, attempt: int, *, open_only: bool = True) -> RowMapping:
    """Locks the job of a current attempt until the transaction ends, and returns its row.

    Args:
        connection: a connection in a transaction.
        job_id: the job.
        attempt: the attempt that writes.
        open_only: whether the job must not be final.

    Raises:
        RefusedError: there is no such job, the attempt is not its current one, or the job is final.
    """
    query = select(jobs).where(jobs.c.job_id == job_id, jobs.c.attempt == attempt)
    if open_only:
        query = query.where(jobs.c.state.not_in(_FINAL))
    row = (await connection.execute(query.with_for_update())).mappings().one_or_none()
    if row is None:
        raise await _explain(connection, job_id, attempt)
    return row


async def lock_leased(connection: AsyncConnection, job_id: str, attempt: int) -> RowMapping:
    """As `lock_current`, and the attempt must hold a lease that has not expired by the database's clock.

    Raises:
        RefusedError: as `lock_current`; or no lease is held.
    """
    row = await lock_current(connection, job_id, attempt)
    held = select(leases.c.lease_id).where(
        leases.c.job_id == job_id,
        leases.c.attempt == attempt,
        leases.c.state == "GRANTED",
        leases.c.expires_at > func.now(),
    )
    if (await connection.execute(held)).first() is None:
        raise RefusedError(
            Reason.LEASE_NOT_HELD,
            f"attempt {attempt} of job {job_id} holds no lease any more; stop, the job goes on without this attempt",
            {"lease_id": "", "state": "ENDED"},
        )
    return row


async def _explain(connection: AsyncConnection, job_id: str, attempt: int) -> RefusedError:
    job = (await connection.execute(select(jobs.c.attempt, jobs.c.state).where(jobs.c.job_id == job_id))).one_or_none()
    if job is None:
        return job_not_found(job_id)
    said = f"the job is {job.state}" if job.attempt == attempt else f"the job's current attempt is {job.attempt}"
    return RefusedError(
        Reason.STALE_ATTEMPT,
        f"attempt {attempt} of job {job_id} may write no more: {said}; stop",
        {"job_id": job_id, "attempt": str(attempt), "current_attempt": str(job.attempt)},
    )


async def refuse_stale(connection: AsyncConnection, job_id: str, attempt: int) -> None:
    """As `lock_current`, with a lock that its holders share: for writes that leave the job row alone.

    Raises:
        RefusedError: as `lock_current`.
    """
    query = select(jobs.c.job_id).where(jobs.c.job_id == job_id, jobs.c.attempt == attempt, jobs.c.state.not_in(_FINAL))
    if (await connection.execute(query.with_for_update(read=True))).first() is None:
        raise await _explain(connection, job_id, attempt)
