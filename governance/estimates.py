"""What was foretold against what came: the variance of a job's cost."""

from __future__ import annotations

from dataclasses import dataclass

from governance.values import InvalidValueError


@dataclass(frozen=True, slots=True)
class Range:
    """A whole number that is not known exactly; both ends are possible.

    Raises:
        InvalidValueError: the ends are in the wrong order, or negative.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise InvalidValueError("estimate", f"is {self.low:,} to {self.high:,}; expected 0 or more, the lower end first")


@dataclass(frozen=True, slots=True)
class Variance:
    """How an actual number compares with its estimate."""

    difference: int
    """Actual minus the nearer end of the estimate: 0 within it, negative below, positive above."""
    percent_of_high: int | None
    """Actual as percent of the upper end, rounded to the nearest whole one (half away from zero); None: the end is 0."""


def variance(estimate: Range, actual: int) -> Variance:
    """Compares what a job cost with what was foretold."""
    nearest = min(max(actual, estimate.low), estimate.high)
    high = estimate.high
    return Variance(actual - nearest, None if high == 0 else (200 * actual + high) // (2 * high))
