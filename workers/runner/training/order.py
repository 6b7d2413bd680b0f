"""The order of rows and the learning rate: pure functions of the step, so that resuming needs no state for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from control_plane.jobs.spec import StageTraining, TrainingSpec

RowT = TypeVar("RowT")


class DataOrder:
    """An endless sequence of row indices: every row once per epoch, each epoch in an order of its own."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def take(self, position: int, count: int) -> list[int]:
        """The indices at places `position` to `position + count - 1` of the sequence."""
        return list(itertools.islice(self.from_position(position), count))

    def from_position(self, position: int) -> Iterator[int]:
        """The indices from place `position` of the sequence on; it goes on over the end of an epoch."""
        return map(self._at, itertools.count(position))

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, self._rows)
        if epoch != self._epoch:
            # A seed of two numbers, so that no two runs meet in different epochs, as they would with seed + epoch.
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._rows).tolist()
            self._epoch = epoch
        return self._order[offset]


def passes(
    rows: Iterator[RowT],
    *,
    count: int,
    most_rows: int,
    most_tokens: int | None,
    tokens_of: Callable[[RowT], int],
) -> list[list[RowT]]:
    """The next `count` runs of rows, each of at most `most_rows`, and within `most_tokens` if one row is not more than that."""
    dealt: list[list[RowT]] = []
    current: list[RowT] = []
    tokens = 0
    for row in rows:
        more = tokens_of(row)
        if current and (len(current) == most_rows or (most_tokens is not None and tokens + more > most_tokens)):
            dealt.append(current)
            if len(dealt) == count:
                break
            current, tokens = [], 0
        current.append(row)
        tokens += more
    return dealt


def learning_rate(spec: TrainingSpec, step: int) -> float:
    """The rate of optimizer step `step`, counted from 0: linear up over the warm-up, then by the schedule, never 0.

    Linear where the spec has no schedule; a cosine falls along half a period (Loshchilov and Hutter 2016, arXiv:1608.03983).
    """
    warmup = min(spec.warmup_steps, spec.steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    left = (spec.steps - step) / (spec.steps - warmup)
    match spec.learning_rate_schedule if isinstance(spec, StageTraining) else "linear":
        case "linear":
            return spec.learning_rate * left
        case "cosine":
            return spec.learning_rate * (1 - math.cos(math.pi * left)) / 2
        case "constant":
            return spec.learning_rate
