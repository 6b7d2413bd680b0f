"""Why something waits: one type per reason, each with the numbers that make it true.

The words leave out positions: those change whenever somebody ahead goes first, and reasons are written when they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, TypeAlias


class ReasonCode(StrEnum):
    """The reasons in order of precedence: of several that hold, the first is shown where only one is."""

    NO_WORKFLOW = "NO_WORKFLOW"
    EXCEEDS_MAXIMUM = "EXCEEDS_MAXIMUM"
    ADMISSION_WINDOW = "ADMISSION_WINDOW"
    BUDGET = "BUDGET"
    QUOTA = "QUOTA"
    FAIR_SHARE = "FAIR_SHARE"
    CAPACITY = "CAPACITY"
    PLACEMENT = "PLACEMENT"
    RESERVED = "RESERVED"
    PREEMPTION = "PREEMPTION"
    NOT_EVALUATED = "NOT_EVALUATED"


@dataclass(frozen=True, slots=True)
class NoWorkflow:
    """Nothing here runs jobs of its type."""

    code: ClassVar[ReasonCode] = ReasonCode.NO_WORKFLOW
    job_type: str
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExceedsMaximum:
    """The cluster as it is known, cordoned and lost nodes too, cannot hold it even when empty; or no quota on the way to the
    root allows so much even when nothing else runs."""

    code: ClassVar[ReasonCode] = ReasonCode.EXCEEDS_MAXIMUM
    requested: int
    """Accelerators of all members (or the resource that is short, see `resource`)."""
    maximum: int
    kind: str
    resource: str = "accelerators"
    limited_by: str = "cluster"
    """"cluster", or the name of the node of the quota tree."""


@dataclass(frozen=True, slots=True)
class AdmissionWindow:
    """As many of the queue's jobs are under way as may be."""

    code: ClassVar[ReasonCode] = ReasonCode.ADMISSION_WINDOW
    admitted: int
    maximum: int


@dataclass(frozen=True, slots=True)
class BudgetReached:
    """With its reservation a budget on the way to the root would be overdrawn."""

    code: ClassVar[ReasonCode] = ReasonCode.BUDGET
    node: str
    unit: str
    """"money" (millionths) or "accelerator_ms"."""
    requested: int
    left: int


@dataclass(frozen=True, slots=True)
class QuotaReached:
    """With it, a node of the tree would use more than nominal and what it may borrow; or what others lend is used up."""

    code: ClassVar[ReasonCode] = ReasonCode.QUOTA
    node: str
    pool: str
    resource: str
    requested: int
    used: int
    nominal: int
    maximum: int
    """Nominal and what it may borrow at most."""


@dataclass(frozen=True, slots=True)
class FairShare:
    """What is free went to queues of lower cost in this round."""

    code: ClassVar[ReasonCode] = ReasonCode.FAIR_SHARE
    queue: str
    cost: int
    """Of its queue with it, in buckets."""
    ahead_queue: str
    """The queue whose request took the last that would have fitted."""
    ahead_cost: int


@dataclass(frozen=True, slots=True)
class NoCapacity:
    """Too little is free in all."""

    code: ClassVar[ReasonCode] = ReasonCode.CAPACITY
    requested: int
    free: int
    total: int
    """Of living nodes that take new work, in pools that the shape allows."""
    kind: str
    resource: str = "accelerators"


@dataclass(frozen=True, slots=True)
class Fragmented:
    """Enough is free in all, and not so that every member is whole on a node (or the gang in a domain)."""

    code: ClassVar[ReasonCode] = ReasonCode.PLACEMENT
    requested: int
    """Members."""
    placeable: int
    """Members that could be placed now."""
    free: int
    """Accelerators free in all."""
    kind: str


@dataclass(frozen=True, slots=True)
class Reserved:
    """It would fit, and run into what is reserved for another that has waited longer."""

    code: ClassVar[ReasonCode] = ReasonCode.RESERVED
    reserved_for: str
    """A request id."""
    starts: int
    """When that one starts at the latest, if run times hold; Micros."""


@dataclass(frozen=True, slots=True)
class AwaitsPreemption:
    """Room is being made for it."""

    code: ClassVar[ReasonCode] = ReasonCode.PREEMPTION
    victims: int
    """Leases that are still to yield."""


@dataclass(frozen=True, slots=True)
class NotEvaluated:
    """The round reached its operation budget first; the next one begins here."""

    code: ClassVar[ReasonCode] = ReasonCode.NOT_EVALUATED


Reason: TypeAlias = (
    NoWorkflow
    | ExceedsMaximum
    | AdmissionWindow
    | BudgetReached
    | QuotaReached
    | FairShare
    | NoCapacity
    | Fragmented
    | Reserved
    | AwaitsPreemption
    | NotEvaluated
)
