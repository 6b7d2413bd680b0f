"""What the core is given and what it answers: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from scheduler.core.reasons import ExceedsMaximum, Reason

Micros = NewType("Micros", int)
"""Microseconds since 1970-01-01 UTC by the database's clock: exact, as PostgreSQL keeps time."""

ANY_KIND = "any"
"""The kind in a request that every kind of accelerator satisfies."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What one lease holds, all of it on one worker."""

    accelerators: int
    kind: str

    def matches(self, kind: str) -> bool:
        """Whether accelerators of `kind` will do."""
        return self.kind in (ANY_KIND, kind)


@dataclass(frozen=True, slots=True, order=True)
class QueueKey:
    """One first-in-first-out queue of lease requests: same project, same shape, so all of it fits or none."""

    project: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that waits to be admitted."""

    job_id: str
    project: str
    priority: int
    submitted: Micros
    shape: Shape
    """What its leases will ask for."""
    job_type: str = ""
    """What kind of job it is: "fine_tune"."""


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A lease that an admitted job asked for."""

    lease_id: str
    job_id: str
    project: str
    priority: int
    requested: Micros
    shape: Shape

    @property
    def queue(self) -> QueueKey:
        """The queue it waits in."""
        return QueueKey(self.project, self.shape)


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A granted lease."""

    lease_id: str
    job_id: str
    project: str
    worker: str
    incarnation: str
    """The start of the worker that it was granted on."""
    kind: str
    accelerators: int
    expires: Micros


@dataclass(frozen=True, slots=True)
class Worker:
    """A machine with accelerators of one kind."""

    name: str
    incarnation: str
    kind: str
    accelerators: int
    heartbeat: Micros


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a round decides on, read in one transaction. The order of what it holds means nothing."""

    queued: tuple[QueuedJob, ...] = ()
    requests: tuple[LeaseRequest, ...] = ()
    held: tuple[HeldLease, ...] = ()
    workers: tuple[Worker, ...] = ()
    """All that ever registered, lost ones too: they say what the cluster can be."""
    quotas: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    """Most accelerators held at once, by project and kind; what is not named is not limited."""
    admitted: Mapping[str, int] = field(default_factory=dict[str, int])
    """Jobs admitted and not final, by project."""
    database_started: Micros = Micros(0)
    """Nobody can have sent a heartbeat before this: silence is counted from here at the earliest."""
    carried_over: tuple[QueueKey, ...] = ()
    """Queues that the last round did not get to; they go first."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The rules' parameters."""

    prepare_ahead_per_project: int
    """Most jobs of a project that are admitted and not final."""
    worker_lost_micros: int
    """A worker silent for longer than this is lost."""
    job_types: frozenset[str] | None = None
    """The types of job that have a workflow; jobs of others are not admitted. None: every type."""
    operations_max: int = 1_000_000
    """Bound of a round's work, in workers looked at and jobs admitted: never a bound of time, which would make the plan
    depend on the machine."""


class EndCause(StrEnum):
    """Why the scheduler ends a lease; the words its holder is told."""

    EXPIRED = "the lease was not renewed in time"
    WORKER_LOST = "the worker is silent"
    WORKER_RESTARTED = "the worker was restarted"


@dataclass(frozen=True, slots=True)
class EndLease:
    """End a held lease as lost."""

    lease_id: str
    job_id: str
    cause: EndCause


@dataclass(frozen=True, slots=True)
class Grant:
    """Give a lease request accelerators of a worker."""

    lease_id: str
    job_id: str
    worker: str
    incarnation: str
    kind: str
    accelerators: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """End a lease request that can never be granted."""

    lease_id: str
    job_id: str
    reason: ExceedsMaximum


@dataclass(frozen=True, slots=True)
class Admit:
    """Start a job's workflow."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a round left waiting, and why."""

    waiter_id: str
    """A job id or a lease id."""
    job_id: str
    reason: Reason
    ahead: int
    """How many wait before it in its queue."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. Every queued job is admitted or waits; every lease request is granted, refused or waits."""

    ends: tuple[EndLease, ...] = ()
    grants: tuple[Grant, ...] = ()
    refusals: tuple[Refuse, ...] = ()
    admissions: tuple[Admit, ...] = ()
    waiting_leases: tuple[Waiting, ...] = ()
    waiting_jobs: tuple[Waiting, ...] = ()
    carried_over: tuple[QueueKey, ...] = ()
    """Queues this round did not get to; part of the next snapshot."""
    complete: bool = True
    """Whether the round got to everything; if not, another should follow at once."""

    @property
    def changes(self) -> int:
        """How many decisions change anything but a reason."""
        return len(self.ends) + len(self.grants) + len(self.refusals) + len(self.admissions)
