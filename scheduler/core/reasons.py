"""Why something waits: one type per reason, each with the numbers that make it true.

The words leave out what changes with every round, such as the position in the queue: they are stored per job, and a text
that changed whenever somebody ahead went first would rewrite the whole backlog. Positions are in `Waiting.ahead`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class ReasonCode(StrEnum):
    """The reasons in order of precedence: of several that hold, the first is given."""

    NO_WORKFLOW = "NO_WORKFLOW"
    EXCEEDS_MAXIMUM = "EXCEEDS_MAXIMUM"
    QUOTA = "QUOTA"
    ADMISSION_WINDOW = "ADMISSION_WINDOW"
    CAPACITY = "CAPACITY"
    PLACEMENT = "PLACEMENT"
    NOT_EVALUATED = "NOT_EVALUATED"


@dataclass(frozen=True, slots=True)
class NoWorkflow:
    """Nothing here runs jobs of its type."""

    code: ClassVar[ReasonCode] = ReasonCode.NO_WORKFLOW
    job_type: str
    known: tuple[str, ...]
    """The types that are run."""

    def words(self) -> str:
        """The reason for people."""
        return (
            f"no workflow: no workflow in this deployment runs jobs of type {self.job_type}; "
            f"it has workflows for {', '.join(self.known)}"
        )


@dataclass(frozen=True, slots=True)
class ExceedsMaximum:
    """No known worker, or never this project's quota, holds so many at once."""

    code: ClassVar[ReasonCode] = ReasonCode.EXCEEDS_MAXIMUM
    requested: int
    maximum: int
    """The most one lease of this project can hold: the largest known worker, or the quota where that is less."""
    kind: str

    def words(self) -> str:
        """The reason for people."""
        return (
            f"exceeds maximum: asks for {_count(self.requested, self.kind)} on one worker; "
            f"the largest worker within the project's quota has {self.maximum}"
        )


@dataclass(frozen=True, slots=True)
class QuotaReached:
    """With the request the project would hold more than its quota."""

    code: ClassVar[ReasonCode] = ReasonCode.QUOTA
    requested: int
    held: int
    maximum: int
    kind: str
    """The kind with most of its quota left, if "any" was asked for."""

    def words(self) -> str:
        """The reason for people."""
        return f"quota: asks for {_count(self.requested, self.kind)}; the project holds {self.held} of at most {self.maximum}"


@dataclass(frozen=True, slots=True)
class AdmissionWindow:
    """As many of the project's jobs are under way as may be."""

    code: ClassVar[ReasonCode] = ReasonCode.ADMISSION_WINDOW
    admitted: int
    maximum: int

    def words(self) -> str:
        """The reason for people."""
        return f"admission: {self.admitted} of the project's jobs are under way; at most {self.maximum} may be"


@dataclass(frozen=True, slots=True)
class NoCapacity:
    """Too few accelerators are free in all."""

    code: ClassVar[ReasonCode] = ReasonCode.CAPACITY
    requested: int
    free: int
    total: int
    """Accelerators of all living workers of a kind that the request and the quota allow."""
    kind: str

    def words(self) -> str:
        """The reason for people."""
        if self.total == 0:
            return f"capacity: asks for {_count(self.requested, self.kind)}; no living worker has any"
        return f"capacity: asks for {_count(self.requested, self.kind)}; {self.free} of {self.total} are free"


@dataclass(frozen=True, slots=True)
class Fragmented:
    """Enough are free in all, and not on one worker."""

    code: ClassVar[ReasonCode] = ReasonCode.PLACEMENT
    requested: int
    free: int
    largest_free: int
    """Most accelerators free on one worker."""
    kind: str

    def words(self) -> str:
        """The reason for people."""
        return (
            f"placement: asks for {_count(self.requested, self.kind)} on one worker; "
            f"{self.free} are free and at most {self.largest_free} on one"
        )


@dataclass(frozen=True, slots=True)
class NotEvaluated:
    """The round reached its operation budget first; the next one begins here."""

    code: ClassVar[ReasonCode] = ReasonCode.NOT_EVALUATED

    def words(self) -> str:
        """The reason for people."""
        return "not yet evaluated: the scheduler carries this over to its next round"


Reason = NoWorkflow | ExceedsMaximum | QuotaReached | AdmissionWindow | NoCapacity | Fragmented | NotEvaluated


def _count(number: int, kind: str) -> str:
    accelerators = "accelerator" if number == 1 else "accelerators"
    return f"{number} {accelerators} of {'any kind' if kind == 'any' else f'kind {kind}'}"
