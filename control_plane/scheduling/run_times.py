"""What ended leases took of what they declared, read for estimates of when something may start."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler.simulation.run_times import Observation, ObservedRunTimes

_OF_A_PROJECT = 100
"""The newest leases of each project that count: what it did long ago says little of what it does now."""

# Work that was stopped from outside says only that it would have taken longer.
_ENDED = text(
    """
    SELECT project, type, max_run_seconds::bigint * 1000000 AS declared,
        (extract(epoch FROM ended_at - granted_at) * 1000000)::bigint AS actual
    FROM projects CROSS JOIN LATERAL (
        SELECT job_id, max_run_seconds, granted_at, ended_at FROM leases
        WHERE leases.project = projects.project AND outcome IN ('completed','failed')
            AND granted_at IS NOT NULL AND max_run_seconds > 0
        ORDER BY ended_at DESC LIMIT :most
    ) AS newest JOIN (SELECT job_id, type FROM jobs) AS typed USING (job_id)
    """
)
_TYPES = text(
    "SELECT job_id::text, type FROM jobs WHERE job_id IN (SELECT job_id FROM leases WHERE state IN ('REQUESTED','GRANTED'))"
)


async def read_run_times(connection: AsyncConnection) -> ObservedRunTimes:
    """Reads what was observed, and the types of the jobs that have or ask for a lease."""
    ended = await connection.execute(_ENDED, {"most": _OF_A_PROJECT})
    observations = [Observation(row.project, row.type, row.declared, row.actual) for row in ended]
    return ObservedRunTimes(observations, {row.job_id: row.type for row in await connection.execute(_TYPES)})
