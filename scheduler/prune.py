"""Forgets what only history needs, when it is old enough: why things waited, and the records of rounds."""

from __future__ import annotations

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.settings import SchedulerSettings
from scheduler.leader import DeposedError, Leadership

_log = structlog.get_logger()

_BATCH = 1_000
"""Most rows of each table that go in one transaction. Rounds wait for it, since it holds the leader's fence."""
_PERIOD_SECONDS = 60.0
_PAUSE_SECONDS = 0.1
"""Between batches, for rounds to come in between."""

# What holds since before stays: it says why at the begin of what is kept. A row without reasons says the same as none.
_REASONS = text(
    """
    WITH edge AS (SELECT now() - make_interval(secs => :seconds) AS at), old AS (
        SELECT kind, project, priority_class, shape, since FROM waiting_reasons AS earlier, edge
        WHERE since < edge.at AND (reasons = '[]' OR EXISTS (
            SELECT 1 FROM waiting_reasons AS later
            WHERE later.kind = earlier.kind AND later.project = earlier.project
                AND later.priority_class = earlier.priority_class AND later.shape = earlier.shape
                AND later.since > earlier.since AND later.since <= edge.at
        ))
        ORDER BY since LIMIT :most
    )
    DELETE FROM waiting_reasons USING old
    WHERE (waiting_reasons.kind, waiting_reasons.project, waiting_reasons.priority_class, waiting_reasons.shape,
        waiting_reasons.since) = (old.kind, old.project, old.priority_class, old.shape, old.since)
    """
)
_ROUNDS = text(
    """
    DELETE FROM scheduling_rounds WHERE round_id = ANY(ARRAY(
        SELECT round_id FROM scheduling_rounds WHERE planned_at < now() - make_interval(secs => :seconds)
        ORDER BY planned_at LIMIT :most
    ))
    """
)
_SECONDS_PER_DAY = 86_400.0


class Pruner:
    """The leader's. On a standby it does nothing."""

    def __init__(self, engine: AsyncEngine, leadership: Leadership, settings: SchedulerSettings, batch: int = _BATCH) -> None:
        self._engine = engine
        self._leadership = leadership
        self._kept = (
            (_REASONS, settings.reason_history_days * _SECONDS_PER_DAY),
            (_ROUNDS, settings.round_records_days * _SECONDS_PER_DAY),
        )
        self._batch = batch

    async def prune(self) -> float:
        """Takes a batch of what is too old; returns after how many seconds to go on.

        Raises:
            SQLAlchemyError: the database failed; nothing is gone.
        """
        if self._leadership.epoch is None:
            return _PERIOD_SECONDS

        async def take(connection: AsyncConnection) -> int:
            await self._leadership.fence(connection)
            taken = [
                (await connection.execute(statement, {"seconds": seconds, "most": self._batch})).rowcount
                for statement, seconds in self._kept
            ]
            return max(taken)

        try:
            most = await in_transaction(self._engine, take)
        except DeposedError as error:
            _log.warning("prune.refused", reason=str(error))
            return _PERIOD_SECONDS
        return _PAUSE_SECONDS if most == self._batch else _PERIOD_SECONDS
