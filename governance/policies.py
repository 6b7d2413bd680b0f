"""What a job's type does to its priority.

Two rules. Work of a type that is *filler* runs on what nobody else wants: its priority never leaves class scavenger. A
retraining has a deadline: its first run should be done before the next one may be due. When the latest start that keeps it is
near, the scheduler raises the job by one class, once (`scheduler/core/deadlines.py`).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta

from governance.values import whole

PRIORITY_MAX = 1_000


@dataclass(frozen=True, slots=True)
class TypePolicies:
    """How jobs of each type are treated.

    Raises:
        InvalidValueError: a field breaks its limits.
    """

    filler_types: AbstractSet[str] = frozenset()
    """Types of job that only fill what would be idle."""
    filler_priority_max: int = 99
    """The highest priority of class scavenger."""

    def __post_init__(self) -> None:
        whole(self.filler_priority_max, "filler_priority_max", 0, PRIORITY_MAX)

    def is_filler(self, job_type: str) -> bool:
        """Whether jobs of the type only fill what would be idle."""
        return job_type in self.filler_types

    def settled(self, job_type: str, priority: int) -> int:
        """The priority that a job of the type gets when `priority` is asked for, of 0 to 1,000."""
        return min(priority, self.filler_priority_max) if job_type in self.filler_types else priority


def start_by(submitted: datetime, interval_seconds: int, run_seconds: int) -> datetime:
    """The latest start that keeps a retraining's deadline, never before it was submitted.

    Args:
        submitted: when it was asked for.
        interval_seconds: the shortest time between two of its runs: by then the first one should be done.
        run_seconds: the longest time that a run may take.
    """
    return submitted + timedelta(seconds=max(0, interval_seconds - run_seconds))
