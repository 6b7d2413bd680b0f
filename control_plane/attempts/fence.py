"""The fence: a worker's write happens only for the attempt that is current, checked in the statement that locks the job."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import RowMapping, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import jobs, leases
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.jobs.repository import job_not_found
from control_plane.jobs.states import FINAL_STATES
from control_plane.storage.layout import manifest_key, project_prefix

_LOCK_JOBS = text(
    """
    SELECT job_id::text, project, priority, state, attempt FROM jobs
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) ORDER BY job_id FOR UPDATE
    """
)
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


async def lock_jobs(connection: AsyncConnection, job_ids: Iterable[str]) -> dict[str, RowMapping]:
    """Locks those of many jobs that exist, in order of id, until the transaction ends; what the fence needs of each, by id."""
    rows = (await connection.execute(_LOCK_JOBS, {"job_ids": list(job_ids)})).mappings().all()
    return {row["job_id"]: row for row in rows}


def refuse_foreign_manifest(job: RowMapping, uri: str, sha256: str, field: str) -> None:
    """An attempt names only what its own project stored: knowing the hash of another's content gives no access to it.

    Args:
        job: the attempt's job, with `project`.
        uri: where the manifest is said to be.
        sha256: its hash.
        field: the request's field that holds the URI.

    Raises:
        RefusedError: the URI is not where a manifest with this hash of the job's project is.
    """
    expected = "/" + manifest_key(project_prefix(job["project"]), sha256)
    # The bucket is the workers' own, who look into no other.
    bucket = uri.removesuffix(expected).removeprefix("s3://")
    if uri != f"s3://{bucket}{expected}" or "/" in bucket or not bucket:
        raise invalid_field(field, f"is {uri[:200]!r}; expected s3://BUCKET{expected}")


def stale(job: RowMapping | None, job_id: str, attempt: int, *, open_only: bool = True) -> RefusedError | None:
    """Why an attempt may not write, if so.

    Args:
        job: the job's row with `attempt` and `state`; None: there is none.
        job_id: the job that was named.
        attempt: the attempt that writes.
        open_only: whether the job must not be final.
    """
    if job is not None and job["attempt"] == attempt and not (open_only and job["state"] in _FINAL):
        return None
    return _explained(job, job_id, attempt)


async def _explain(connection: AsyncConnection, job_id: str, attempt: int) -> RefusedError:
    query = select(jobs.c.attempt, jobs.c.state).where(jobs.c.job_id == job_id)
    return _explained((await connection.execute(query)).mappings().one_or_none(), job_id, attempt)


def _explained(job: RowMapping | None, job_id: str, attempt: int) -> RefusedError:
    if job is None:
        return job_not_found(job_id)
    said = f"the job is {job['state']}" if job["attempt"] == attempt else f"the job's current attempt is {job['attempt']}"
    return RefusedError(
        Reason.STALE_ATTEMPT,
        f"attempt {attempt} of job {job_id} may write no more: {said}; stop",
        {"job_id": job_id, "attempt": str(attempt), "current_attempt": str(job["attempt"])},
    )


async def refuse_stale(connection: AsyncConnection, job_id: str, attempt: int) -> None:
    """As `lock_current`, with a lock that its holders share: for writes that leave the job row alone.

    Raises:
        RefusedError: as `lock_current`.
    """
    query = select(jobs.c.job_id).where(jobs.c.job_id == job_id, jobs.c.attempt == attempt, jobs.c.state.not_in(_FINAL))
    if (await connection.execute(query.with_for_update(read=True))).first() is None:
        raise await _explain(connection, job_id, attempt)
