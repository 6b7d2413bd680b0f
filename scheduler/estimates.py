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
_LOOK_BACK_DAYS = 7
"""How far a leader looks back at first: whoever led before may not have come to it, or nobody led for a while."""
_LOOK_BACK_MINUTES = 15
"""How far it looks back once it has come to the end of that; a grant is committed long before it is so old."""

# From the newest on: what was granted just now is held against its estimate first.
_WITHOUT = text(
    """
    SELECT CAST(job_id AS text) AS job_id FROM reservations JOIN jobs USING (job_id)
    WHERE reservations.created_at > now() - make_interval(mins => :minutes)
        AND NOT EXISTS (SELECT 1 FROM job_estimates WHERE job_estimates.job_id = reservations.job_id)
        AND job_id <> ALL(CAST(:unplannable AS uuid[]))
    GROUP BY job_id ORDER BY max(reservations.created_at) DESC LIMIT :most
    """
)
_ESTIMATED = text("SELECT CAST(job_id AS text) FROM job_estimates WHERE job_id = ANY(CAST(:job_ids AS uuid[]))")


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
        self._caught_up_in: int | None = None
        """The epoch in which all that was left from before was come to."""
        self._unplannable: set[str] = set()
        """Jobs whose stored spec is none that can be planned: they stay without, and are not looked at again."""

    async def record(self) -> float:
        """Stores the estimates of some jobs that have none; returns after how many seconds to look again."""
        epoch = self._leadership.epoch
        if epoch is None:
            return _PAUSE_SECONDS
        caught_up = self._caught_up_in == epoch
        minutes = _LOOK_BACK_MINUTES if caught_up else _LOOK_BACK_DAYS * 24 * 60
        if await in_transaction(self._engine, lambda connection: self._some(connection, minutes)):
            return _PAUSE_SECONDS_FULL
        self._caught_up_in = epoch
        return _PAUSE_SECONDS

    async def _some(self, connection: AsyncConnection, minutes: int) -> bool:
        """Whether there may be more."""
        parameters = {"minutes": minutes, "unplannable": sorted(self._unplannable), "most": _BATCH}
        job_ids = (await connection.execute(_WITHOUT, parameters)).scalars().all()
        if not job_ids:
            return False
        stored = await record_estimates(connection, job_ids, await price_list(connection, self._currency))
        if stored < len(job_ids):
            estimated = (await connection.execute(_ESTIMATED, {"job_ids": list(job_ids)})).scalars()
            self._unplannable |= set(job_ids) - set(estimated)
        return len(job_ids) == _BATCH
