"""Lines: what waits and is alike to every rule but age, as the database counts it.

A line's order is the core's (`line_key`): by time of submission, each point of priority worth `aging` of waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.jobs.workflows import RUN_TYPES
from scheduler.core.types import CLASS_FLOORS, PriorityClass, class_of

LineKind = Literal["job", "lease"]

COUNTED_MAX = 100_000
"""Up to where what is in a line is counted."""

# A job's requests are of no use while it is being stopped or paused; the scheduler does not look at them either.
_WAITER = text(
    """
    SELECT jobs.project, jobs.type, jobs.state, jobs.priority, jobs.shape, jobs.created_at AS waiting_since,
        jobs.job_id::text AS id, jobs.start_by, jobs.raised_at, requested.*
    FROM jobs LEFT JOIN LATERAL (
        SELECT lease_id::text, leases.priority AS lease_priority, leases.shape AS lease_shape,
            leases.waiting_since AS lease_waiting_since
        FROM leases
        WHERE leases.job_id = jobs.job_id AND leases.state = 'REQUESTED' AND jobs.state IN ('STARTING','RUNNING')
        ORDER BY requested_at, lease_id LIMIT 1
    ) AS requested ON true
    WHERE jobs.job_id = :job_id
    """
)
_HISTORY = text(
    """
    SELECT since, reasons FROM waiting_reasons
    WHERE kind = :kind AND project = :project AND priority_class = :priority_class AND shape = :shape
        AND since >= coalesce((
            SELECT max(since) FROM waiting_reasons
            WHERE kind = :kind AND project = :project AND priority_class = :priority_class AND shape = :shape
                AND since <= CAST(:waiting_since AS timestamptz)
        ), '-infinity')
    ORDER BY since DESC LIMIT :most
    """
)
_NEWEST = text(
    """
    SELECT DISTINCT ON (kind, priority_class, shape) kind, priority_class, shape, since, reasons FROM waiting_reasons
    WHERE project = :project ORDER BY kind, priority_class, shape, since DESC
    """
)
_COUNTS = {
    "job": text(
        """
        SELECT count(*) AS length, count(*) FILTER (
            WHERE (created_at - priority * CAST(:aging AS interval), created_at, job_id)
                < (CAST(:virtual AS timestamptz), CAST(:waiting_since AS timestamptz), CAST(:id AS uuid))
        ) AS ahead
        FROM (
            SELECT created_at, priority, job_id FROM jobs
            WHERE state = 'QUEUED' AND project = :project AND shape = :shape AND type = ANY(CAST(:types AS text[]))
                AND priority BETWEEN :lowest AND :highest
            LIMIT :most
        ) AS line
        """
    ),
    "lease": text(
        """
        SELECT count(*) AS length, count(*) FILTER (
            WHERE (waiting_since - priority * CAST(:aging AS interval), waiting_since, lease_id)
                < (CAST(:virtual AS timestamptz), CAST(:waiting_since AS timestamptz), CAST(:id AS uuid))
        ) AS ahead
        FROM (
            SELECT leases.waiting_since, leases.priority, lease_id FROM leases JOIN jobs USING (job_id)
            WHERE leases.state = 'REQUESTED' AND jobs.state IN ('STARTING','RUNNING') AND leases.project = :project
                AND leases.shape = :shape AND leases.priority BETWEEN :lowest AND :highest
            LIMIT :most
        ) AS line
        """
    ),
}
_CLASS = "CASE {} ELSE 0 END".format(
    " ".join(
        f"WHEN {{priority}} >= {floor} THEN {int(kind)}" for kind, floor in sorted(CLASS_FLOORS.items(), reverse=True) if kind
    )
)
_LINES = text(
    f"""
    SELECT 'lease' AS kind, {_CLASS.format(priority="leases.priority")} AS priority_class, leases.shape, '' AS job_type,
        count(*) AS count, min(waiting_since) AS oldest,
        (array_agg(
            job_id ORDER BY waiting_since - leases.priority * CAST(:aging AS interval), waiting_since, lease_id
        ))[1]::text AS head
    FROM leases JOIN jobs USING (job_id)
    WHERE leases.state = 'REQUESTED' AND jobs.state IN ('STARTING','RUNNING') AND leases.project = :project
    GROUP BY 1, 2, 3, 4
    UNION ALL
    SELECT 'job', {_CLASS.format(priority="priority")}, shape,
        CASE WHEN type = ANY(CAST(:types AS text[])) THEN '' ELSE type END, count(*), min(created_at),
        (array_agg(job_id ORDER BY created_at - priority * CAST(:aging AS interval), created_at, job_id))[1]::text
    FROM jobs WHERE state = 'QUEUED' AND project = :project
    GROUP BY 1, 2, 3, 4
    ORDER BY 1 DESC, 2 DESC, 3, 4 LIMIT :most
    """  # noqa: S608 - constants
)


@dataclass(frozen=True, slots=True)
class Waiter:
    """Something that waits, and its line.

    Attributes:
        kind: whether a queued job, or the lease that a job asked for.
        identity: the job's or the lease's id.
        project: whose.
        job_type: of the job.
        priority: of the job.
        shape: what it needs, as the database writes it.
        since: since when it waits; one that was preempted keeps the time it was first asked for.
    """

    kind: LineKind
    identity: str
    project: str
    job_type: str
    priority: int
    shape: str
    since: datetime

    @property
    def priority_class(self) -> PriorityClass:
        """The class of its priority."""
        return class_of(self.priority)


async def find_waiter(connection: AsyncConnection, job_id: str) -> tuple[RowMapping, Waiter | None] | None:
    """A job's row, and what of it waits; None: there is no such job."""
    row = (await connection.execute(_WAITER, {"job_id": job_id})).mappings().one_or_none()
    if row is None:
        return None
    if row["state"] == "QUEUED":
        return row, Waiter("job", *(row[name] for name in ("id", "project", "type", "priority", "shape", "waiting_since")))
    if row["lease_id"] is None:
        return row, None
    names = ("lease_id", "project", "type", "lease_priority", "lease_shape", "lease_waiting_since")
    return row, Waiter("lease", *(row[name] for name in names))


