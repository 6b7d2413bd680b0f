"""Rounds: read a snapshot, plan, write the plan."""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.settings import SchedulerSettings
from scheduler.apply import StaleSnapshotError, Writer
from scheduler.core import Limits, Plan, QueueKey, plan
from scheduler.leader import DeposedError, Leadership
from scheduler.routing import ROUTES
from scheduler.snapshot import read_snapshot

_log = structlog.get_logger()


class RoundLoop:
    """The leader's rounds. On a standby a round does nothing."""

    def __init__(
        self,
        engine: AsyncEngine,
        leadership: Leadership,
        settings: SchedulerSettings,
        dispatch: asyncio.Event,
    ) -> None:
        self._engine = engine
        self._leadership = leadership
        self._settings = settings
        self._dispatch = dispatch
        self._limits = Limits(
            prepare_ahead_per_project=settings.prepare_ahead_per_project,
            worker_lost_micros=int(settings.worker_lost_seconds * 1_000_000),
            job_types=frozenset(ROUTES),
        )
        self._carried_over: tuple[QueueKey, ...] = ()

    async def round(self) -> float:
        """Runs one round; returns after how many seconds the next is due, 0 if this one left something over.

        Raises:
            SQLAlchemyError: the database failed; nothing was written.
        """
        if self._leadership.epoch is None:
            self._carried_over = ()
            return self._settings.poll_seconds
        started = time.monotonic()
        reading = await read_snapshot(self._engine, self._limits, self._carried_over)
        decided = plan(reading.snapshot, reading.now, self._limits)

        async def write(connection: AsyncConnection) -> None:
            epoch = await self._leadership.fence(connection)
            writer = Writer(
                connection,
                epoch,
                lease_seconds=self._settings.lease_seconds,
                worker_lost_seconds=self._settings.worker_lost_seconds,
            )
            await writer.write(decided, reading.reasons)

        try:
            await in_transaction(self._engine, write)
        except StaleSnapshotError as error:
            _log.info("round.repeated", reason=str(error))
            return 0.0
        except DeposedError as error:
            _log.warning("round.refused", reason=str(error))
            return self._settings.poll_seconds
        self._carried_over = decided.carried_over
        if decided.changes:
            # Dispatch goes out right after the commit; the notification is for whoever leads next.
            self._dispatch.set()
            _log_round(decided, time.monotonic() - started)
        return self._settings.poll_seconds if decided.complete else 0.0


def _log_round(decided: Plan, seconds: float) -> None:
    _log.info(
        "round.written",
        ended=len(decided.ends),
        refused=len(decided.refusals),
        granted=len(decided.grants),
        admitted=len(decided.admissions),
        waiting_leases=len(decided.waiting_leases),
        waiting_jobs=len(decided.waiting_jobs),
        milliseconds=round(seconds * 1000, 1),
    )
