"""Rounds: read what changed, plan, write the plan."""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.collector import collector_paused
from control_plane.db.engine import in_transaction
from control_plane.settings import SchedulerSettings
from headway_client.telemetry import trace_id_of, traceparent, tracer
from scheduler import failpoints, record, waiting
from scheduler.apply import StaleSnapshotError, Writer, Written
from scheduler.brakes import BrakeLimits, PreemptionBrakes
from scheduler.budget_stops import stop_uncovered
from scheduler.core.planner import plan
from scheduler.core.types import GroupKey, Limits, Micros, Plan, Pool
from scheduler.deadlines import raise_due
from scheduler.failpoints import Failpoint
from scheduler.inputs import encode
from scheduler.leader import DeposedError, Leadership
from scheduler.routing import ROUTES
from scheduler.snapshot import Reading, SnapshotReader
from scheduler.waiting import ReasonBook, ReasonChanges

_log = structlog.get_logger()

_MICROS = 1_000_000
_HOUR_MS = 3_600_000

# A lease that its budget stopped yields to itself, and takes no token.
_PREEMPTED = text(
    """
    SELECT (extract(epoch FROM preempted_at) * 1000000)::bigint AS at, preempted_ms AS lost_ms FROM leases
    WHERE preempted_at > now() - interval '1 hour' AND preempted_for <> lease_id ORDER BY preempted_at
    """
)


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
        self._limits = limits_of(settings)
        self._reader = SnapshotReader(
            engine,
            self._limits,
            frozenset(ROUTES),
            half_life_micros=int(settings.past_use_half_life_hours * 3_600 * _MICROS),
            recheck_seconds=settings.recheck_seconds,
            growing_pools=settings.growing_pools,
        )
        self._reasons = ReasonBook()
        self._brakes = PreemptionBrakes(_brake_limits(settings))
        self._carried_over: tuple[GroupKey, ...] = ()
        self._epoch: int | None = None
        self._recorded = 0

    async def round(self) -> float:
        """Runs one round; returns after how many seconds the next is due, 0 if this one left something over.

        Raises:
            SQLAlchemyError, PostgresError: the database failed; nothing was written, and the next round reads everything anew.
        """
        if self._leadership.epoch is None:
            self._forget()
            return self._settings.poll_seconds
        try:
            if self._leadership.epoch != self._epoch:
                await self._take_over(self._leadership.epoch)
            return await self._round()
        except StaleSnapshotError as error:
            _log.info("round.repeated", reason=str(error))
            return 0.0
        except DeposedError as error:
            self._forget()
            _log.warning("round.refused", reason=str(error))
            return self._settings.poll_seconds
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        """What is known may be wrong."""
        self._epoch = None
        self._reader.forget()

    async def _take_over(self, epoch: int) -> None:
        """What a leader knows besides the state it reads."""
        failpoints.reach(Failpoint.AFTER_TAKE_OVER)
        self._reader.forget()
        self._carried_over = ()
        async with self._engine.connect() as connection:
            self._reasons = await ReasonBook.read(connection)
            spent = [(Micros(row.at), int(row.lost_ms)) for row in await connection.execute(_PREEMPTED)]
        self._brakes = PreemptionBrakes(_brake_limits(self._settings), spent)
        self._epoch = epoch

    async def _round(self) -> float:
        started = time.monotonic()
        reading = await self._reader.read()
        if await self._end_overdue(reading) or await self._stop_uncovered() or await self._raise_due():
            return 0.0
        with tracer().start_as_current_span("scheduler.round"):
            snapshot = reading.state.snapshot(
                reading.workers,
                reading.price,
                reading.tree,
                self._brakes.left(reading.now),
                reading.database_started,
                self._carried_over,
            )
            # A round over a large backlog takes a while, in which the term must be renewed.
            with collector_paused():
                decided = await asyncio.to_thread(plan, snapshot, reading.now, self._limits)
            reasons = self._reasons.changes(decided)
            pools = {pool.name: pool for pool in snapshot.pools}
            written = Written()
            if decided.changes or reasons.rows or reading.change_ids:
                every = self._settings.record_inputs_every_rounds
                due = bool(every and decided.changes) and self._recorded % every == 0
                inputs = await asyncio.to_thread(encode, snapshot, reading.now, self._limits) if due else None
                written = await self._write(reading, decided, reasons, pools, inputs)
        self._carried_over = decided.carried_over
        if written.changes:
            # Dispatch goes out right after the commit; the notification is for whoever leads next.
            self._dispatch.set()
            _log_round(written, time.monotonic() - started)
        return self._pause(reading) if decided.complete else 0.0

    async def _write(
        self, reading: Reading, decided: Plan, reasons: ReasonChanges, pools: dict[str, Pool], inputs: bytes | None
    ) -> Written:
        async def write(connection: AsyncConnection) -> Written:
            epoch = await self._leadership.fence(connection)
            written = await self._writer(connection, epoch, pools, reading).write(decided)
            await waiting.write(connection, reasons)
            await record.take_notes(connection, reading.change_ids)
            await record.write_past_use(connection, reading.past_use)
            if decided.changes:
                trace_id = trace_id_of(traceparent())
                await record.write_round(connection, epoch, reading.now, reading.rows_sha256, decided, trace_id, inputs)
                failpoints.reach(Failpoint.BEFORE_COMMIT)
            return written

        written = await in_transaction(self._engine, write)
        if decided.changes:
            failpoints.reach(Failpoint.AFTER_COMMIT)
            self._reader.recorded()
            self._recorded += 1
        if written.at is not None:
            expires = Micros(written.at + int(self._settings.lease_seconds * _MICROS))
            reading.state.carried_out(written.grants, written.admissions, written.at, expires)
        self._reader.committed(reading)
        self._reasons.committed(reasons)
        for preemption in written.preemptions:
            self._brakes.spend(reading.now, preemption.lost_ms)
        return written

    async def _end_overdue(self, reading: Reading) -> bool:
        """Ends what was asked to yield and did not in time; returns whether there was any."""
        overdue = reading.state.overdue(Micros(reading.now - int(self._settings.yield_seconds * _MICROS)))
        if not overdue:
            return False
        why = f"it did not yield within {self._settings.yield_seconds:g} s of being asked to"

        async def end(connection: AsyncConnection) -> int:
            epoch = await self._leadership.fence(connection)
            ended = await self._writer(connection, epoch, {}, reading).end(
                [(lease.job_id, lease.lease_id, why) for lease in overdue]
            )
            failpoints.reach(Failpoint.BEFORE_FORCED_END)
            return ended

        ended = await in_transaction(self._engine, end)
        failpoints.reach(Failpoint.AFTER_FORCED_END)
        self._dispatch.set()
        _log.warning("round.preempted_by_force", leases=ended)
        return True

    async def _stop_uncovered(self) -> bool:
        """Asks leases to yield that a lowered budget does not cover; returns whether there were any."""
        stopped = await stop_uncovered(self._engine, self._leadership)
        if stopped:
            self._dispatch.set()
        return stopped > 0

    async def _raise_due(self) -> bool:
        """Raises jobs whose deadline is near; returns whether there were any."""
        return await raise_due(self._engine, self._leadership, self._settings.deadline_notice_seconds) > 0

    def _writer(self, connection: AsyncConnection, epoch: int, pools: dict[str, Pool], reading: Reading) -> Writer:
        return Writer(
            connection,
            epoch,
            pools,
            reading.tree,
            lease_seconds=self._settings.lease_seconds,
            node_lost_seconds=self._settings.worker_lost_seconds,
        )

    def _pause(self, reading: Reading) -> float:
        """Seconds until the next round is due at the latest."""
        first_asked = reading.state.next_yield()
        if first_asked is None:
            return self._settings.poll_seconds
        due = (first_asked - reading.now) / _MICROS + self._settings.yield_seconds
        return min(self._settings.poll_seconds, max(0.01, due))


def limits_of(settings: SchedulerSettings) -> Limits:
    """The rules' parameters from the settings."""
    return Limits(
        prepare_ahead=settings.prepare_ahead_per_project,
        node_lost_micros=int(settings.worker_lost_seconds * _MICROS),
        aging_micros=int(settings.aging_seconds_per_point * _MICROS),
        reserve_after_micros=int(settings.reserve_after_seconds * _MICROS),
        run_minimum_micros=int(settings.preempt_after_seconds * _MICROS),
        operations_max=settings.round_operations_max,
    )


def _brake_limits(settings: SchedulerSettings) -> BrakeLimits:
    return BrakeLimits(
        burst=settings.preemptions_burst,
        per_hour=settings.preemptions_per_hour,
        waste_ms_per_hour=int(settings.preemption_waste_accelerator_hours_per_hour * _HOUR_MS),
    )


def _log_round(written: Written, seconds: float) -> None:
    _log.info(
        "round.written",
        ended=written.ends,
        refused=written.refusals,
        granted=len(written.grants),
        preempted=len(written.preemptions),
        admitted=len(written.admissions),
        milliseconds=round(seconds * 1000, 1),
    )
