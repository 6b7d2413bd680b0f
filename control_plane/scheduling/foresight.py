"""What would become of a change, and when something may start: the scheduler's own plan on what it would read.

It runs on a thread of its own, one call after the other, with its own connection: a backlog of a hundred thousand takes seconds
of computing, and calls that are served meanwhile must not feel it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar

from control_plane.db.engine import create_engine
from control_plane.jobs.workflows import RUN_TYPES
from control_plane.scheduling.run_times import read_run_times
from control_plane.settings import PostgresSettings, Settings
from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Brakes, Limits, Micros, Plan
from scheduler.simulation.eta import Estimate, Forecast, UnknownRequestError, estimate
from scheduler.simulation.run_times import ObservedRunTimes
from scheduler.snapshot import SnapshotReader

_T = TypeVar("_T")

ETA_SECONDS = 10.0
"""The longest that an estimate may take."""
_DRAWS = 19
"""Futures of an estimate; of 19 the 18th start is the p90."""


@dataclass(frozen=True, slots=True)
class Present:
    """What futures begin with.

    Attributes:
        snapshot: what a round would be given.
        now: of when, by the database's clock.
        run_times: how long work may take, by what was observed.
    """

    snapshot: Snapshot
    now: Micros
    run_times: ObservedRunTimes


class Foresight:
    """Reads what a round would read, and lets the core judge it. Close it when it is not needed any more."""

    def __init__(self, settings: Settings, postgres: PostgresSettings) -> None:
        """Args:
        settings: the scheduler's rules.
        postgres: the database.
        """
        rules = settings.scheduler
        self.limits = Limits(
            prepare_ahead=rules.prepare_ahead_per_project,
            node_lost_micros=int(rules.worker_lost_seconds * 1_000_000),
            aging_micros=int(rules.aging_seconds_per_point * 1_000_000),
            reserve_after_micros=int(rules.reserve_after_seconds * 1_000_000),
            run_minimum_micros=int(rules.preempt_after_seconds * 1_000_000),
            operations_max=rules.round_operations_max,
        )
        """The scheduler's."""
        self.half_life_micros = int(rules.past_use_half_life_hours * 3_600_000_000)
        """Of past use."""
        self._brakes = Brakes(rules.preemptions_burst, int(rules.preemption_waste_accelerator_hours_per_hour * 3_600_000))
        self._growing_pools = rules.growing_pools
        self._postgres = postgres.model_copy(update={"pool_size": 1})
        self._thread = ThreadPoolExecutor(1, "foresight")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the thread; what has not begun does not begin."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def judged(self, judge: Callable[[Present], _T]) -> _T:
        """What `judge` makes of the state of now. It runs on the thread, so it must not touch the caller's loop."""

        def work() -> _T:
            return judge(asyncio.run(self._read()))

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _read(self) -> Present:
        engine = create_engine(self._postgres)
        try:
            reader = SnapshotReader(
                engine,
                self.limits,
                RUN_TYPES,
                half_life_micros=self.half_life_micros,
                recheck_seconds=0.0,
                growing_pools=self._growing_pools,
            )
            reading = await reader.read()
            async with engine.connect() as connection:
                run_times = await read_run_times(connection)
        finally:
            await engine.dispose()
        snapshot = reading.state.snapshot(
            reading.workers, reading.price, reading.tree, self._brakes, reading.database_started, ()
        )
        return Present(snapshot, reading.now, run_times)

    def eta(self, present: Present, waiting_id: str) -> Estimate | None:
        """When something that waits may start; None: it does not wait any more, or the answer takes too long."""
        end = time.monotonic() + ETA_SECONDS

        def planner(state: Snapshot, moment: Micros, limits: Limits) -> Plan:
            if time.monotonic() > end:
                raise TimeoutError
            return plan(state, moment, limits)

        try:
            return estimate(
                present.snapshot,
                waiting_id,
                present.now,
                self.limits,
                present.run_times,
                forecast=Forecast(draws=_DRAWS),
                planner=planner,
            )
        except (UnknownRequestError, TimeoutError):
            return None
