"""What a job's type does to its priority.

Two rules. Work of a type that is *filler* runs on what nobody else wants: its priority never leaves class scavenger. Work with
a deadline rises as the deadline comes near: from its own priority, when the stretch before the deadline begins, in a straight
line to the highest its policy allows, at the deadline and after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from governance.values import whole

PRIORITY_MAX = 1_000
DAY_MICROSECONDS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class TypePolicy:
    """How jobs of one type are treated.

    Raises:
        InvalidValueError: a field breaks its limits.
    """

    filler: bool = False
    """Whether they only fill what would be idle."""
    deadline_priority: int = PRIORITY_MAX
    """What their priority rises to at the deadline; 0: a deadline changes nothing."""
    rise_microseconds: int = DAY_MICROSECONDS
    """How long before the deadline it begins to rise."""

    def __post_init__(self) -> None:
        whole(self.deadline_priority, "deadline_priority", 0, PRIORITY_MAX)
        whole(self.rise_microseconds, "rise_microseconds", 1, 366 * DAY_MICROSECONDS)


@dataclass(frozen=True, slots=True)
class Policy:
    """How each type of job is treated.

    Raises:
        InvalidValueError: a field breaks its limits.
    """

    types: Mapping[str, TypePolicy] = field(default_factory=dict[str, TypePolicy])
    """By job type; a type that is not named runs at its own priority, and a deadline changes nothing."""
    filler_priority_max: int = 99
    """The highest priority of class scavenger."""

    def __post_init__(self) -> None:
        whole(self.filler_priority_max, "filler_priority_max", 0, PRIORITY_MAX)


def effective_priority(job_type: str, priority: int, deadline: int | None, now: int, policy: Policy) -> int:
    """The priority that the scheduler orders a job by.

    It never falls as time goes by, and is below `priority` only for filler.

    Args:
        job_type: "fine_tune", "hpo", "retrain", "rlhf" or "evaluation".
        priority: as submitted, 0 to 1,000.
        deadline: when it should be done, in microseconds since 1970-01-01 UTC; None: whenever.
        now: in microseconds since 1970-01-01 UTC.
        policy: the rules.
    """
    rules = policy.types.get(job_type)
    if rules is None:
        return priority
    if deadline is not None and rules.deadline_priority > priority:
        gone = min(max(0, now - (deadline - rules.rise_microseconds)), rules.rise_microseconds)
        priority += (rules.deadline_priority - priority) * gone // rules.rise_microseconds
    return min(priority, policy.filler_priority_max) if rules.filler else priority
