"""Arithmetic of what changes in steps: levels over time, their means and integrals. Exact integers until the last division."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

Step: TypeAlias = tuple[int, int]
"""When, in microseconds, and by how much."""


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that at least so much of all are not above (nearest rank); 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def differences(levels: Sequence[Step]) -> list[Step]:
    """Changes that lead from level to level, the first from 0."""
    return [levels[0], *((when, level - before) for (_, before), (when, level) in pairwise(levels))]


def integral(changes: Iterable[Step], start: int, end: int) -> int:
    """Of the level that the changes make, from start to end."""
    return sum(change * (end - max(when, start)) for when, change in changes if when < end)


def means(changes: Sequence[Step], start: int, stretch: int, count: int) -> list[float]:
    """Of the level that ascending changes make, over each of `count` stretches; what comes before the start counts from it."""
    found: list[float] = []
    level, position = 0, 0
    for index in range(count):
        begin, end = start + index * stretch, start + (index + 1) * stretch
        area = level * stretch
        while position < len(changes) and changes[position][0] < end:
            when, change = changes[position]
            area += change * (end - max(when, begin))
            level += change
            position += 1
        found.append(area / stretch)
    return found
