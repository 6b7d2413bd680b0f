"""Which of a job's checkpoints are kept: the best, the latest, every so many steps, and the last one that proved good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Three numbers. What any of them keeps is kept.

    Attributes:
        keep_latest: this many of the highest steps, at least 2: the newest may turn out to be damaged.
        keep_best: this many of the lowest metrics.
        keep_every_steps: those of steps that this divides; 0: none for that reason.
    """

    keep_latest: int = 3
    keep_best: int = 1
    keep_every_steps: int = 0

    def __post_init__(self) -> None:
        if self.keep_latest < 2 or self.keep_best < 0 or self.keep_every_steps < 0:
            raise ValueError(f"{self}: expected keep_latest to be at least 2, the others at least 0")


@dataclass(frozen=True, slots=True)
class Retained:
    """What the policy knows of a committed checkpoint.

    Attributes:
        step: optimizer steps it covers.
        metric: what held-out data said of it, lower is better; None: nothing.
        proven: whether an attempt went on from it, so that it was whole then.
        referenced: whether a registered model version refers to it.
    """

    step: int
    metric: float | None = None
    proven: bool = False
    referenced: bool = False


def released(checkpoints: Sequence[Retained], policy: RetentionPolicy) -> list[int]:
    """The steps of those that nothing keeps, in order. Of equal metrics the earlier step is the better one.

    Besides what the policy keeps: what a registered version refers to, and the last one that an attempt went on from, which is
    the newest that is known to be good.
    """
    by_step = sorted(checkpoints, key=lambda one: one.step)
    measured = [one for one in by_step if one.metric is not None and math.isfinite(one.metric)]
    best = sorted(measured, key=lambda one: (one.metric, one.step))[: policy.keep_best]
    proven = [one for one in by_step if one.proven][-1:]
    kept = {one.step for one in (*by_step[-policy.keep_latest :], *best, *proven)}
    kept |= {one.step for one in by_step if one.referenced}
    if policy.keep_every_steps:
        kept |= {one.step for one in by_step if one.step % policy.keep_every_steps == 0}
    return [one.step for one in by_step if one.step not in kept]
