"""Stores what jobs are foretold to cost soon after their first grant, so that actuals can be held against it."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets.estimates import record_estimates
from control_plane.budgets.prices import price_list
from control_plane.db.engine import in_transaction
from scheduler.leader import Leadership

_BATCH = 100
_PAUSE_SECONDS, _PAUSE_SECONDS_FULL = 2.0, 0.1
# A job whose spec cannot be planned stays without; it is looked at no longer than the rest may take.
_WITHOUT = text(
    """
    SELECT DISTINCT CAST(reservations.job_id AS text) AS job_id FROM reservations JOIN jobs USING (job_id)
    WHERE reservations.created_at > now() - interval '15 minutes'
        AND NOT EXISTS (SELECT 1 FROM job_estimates WHERE job_estimates.job_id = reservations.job_id)
    LIMIT :most
    """
)


class EstimateRecorder:
    """The leader's repeated task beside its rounds, which wait for nothing here."""

    def __init__(self, engine: AsyncEngine, leadership: Leadership, currency: str) -> None:
        """Args:
        engine: the database.
        leadership: only the leader records.
        currency: of the price list, an ISO 4217 code.
        """
        self._engine = engine
        self._leadership = leadership
        self._currency = currency

    async def record(self) -> float:
        """Stores the estimates of some jobs that have none; returns after how many seconds to look again."""
        if self._leadership.epoch is None:
            return _PAUSE_SECONDS
        return _PAUSE_SECONDS_FULL if await in_transaction(self._engine, self._some) else _PAUSE_SECONDS

    async def _some(self, connection: AsyncConnection) -> bool:
        job_ids = (await connection.execute(_WITHOUT, {"most": _BATCH})).scalars().all()
        if not job_ids:
            return False
        stored = await record_estimates(connection, job_ids, await price_list(connection, self._currency))
        return stored == _BATCH
