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


_NOTHING = Range(0, 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What jobs that have an estimate were foretold to cost and did cost, in millionths of the currency."""

    jobs: int = 0
    open_jobs: int = 0
    """Of them, those that have leases running: what they cost is not final."""
    estimate: Range = _NOTHING
    """The sum of their estimates."""
    charged_micros: int = 0
    """With all their leases, so far."""

    def __add__(self, other: Comparison) -> Comparison:
        estimate = Range(self.estimate.low + other.estimate.low, self.estimate.high + other.estimate.high)
        charged = self.charged_micros + other.charged_micros
        return Comparison(self.jobs + other.jobs, self.open_jobs + other.open_jobs, estimate, charged)

    @property
    def variance_micros(self) -> int:
        """What they cost minus the nearer end of the sum: 0 within it."""
        return variance(self.estimate, self.charged_micros).difference


NOTHING_COMPARED = Comparison()
"""No jobs."""
