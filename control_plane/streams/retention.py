"""How long events are kept: those of an unfinished job all the time, those of a final one for so many days more.

A job's events are taken all at once. The log's head remembers the newest position that was taken; a cursor from before it may
stand before a gap and is refused (`EventLog.page`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction

_log = structlog.get_logger()

_INTERVAL_SECONDS = 3_600.0
_JOBS_PER_TRANSACTION = 200
_SECONDS_PER_DAY = 86_400.0

# The partial index over final events finds what is due; a job has one such event.
_TAKE = text(
    """
    WITH due AS (
        SELECT job_id FROM job_events AS final
        WHERE state IN ('SUCCEEDED', 'FAILED', 'CANCELLED') AND created_at < now() - make_interval(secs => :seconds)
            -- What has no position yet was never shown to anybody.
            AND NOT EXISTS (SELECT FROM job_events WHERE job_id = final.job_id AND position IS NULL)
        ORDER BY created_at LIMIT :jobs
    ), taken AS (
        DELETE FROM job_events WHERE job_id IN (SELECT job_id FROM due) RETURNING position
    ), newest AS (
        SELECT max(position) AS position FROM taken
    )
    UPDATE event_log_head SET oldest_position = greatest(oldest_position, newest.position) FROM newest
    WHERE newest.position IS NOT NULL
    RETURNING (SELECT count(*) FROM taken)
    """
)


class EventRetention:
    """Takes what is due, once an hour."""

    def __init__(self, engine: AsyncEngine, days: float) -> None:
        self._engine = engine
        self._days = days
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="event retention")

    async def stop(self) -> None:
        """Ends; what is due stays until the next start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                taken = 0
                while count := await take_expired(self._engine, self._days):
                    taken += count
                if taken:
                    _log.info("event_retention.taken", events=taken)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                _log.warning("event_retention.unavailable", error=str(error))
            await asyncio.sleep(_INTERVAL_SECONDS)


async def take_expired(engine: AsyncEngine, days: float) -> int:
    """Deletes the events of at most 200 jobs whose last event is older than so many days; returns how many events."""

    async def take(connection: AsyncConnection) -> int:
        values = {"seconds": days * _SECONDS_PER_DAY, "jobs": _JOBS_PER_TRANSACTION}
        return int((await connection.execute(_TAKE, values)).scalar_one_or_none() or 0)

    return await in_transaction(engine, take)
