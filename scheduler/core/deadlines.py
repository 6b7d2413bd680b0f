"""Deadlines: a job whose latest start is near rises by one class. Pure; `scheduler/deadlines.py` carries it out.

It rises once, by no more than one class, and never above the ceiling of its project: a deadline is a reason to go before
equals, and not a way past what the project may ask for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.core.types import CLASS_FLOORS, Micros, PriorityClass, class_of


@dataclass(frozen=True, slots=True)
class Deadline:
    """A job that is not final, has a deadline and was not raised for it."""

    job_id: str
    priority: int
    start_by: Micros
    """The latest start that keeps the deadline."""
    ceiling: int
    """The highest priority that its project may give."""


@dataclass(frozen=True, slots=True)
class Raise:
    """What becomes of a job whose latest start is near."""

    job_id: str
    priority: int
    """Its new one: as it was, if nothing above it is allowed."""


def raises(deadlines: Iterable[Deadline], now: Micros, notice_micros: int) -> tuple[Raise, ...]:
    """The jobs to raise at `now`: those whose latest start is no more than `notice_micros` away, or past."""
    return tuple(
        Raise(deadline.job_id, raised(deadline.priority, deadline.ceiling))
        for deadline in deadlines
        if deadline.start_by - now <= notice_micros
    )


def raised(priority: int, ceiling: int) -> int:
    """The lowest priority of the next class, if the ceiling allows it; else the ceiling. Never below `priority`."""
    above = PriorityClass(min(class_of(priority) + 1, max(PriorityClass)))
    return max(priority, min(CLASS_FLOORS[above], ceiling))
