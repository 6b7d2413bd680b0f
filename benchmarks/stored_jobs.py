"""Jobs and events put straight into the database: what a benchmark of streams begins with."""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg

from benchmarks.servers import PROJECT

_EVENT = """
    WITH job AS (
        UPDATE jobs SET event_sequence = event_sequence + 1 WHERE job_id = $1 RETURNING event_sequence
    ), event AS (
        INSERT INTO job_events (job_id, project, sequence, type, state, attempt)
        SELECT $1, $2, event_sequence, 'RESUMED', 'RUNNING', 1 FROM job RETURNING sequence
    )
    SELECT sequence, pg_notify('headway_events_written', '') FROM event
"""


async def running_job(connection: asyncpg.Connection) -> str:
    """A job whose first attempt runs."""
    job_id = str(uuid.uuid4())
    await connection.execute(
        "INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, attempt)"
        " VALUES ($1, $2, 'bench', 'fine_tune', '{}', '', '{}', 500, 'RUNNING', 1)",
        job_id,
        PROJECT,
    )
    return job_id


async def write_event(connection: asyncpg.Connection, job_id: str) -> tuple[str, float]:
    """Commits one event; returns its name, `JOB/SEQUENCE`, and when the commit was acknowledged."""
    sequence = await connection.fetchval(_EVENT, job_id, PROJECT)
    return f"{job_id}/{sequence}", time.monotonic()


async def write_backlog(connection: asyncpg.Connection, job_id: str, count: int) -> None:
    """Commits many events, and waits until all have a position."""
    await connection.execute(
        """
        INSERT INTO job_events (job_id, project, sequence, type, state, attempt)
        SELECT $1, $2, n, 'RESUMED', 'RUNNING', 1 FROM generate_series(1, $3::bigint) AS n
        """,
        job_id,
        PROJECT,
        count,
    )
    await connection.execute("UPDATE jobs SET event_sequence = $2 WHERE job_id = $1", job_id, count)
    await connection.execute("NOTIFY headway_events_written")
    async with asyncio.timeout(120):
        while await connection.fetchval("SELECT count(*) FROM job_events WHERE position IS NULL"):  # noqa: ASYNC110 - polls a database
            await asyncio.sleep(0.1)
