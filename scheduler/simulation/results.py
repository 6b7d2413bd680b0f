"""What came of a simulation: how long, how full, who waited, what was lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from scheduler.core.types import Lease, Micros, Resource, Shape
from scheduler.simulation.cluster import PATH_SEPARATOR, usable
from scheduler.simulation.engine import Observer, Round
from scheduler.simulation.jobs import Job
from scheduler.simulation.scenario import START, Scenario
from scheduler.simulation.steps import Step, differences, integral, means, quantile
from scheduler.simulation.units import MICROS_PER_SECOND
from scheduler.simulation.world import World

_STRETCHES = 120
_SERIES_MAX = 24
_MS_PER_HOUR = 3_600_000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Waits(_Part):
    """Seconds from arrival to the first lease, of the jobs that got one."""

    mean_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0


class SetResult(_Part):
    """Of the jobs of one set of the load."""

    name: str
    started: int
    finished: int
    refused: int
    preemptions: int
    lost_accelerator_hours: float
    waits: Waits


class Shares(_Part):
    """What queues held over time, as means of stretches of equal length; queues are taken together where they are many."""

    stretch_s: float
    held: dict[str, list[float]]
    """By queue, in the unit of the results."""
    usable: list[float]
    """What could be held."""


class RealTime(_Part):
    """What the planner took on this machine: information, and the only part that differs from run to run."""

    total_s: float
    round_p50_ms: float
    round_p99_ms: float
    round_max_ms: float


class Results(_Part):
    """Of one simulation. Times are virtual, in seconds."""

    scenario: str
    seed: int
    unit: str
    """What capacity is counted in: accelerators, or cpu_millis where there are none."""
    makespan_s: float
    """From the first arrival to the last end."""
    bound_s: float
    """All work over what can be held at the start: no scheduler is faster, if no node is lost."""
    capacity_use: float
    """Of the makespan, what was held over what living nodes and quotas let be held: unit-time by unit-time."""
    jobs: int
    finished: int
    unfinished: int
    """Neither finished nor refused when the simulation stopped."""
    waiting_reasons: dict[str, int]
    """By first reason, the groups that waited in the last round."""
    preemptions: int
    lost_accelerator_hours: float
    """Work that had to be done again."""
    sets: list[SetResult]
    shares: Shares
    rounds: int
    real_time: RealTime

    def comparable(self) -> Results:
        """Without what is real time: equal whenever scenario, seed and planner are."""
        return self.model_copy(update={"real_time": RealTime(total_s=0, round_p50_ms=0, round_p99_ms=0, round_max_ms=0)})


class Recorder(Observer):
    """Counts while an engine runs; `results` then says what came of it."""

    def __init__(self, scenario: Scenario, world: World) -> None:
        self._scenario = scenario
        self._world = world
        has_accelerators = any(node.total[Resource.ACCELERATORS] for node in world.nodes.values())
        self._resource = Resource.ACCELERATORS if has_accelerators else Resource.CPU_MILLIS
        self._held: defaultdict[str, list[Step]] = defaultdict(list)
        """By queue, when it took or gave back how much."""
        self._capacity = [(START, self._usable_now())]
        self._waits: defaultdict[str, list[float]] = defaultdict(list)
        self._preemptions: Counter[str] = Counter()
        self._lost_ms: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._real: list[float] = []
        self._last: Round | None = None
        self._last_end = START

    def decided(self, past: Round) -> None:
        """As in `Observer`."""
        self._real.append(past.real_seconds)
        self._last = past

    def started(self, job: Job, lease: Lease, now: Micros) -> None:
        """As in `Observer`."""
        if job.attempt == 1:
            self._waits[job.set_name].append((now - job.submitted) / MICROS_PER_SECOND)
        self._held[job.queue].append((now, self._of(lease.shape)))

    def stopped(self, job: Job, lease: Lease, now: Micros) -> None:
        """As in `Observer`."""
        self._held[job.queue].append((now, -self._of(lease.shape)))
        self._last_end = now

    def preempted(self, job: Job, now: Micros) -> None:
        """As in `Observer`."""
        self._preemptions[job.set_name] += 1

    def lost(self, job: Job, accelerator_ms: int) -> None:
        """As in `Observer`."""
        self._lost_ms[job.set_name] += accelerator_ms

    def final(self, job: Job, now: Micros, *, refused: bool) -> None:
        """As in `Observer`."""
        (self._refused if refused else self._finished)[job.set_name] += 1

    def capacity(self, now: Micros) -> None:
        """As in `Observer`."""
        self._capacity.append((now, self._usable_now()))

    def results(self, jobs: Sequence[Job]) -> Results:
        """Args: all of the scenario, as they were before it began."""
        first_arrival = min(job.submitted for job in jobs)
        work = sum(self._of(job.shape) * job.work for job in jobs)
        end = self._last_end
        held = sum(integral(changes, first_arrival, end) for changes in self._held.values())
        could = integral(differences(self._capacity), first_arrival, end)
        finished, refused = self._finished.total(), self._refused.total()
        return Results(
            scenario=self._scenario.name,
            seed=self._scenario.seed,
            unit=self._resource.name.lower(),
            makespan_s=(end - first_arrival) / MICROS_PER_SECOND,
            bound_s=work / max(1, self._capacity[0][1]) / MICROS_PER_SECOND,
            capacity_use=held / could if could else 0.0,
            jobs=len(jobs),
            finished=finished,
            unfinished=len(jobs) - finished - refused,
            waiting_reasons=self._waiting(),
            preemptions=self._preemptions.total(),
            lost_accelerator_hours=self._lost_ms.total() / _MS_PER_HOUR,
            sets=[self._set(part.name) for part in self._scenario.load],
            shares=self._shares(first_arrival, end),
            rounds=len(self._real),
            real_time=RealTime(
                total_s=sum(self._real),
                round_p50_ms=quantile(self._real, 0.5) * 1_000,
                round_p99_ms=quantile(self._real, 0.99) * 1_000,
                round_max_ms=max(self._real, default=0.0) * 1_000,
            ),
        )

    def _set(self, name: str) -> SetResult:
        waits = self._waits[name]
        return SetResult(
            name=name,
            started=len(waits),
            finished=self._finished[name],
            refused=self._refused[name],
            preemptions=self._preemptions[name],
            lost_accelerator_hours=self._lost_ms[name] / _MS_PER_HOUR,
            waits=Waits(
                mean_s=sum(waits) / len(waits) if waits else 0.0,
                p50_s=quantile(waits, 0.5),
                p99_s=quantile(waits, 0.99),
                max_s=max(waits, default=0.0),
            ),
        )

    def _waiting(self) -> dict[str, int]:
        if self._last is None:
            return {}
        waiting = (*self._last.decided.waiting_requests, *self._last.decided.waiting_jobs)
        return dict(sorted(Counter(str(group.reasons[0].code) for group in waiting).items()))

    def _shares(self, start: Micros, end: Micros) -> Shares:
        stretch = max(1, -(-(end - start) // _STRETCHES))
        together = _together(sorted(self._held))
        changes: defaultdict[str, list[Step]] = defaultdict(list)
        for queue, its in self._held.items():
            changes[together[queue]] += its
        return Shares(
            stretch_s=stretch / MICROS_PER_SECOND,
            held={name: means(sorted(changes[name]), start, stretch, _STRETCHES) for name in sorted(changes)},
            usable=means(differences(self._capacity), start, stretch, _STRETCHES),
        )

    def _of(self, shape: Shape) -> int:
        return shape.member[self._resource] * shape.members

    def _usable_now(self) -> int:
        """Of all pools together, on living nodes, cordoned or not, and as far as quotas ever allow."""
        tree = self._scenario.tree_values()
        total = 0
        for pool in self._world.pools:
            nodes = [node for node in self._world.nodes.values() if node.pool == pool.name]
            alive = sum(node.total[self._resource] for node in nodes if not self._world.silent(node.name))
            total += usable(tree, (pool.name, self._resource), alive)
        return total


def _together(queues: Sequence[str]) -> dict[str, str]:
    """What each queue is shown as: itself, or where there are many, as much of its path as keeps them few."""
    depth = max((queue.count(PATH_SEPARATOR) + 1 for queue in queues), default=1)
    for length in range(depth, 0, -1):
        shown = {queue: PATH_SEPARATOR.join(queue.split(PATH_SEPARATOR)[:length]) for queue in queues}
        if len(set(shown.values())) <= _SERIES_MAX:
            return shown
    return dict.fromkeys(queues, "all")