async def history(connection: AsyncConnection, waiter: Waiter, most: int) -> Sequence[RowMapping]:
    """How the reasons of a line changed since something waits in it, newest first: `since`, `reasons`."""
    parameters = {
        "kind": waiter.kind,
        "project": waiter.project,
        "priority_class": int(waiter.priority_class),
        "shape": waiter.shape,
        "waiting_since": waiter.since,
        "most": most,
    }
    return (await connection.execute(_HISTORY, parameters)).mappings().all()


async def place_in_line(connection: AsyncConnection, waiter: Waiter, aging_micros: int) -> tuple[int, int]:
    """How many are ahead in the line, and how many are in it; both counted up to `COUNTED_MAX`."""
    floors = sorted(CLASS_FLOORS.values())
    lowest = CLASS_FLOORS[waiter.priority_class]
    aging = timedelta(microseconds=aging_micros)
    parameters: dict[str, Any] = {
        "aging": aging,
        "virtual": waiter.since - waiter.priority * aging,
        "waiting_since": waiter.since,
        "id": waiter.identity,
        "project": waiter.project,
        "shape": waiter.shape,
        "lowest": lowest,
        "highest": min((floor - 1 for floor in floors if floor > lowest), default=1_000),
        "most": COUNTED_MAX,
    }
    if waiter.kind == "job":
        parameters["types"] = sorted(RUN_TYPES) if waiter.job_type in RUN_TYPES else [waiter.job_type]
    row = (await connection.execute(_COUNTS[waiter.kind], parameters)).one()
    return row.ahead, row.length


async def lines_of(connection: AsyncConnection, project: str, aging_micros: int, most: int) -> Sequence[RowMapping]:
    """A project's lines: `kind`, `priority_class`, `shape`, `job_type` (if nothing runs it), `count`, `oldest`, `head`."""
    parameters = {
        "project": project,
        "types": sorted(RUN_TYPES),
        "aging": timedelta(microseconds=aging_micros),
        "most": most,
    }
    return (await connection.execute(_LINES, parameters)).mappings().all()


async def newest_reasons(connection: AsyncConnection, project: str) -> dict[tuple[str, int, str], RowMapping]:
    """The newest reasons of a project's lines, by kind, class and shape."""
    rows = (await connection.execute(_NEWEST, {"project": project})).mappings().all()
    return {(row["kind"], row["priority_class"], row["shape"]): row for row in rows}
