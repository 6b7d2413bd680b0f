"""When something that waits will start: the simulation run forward from a live snapshot, many times, off the scheduling path.

What arrives later is foreseen only as more of what came lately, and only if that is given; changes of quota or priority and
lost nodes are not foreseen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Lease, Limits, Micros, QueuedJob, Request
from scheduler.simulation.engine import Engine, Observer, Pace, Planner
from scheduler.simulation.jobs import Job
from scheduler.simulation.ledger import BrakeBuckets, Ledger
from scheduler.simulation.load import generator
from scheduler.simulation.run_times import RunTimes, as_declared, declared_micros
from scheduler.simulation.starting import world_of

_PACE = Pace(coalesce=1_000_000, poll=60_000_000, yield_after=30_000_000, decay=60_000_000)


@dataclass(frozen=True, slots=True)
class Forecast:
    """How an estimate is made."""

    draws: int = 99
    """Futures that are run through; with 99 the p90 is the 90th start, above which one in ten true starts falls."""
    rounds_max: int = 2_000
    """Of each; a future that is not decided by then counts as later than all others."""
    seed: int = 1
    pace: Pace = _PACE
    preemptions_per_hour: int = 1_000
    waste_ms_per_hour: int = 3_600_000_000
    past_use_half_life: int = 86_400_000_000
    """Microseconds. Past use decides between queues of equal cost, so it has to be kept as in production."""


@dataclass(frozen=True, slots=True)
class Lately:
    """What came in the last while: futures go on with draws from it, at the same rate, exponential."""

    requests: tuple[Request, ...]
    """As they came, granted or not."""
    window: int
    """How long that took, in microseconds."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """When it starts."""

    p50: Micros | None
    """Half of the futures start it no later. None: they did not within the bounds."""
    p90: Micros | None
    draws: int
    decided: int
    """Futures in which it started within the bounds."""


class UnknownRequestError(Exception):
    """Nothing of this id waits in the snapshot."""


def estimate(
    snapshot: Snapshot,
    waiting_id: str,
    now: Micros,
    limits: Limits,
    run_times: RunTimes = as_declared,
    lately: Lately | None = None,
    forecast: Forecast = Forecast(),
    planner: Planner = plan,
) -> Estimate:
    """When what waits gets its lease.

    Args:
        snapshot: the live state; it is not changed.
        waiting_id: a request's id, or a queued job's.
        now: when the snapshot was read.
        limits: those of production.
        run_times: how long work may take.
        lately: what came in the last while. None: nothing more comes, which is too early a start where it does.
        forecast: bounds and seed.
        planner: the production one.

    Raises:
        UnknownRequestError: nothing of that id waits.
    """
    target = snapshot.requests.get(waiting_id) or snapshot.jobs.get(waiting_id)
    if target is None:
        raise UnknownRequestError(f"{waiting_id}: neither a request nor a queued job of this id waits in the snapshot")
    starts = sorted(
        start
        for draw in range(forecast.draws)
        if (start := _start(snapshot, target, now, limits, run_times, lately, forecast, draw, planner)) is not None
    )
    return Estimate(_rank(starts, 0.5, forecast.draws), _rank(starts, 0.9, forecast.draws), forecast.draws, len(starts))


def _rank(starts: Sequence[Micros], share: float, draws: int) -> Micros | None:
    """The start that the true one exceeds with a chance of 1 - share, if it is like the draws: of rank share x (draws + 1)."""
    rank = math.ceil(share * (draws + 1))
    return starts[rank - 1] if rank <= len(starts) else None


def _start(
    snapshot: Snapshot,
    target: Request | QueuedJob,
    now: Micros,
    limits: Limits,
    run_times: RunTimes,
    lately: Lately | None,
    forecast: Forecast,
    draw: int,
    planner: Planner,
) -> Micros | None:
    draws = generator(forecast.seed, draw)
    watcher = _Watcher()
    engine = Engine(
        world_of(snapshot, now, limits),
        Ledger(snapshot.tree, forecast.past_use_half_life, forecast.pace.decay),
        BrakeBuckets(forecast.preemptions_per_hour, forecast.waste_ms_per_hour, now, snapshot.brakes),
        limits,
        forecast.pace,
        (watcher,),
        now,
        planner,
    )
    for lease in snapshot.leases:
        engine.adopt_lease(_running(lease, now, run_times, draws), lease)
    for waiting in (*snapshot.requests, *snapshot.jobs):
        job = _waiting(waiting, run_times, draws)
        watcher.job = job if waiting is target else watcher.job
        engine.adopt(job)
    if lately is not None and lately.requests:
        _Arrivals(engine, lately, run_times, generator(forecast.seed, draw, "arrivals")).next()
    engine.wake()
    engine.run(enough=lambda: watcher.settled or engine.rounds >= forecast.rounds_max)
    return watcher.start


def _running(lease: Lease, now: Micros, run_times: RunTimes, draws: random.Random) -> Job:
    """With one of the run times that were observed and are longer than it has run; one that is longer overdue may take as long
    again as it is overdue."""
    elapsed = now - lease.granted
    observed = run_times(lease)
    possible = [work for work in observed if work > elapsed]
    work = draws.choice(possible) if possible else elapsed + draws.randint(1, 1 + elapsed - max(observed))
    return Job(
        lease.job_id,
        "",
        lease.queue,
        lease.shape,
        lease.priority,
        lease.submitted,
        lease.run_micros,
        work,
        request_id=lease.lease_id,
    )


def _waiting(waiting: Request | QueuedJob, run_times: RunTimes, draws: random.Random) -> Job:
    declared, work = declared_micros(waiting), draws.choice(run_times(waiting))
    request_id = waiting.request_id if isinstance(waiting, Request) else None
    job = Job(waiting.job_id, "", waiting.queue, waiting.shape, waiting.priority, waiting.submitted, declared, work)
    job.request_id = request_id
    return job


class _Arrivals:
    """One after the other, as long as the future is looked at."""

    def __init__(self, engine: Engine, lately: Lately, run_times: RunTimes, draws: random.Random) -> None:
        self._engine, self._lately, self._run_times, self._draws = engine, lately, run_times, draws
        self._arrived = 0

    def next(self) -> None:
        gap = round(self._draws.expovariate(len(self._lately.requests) / self._lately.window))
        self._engine.timeline.at(self._engine.now + gap, self._arrive, background=True)

    def _arrive(self) -> None:
        self._arrived += 1
        like = self._draws.choice(self._lately.requests)
        request = replace(like, job_id=f"~{self._arrived}", submitted=self._engine.now, claim=())
        self._engine.arrive(_waiting(request, self._run_times, self._draws))
        self.next()


class _Watcher(Observer):
    """Sees when one job starts."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.start: Micros | None = None
        self.settled = False

    def started(self, job: Job, lease: Lease, now: Micros) -> None:
        if job is self.job:
            self.start, self.settled = now, True

    def final(self, job: Job, now: Micros, *, refused: bool) -> None:
        self.settled = self.settled or job is self.job
