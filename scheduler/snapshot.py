"""Reads what a round decides on, in one transaction that sees one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.core import HeldLease, LeaseRequest, Limits, Micros, QueuedJob, QueueKey, Shape, Snapshot, Worker

_QUEUED_PER_PROJECT_MAX = 1_000
"""The best so many of a project's queued jobs are looked at; those further back could not be admitted before them."""

_CLOCK = text(
    """
    SELECT (extract(epoch FROM now()) * 1000000)::bigint AS now,
           (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started
    """
)
# A job without resources is none of ours; it is admitted, and fails at its dispatch with the reason, alone. Jobs of types that
# have no workflow are counted apart, so that they take no place from those that could start.
_QUEUED = text(
    """
    SELECT job_id::text, project, priority, (extract(epoch FROM created_at) * 1000000)::bigint AS submitted,
           coalesce((spec -> 'resources' ->> 'accelerators')::int, 1) AS accelerators,
           coalesce(spec -> 'resources' ->> 'accelerator_kind', 'any') AS kind, waiting_reason, type
    FROM (
        SELECT *, row_number() OVER (
            PARTITION BY project, (CAST(:types AS text[]) IS NULL OR type = ANY(CAST(:types AS text[])))
            ORDER BY priority DESC, created_at, job_id
        ) AS rank
        FROM jobs WHERE state = 'QUEUED'
    ) AS ranked
    WHERE rank <= :most
    """
)
# A paused job prepares nothing, so it takes no place in its project's window; resumed, it may overfill it for a while.
_ADMITTED = text(
    "SELECT project, count(*) AS jobs FROM jobs WHERE state IN ('STARTING','RUNNING','PAUSING','CANCELLING') GROUP BY project"
)
# A job that is being stopped is given nothing more; its requests end with it. Nor is one that is being paused.
_REQUESTS = text(
    """
    SELECT lease_id::text, leases.job_id::text, leases.project, leases.priority, accelerators, accelerator_kind AS kind,
           (extract(epoch FROM requested_at) * 1000000)::bigint AS requested, leases.waiting_reason
    FROM leases JOIN jobs USING (job_id)
    WHERE leases.state = 'REQUESTED' AND jobs.state IN ('STARTING','RUNNING')
    """
)
_HELD = text(
    """
    SELECT lease_id::text, job_id::text, project, worker, worker_incarnation::text AS incarnation, granted_kind AS kind,
           accelerators, (extract(epoch FROM expires_at) * 1000000)::bigint AS expires
    FROM leases WHERE state = 'GRANTED'
    """
)
_WORKERS = text(
    """
    SELECT name, incarnation::text, accelerator_kind AS kind, accelerators,
           (extract(epoch FROM heartbeat_at) * 1000000)::bigint AS heartbeat
    FROM workers
    """
)
_QUOTAS = text("SELECT project, max_accelerators FROM quotas")


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot, when it was taken, and the waiting reasons stored then."""

    snapshot: Snapshot
    now: Micros
    reasons: Mapping[str, str]
    """What is stored as waiting reason, by id of job or lease."""


async def read_snapshot(engine: AsyncEngine, limits: Limits, carried_over: tuple[QueueKey, ...]) -> Reading:
    """Everything a round needs, as of one moment.

    Args:
        engine: where to read.
        limits: the round's limits.
        carried_over: from the plan before.
    """
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            clock = (await connection.execute(_CLOCK)).one()
            most = max(_QUEUED_PER_PROJECT_MAX, limits.prepare_ahead_per_project)
            queued = await _rows(
                connection, _QUEUED, most=most, types=None if limits.job_types is None else sorted(limits.job_types)
            )
            requests = await _rows(connection, _REQUESTS)
            snapshot = Snapshot(
                queued=tuple(_queued_job(row) for row in queued),
                requests=tuple(_lease_request(row) for row in requests),
                held=tuple(HeldLease(**row) for row in await _rows(connection, _HELD)),
                workers=tuple(Worker(**row) for row in await _rows(connection, _WORKERS)),
                quotas={row["project"]: row["max_accelerators"] for row in await _rows(connection, _QUOTAS)},
                admitted={row["project"]: row["jobs"] for row in await _rows(connection, _ADMITTED)},
                database_started=Micros(clock.started),
                carried_over=carried_over,
            )
    reasons = {row["job_id"]: row["waiting_reason"] for row in queued}
    reasons |= {row["lease_id"]: row["waiting_reason"] for row in requests}
    return Reading(snapshot, Micros(clock.now), reasons)


async def _rows(connection: AsyncConnection, statement: TextClause, **parameters: Any) -> list[RowMapping]:
    return list((await connection.execute(statement, parameters)).mappings())


def _queued_job(row: RowMapping) -> QueuedJob:
    return QueuedJob(
        job_id=row["job_id"],
        project=row["project"],
        priority=row["priority"],
        submitted=row["submitted"],
        shape=Shape(row["accelerators"], row["kind"]),
        job_type=row["type"],
    )


def _lease_request(row: RowMapping) -> LeaseRequest:
    return LeaseRequest(
        lease_id=row["lease_id"],
        job_id=row["job_id"],
        project=row["project"],
        priority=row["priority"],
        requested=row["requested"],
        shape=Shape(row["accelerators"], row["kind"]),
    )
