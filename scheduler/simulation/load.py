"""The load of a scenario: sets of like jobs, when they arrive and how long they really run."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from scheduler.core.types import ANY_KIND, Shape, Topology, TopologyMode
from scheduler.simulation.cluster import Amount, Count, Name, Spec
from scheduler.simulation.units import Duration


def generator(*seed: object) -> random.Random:
    """A stream of draws of its own for whatever is named, so that changing one set leaves the draws of the others alone."""
    return random.Random("/".join(map(str, seed)))  # noqa: S311  A simulation must repeat; no secret is drawn.


class TopologySpec(Spec):
    """As `scheduler.core.types.Topology`."""

    level: str
    mode: TopologyMode


class ShapeSpec(Spec):
    """As `scheduler.core.types.Shape`, the amounts those of one member."""

    kind: Name = ANY_KIND
    accelerators: Amount = 0
    cpu_millis: Amount = 0
    memory_mib: Amount = 0
    members: Count = 1
    spot: bool = False
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    topology: TopologySpec | None = None

    def shape(self) -> Shape:
        """The core's value of it."""
        member = (self.accelerators, self.cpu_millis, self.memory_mib)
        topology = Topology(self.topology.level, self.topology.mode) if self.topology else None
        return Shape(self.kind, member, self.members, self.spot, tuple(sorted(self.labels.items())), topology)


class AtOnce(Spec):
    """All together."""

    kind: Literal["at_once"] = "at_once"

    def times(self, count: int, _draws: random.Random) -> Iterator[int]:
        """Micros after the set's start at which each job arrives, ascending."""
        return iter([0] * count)


class Every(Spec):
    """One every interval, the first at the start."""

    kind: Literal["every"]
    interval: Duration

    def times(self, count: int, _draws: random.Random) -> Iterator[int]:
        """As `AtOnce.times`."""
        return (index * self.interval for index in range(count))


class Poisson(Spec):
    """With exponential time between them."""

    kind: Literal["poisson"]
    mean_interval: Duration

    def times(self, count: int, draws: random.Random) -> Iterator[int]:
        """As `AtOnce.times`."""
        now = 0
        for _ in range(count):
            now += _exponential(draws, self.mean_interval)
            yield now


class Diurnal(Spec):
    """Exponential, the rate swinging as a sine over each period: by thinning (Lewis and Shedler, 1979)."""

    kind: Literal["diurnal"]
    mean_interval: Duration
    swing: Annotated[float, Field(ge=0, le=1)]
    """The rate goes from (1 - swing) to (1 + swing) of its mean."""
    peak: Duration
    """When in each period the rate is highest."""
    period: Duration = 86_400_000_000

    def times(self, count: int, draws: random.Random) -> Iterator[int]:
        """As `AtOnce.times`."""
        now, made = 0, 0
        highest = 1 + self.swing
        while made < count:
            now += _exponential(draws, self.mean_interval / highest)
            rate = 1 + self.swing * math.cos(2 * math.pi * (now - self.peak) / self.period)
            if draws.random() * highest < rate:
                made += 1
                yield now


def _exponential(draws: random.Random, mean_micros: float) -> int:
    return round(draws.expovariate(1 / mean_micros))


Arrival: TypeAlias = Annotated[AtOnce | Every | Poisson | Diurnal, Field(discriminator="kind")]


class FixedRatio(Spec):
    """Always the same."""

    kind: Literal["fixed"] = "fixed"
    value: Annotated[float, Field(gt=0)] = 1.0

    def draw(self, _draws: random.Random) -> float:
        """Actual run time over declared longest run time."""
        return self.value


class UniformRatio(Spec):
    """Anywhere in between."""

    kind: Literal["uniform"]
    low: Annotated[float, Field(gt=0)]
    high: Annotated[float, Field(gt=0)]

    def draw(self, draws: random.Random) -> float:
        """As `FixedRatio.draw`."""
        return draws.uniform(self.low, self.high)


class LognormalRatio(Spec):
    """Around a median, never above `most`: the declared time is where the platform stops a job."""

    kind: Literal["lognormal"]
    median: Annotated[float, Field(gt=0)]
    sigma: Annotated[float, Field(gt=0)]
    """Standard deviation of the ratio's logarithm."""
    most: Annotated[float, Field(gt=0)] = 1.0

    def draw(self, draws: random.Random) -> float:
        """As `FixedRatio.draw`."""
        return min(self.most, draws.lognormvariate(math.log(self.median), self.sigma))


class ObservedRatio(Spec):
    """One of those that were seen."""

    kind: Literal["observed"]
    values: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]

    def draw(self, draws: random.Random) -> float:
        """As `FixedRatio.draw`."""
        return draws.choice(self.values)


Ratio: TypeAlias = Annotated[FixedRatio | UniformRatio | LognormalRatio | ObservedRatio, Field(discriminator="kind")]


class CheckpointSpec(Spec):
    """What of a job's work survives when it loses its lease."""

    every: Duration | None = None
    """Of running; what was done since is lost with a node. None: all of it is."""
    on_demand: bool = True
    """Whether it also writes one when it is asked to yield; then preemption loses nothing."""


class SetSpec(Spec):
    """Jobs that are alike, `count` of them in each queue that matches."""

    name: Name
    queues: str
    """A pattern of names of queues: "team-*/queue-*"."""
    count: Count
    shape: ShapeSpec
    priority: Annotated[int, Field(ge=0, le=1_000)] = 500
    run: Duration
    """Declared longest run time."""
    ratio: Ratio = FixedRatio()
    """Of the actual run time to the declared one."""
    start: Duration = 0
    arrival: Arrival = AtOnce()
    checkpoint: CheckpointSpec = CheckpointSpec()
    prepare: Duration | None = None
    """From admission to the request for the lease. None: the jobs arrive as requests, admitted before."""
