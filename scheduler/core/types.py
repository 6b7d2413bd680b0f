"""What the core is given and what it answers: values only. Rules: docs/explanation/scheduling.md."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import NewType, TypeAlias

from scheduler.core.reasons import Reason

Micros = NewType("Micros", int)
"""Microseconds since 1970-01-01 UTC by the database's clock: exact, as PostgreSQL keeps time."""

ANY_KIND = "any"
"""The kind in a shape that every kind of accelerator satisfies."""


class Resource(IntEnum):
    """What a node has and a member takes; the index into an `Amounts`."""

    ACCELERATORS = 0
    CPU_MILLIS = 1
    MEMORY_MIB = 2


Amounts: TypeAlias = tuple[int, int, int]
"""Accelerators, thousandths of a CPU, MiB of memory."""

Cell: TypeAlias = tuple[str, Resource]
"""What a quota counts: one resource of one pool."""


class PriorityClass(IntEnum):
    """Strict: work of a class is never placed after work of a lower one that it could have been placed before."""

    SCAVENGER = 0
    LOW = 1
    NORMAL = 2
    HIGH = 3
    URGENT = 4


CLASS_FLOORS: Mapping[PriorityClass, int] = MappingProxyType(
    {
        PriorityClass.SCAVENGER: 0,
        PriorityClass.LOW: 100,
        PriorityClass.NORMAL: 400,
        PriorityClass.HIGH: 700,
        PriorityClass.URGENT: 900,
    }
)
"""The lowest priority, of 0 to 1,000, that is of each class."""


def class_of(priority: int) -> PriorityClass:
    """The class that a priority of 0 to 1,000 is of."""
    return _CLASSES[bisect_right(_FLOORS, priority) - 1]


_CLASSES = tuple(CLASS_FLOORS)
_FLOORS = tuple(CLASS_FLOORS.values())


class TopologyMode(StrEnum):
    """How much it matters that the members of a gang share a domain."""

    REQUIRED = "required"
    """All in one domain, or the gang waits."""
    PREFERRED = "preferred"
    """In one domain if one has room; else in as few as can be."""
    BALANCED = "balanced"
    """Required; in the domain that has most room left, so that domains fill evenly."""


@dataclass(frozen=True, slots=True, order=True)
class Topology:
    """That the members of a gang belong together."""

    level: str
    """The label whose values are the domains: "rack"."""
    mode: TopologyMode


@dataclass(frozen=True, slots=True)
class Shape:
    """What one lease holds: `members` equal parts, each whole on one node, all granted together or none."""

    kind: str
    """Of accelerator; ANY_KIND: every kind will do."""
    member: Amounts
    members: int = 1
    spot: bool = False
    """Whether spot pools will do."""
    labels: tuple[tuple[str, str], ...] = ()
    """What every node must carry; in order."""
    topology: Topology | None = None

    @property
    def accelerators(self) -> int:
        """Of all members."""
        return self.member[Resource.ACCELERATORS] * self.members

    @property
    def total(self) -> Amounts:
        """Of all members."""
        accelerators, cpu_millis, memory_mib = self.member
        return accelerators * self.members, cpu_millis * self.members, memory_mib * self.members

    def __lt__(self, other: Shape) -> bool:
        """An order without meaning, in which nothing is equal but what is the same; without topology before with one."""
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, Amounts, int, bool, tuple[tuple[str, str], ...], tuple[str, ...]]:
        topology = () if self.topology is None else (self.topology.level, self.topology.mode.value)
        return self.kind, self.member, self.members, self.spot, self.labels, topology


Placement: TypeAlias = tuple[tuple[str, int], ...]
"""Node and how many members on it, in order of node."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes that are alike: what quotas and prices are about."""

    name: str
    kind: str
    """Of their accelerators; "cpu" where they have none."""
    spot: bool = False
    price: int = 0
    """Millionths of the currency for an accelerator-hour."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that leases are placed on."""

    name: str
    incarnation: str
    """This start of it: leases granted on an earlier one are lost."""
    pool: str
    total: Amounts
    heartbeat: Micros
    cordoned: bool = False
    """Takes nothing new; what runs on it goes on."""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Quota:
    """What a node of the tree has of one cell."""

    nominal: int = 0
    """Its own; use within it is free of fair share."""
    borrowing_limit: int | None = None
    """Most beyond nominal that it may use of others'; None: no limit."""
    lending_limit: int | None = None
    """Most of its nominal that others may borrow while it is idle; None: all."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a node of the tree may still spend in this period: left after reservations. None: not limited."""

    money_left: int | None = None
    """Millionths of the currency."""
    accelerator_ms_left: int | None = None
    """Accelerator-milliseconds; kind "cpu" does not count."""


@dataclass(frozen=True, slots=True)
class QueueNode:
    """A node of the quota tree: the organisation, a team or a project. The leaves are the queues."""

    name: str
    parent: str | None
    """None: the root. There is one."""
    weight: int = 1_000
    """Of its share of what is borrowed, in thousandths, at least 1."""
    quotas: Mapping[Cell, Quota] = field(default_factory=dict[Cell, Quota])
    """A cell not named has nominal 0 and no limits."""
    past_use: int = 0
    """Decayed use, in accelerator-seconds; it orders among equal costs."""
    budget: Budget | None = None
    demoted: bool = False
    """Its soft budget is spent and its policy says so: all of its requests are of class SCAVENGER."""


@dataclass(frozen=True, slots=True)
class Request:
    """A lease that an admitted job asked for."""

    request_id: str
    """The lease's id."""
    job_id: str
    queue: str
    shape: Shape
    priority: int
    submitted: Micros
    """When it was asked for. A preempted job's next request keeps the first one's time."""
    run_micros: int
    """Longest run time."""
    claim: Placement = ()
    """What preemption is making room for it on: `Lease.preempted_for` of its victims names it."""
    preempted: bool = False
    """Whether the job was preempted on an earlier lease, and this is asked for in its place. It displaces others only where the
    potential falls (see potential.py), so that victims that ask again do not chase each other for ever."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease."""

    lease_id: str
    job_id: str
    queue: str
    shape: Shape
    priority: int
    submitted: Micros
    run_micros: int
    pool: str
    placement: Placement
    incarnations: tuple[str, ...]
    """Of the nodes of `placement`, when it was granted."""
    granted: Micros
    expires: Micros
    checkpointed: Micros | None = None
    """When its work was last safe; None: not since it was granted."""
    preempted_for: str | None = None
    """The request it is yielding to; None: it is not being preempted."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that waits to be admitted."""

    job_id: str
    queue: str
    shape: Shape
    """What its largest lease will ask for."""
    priority: int
    submitted: Micros
    job_type: str = ""


@dataclass(frozen=True, slots=True, order=True)
class GroupKey:
    """One first-in-first-out line: what is in it is alike to every rule but age, so its head stands for all of it."""

    queue: str
    priority_class: PriorityClass
    shape: Shape
    job_type: str = ""
    """Of queued jobs; requests have none."""


@dataclass(frozen=True, slots=True)
class Brakes:
    """How much preemption there may still be, kept by the shell as time goes by."""

    preemptions_left: int
    """Tokens in the bucket."""
    waste_ms_left: int
    """Accelerator-milliseconds of work not checkpointed that may still be thrown away this hour."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The rules' parameters."""

    prepare_ahead: int = 8
    """Most jobs of a queue that are admitted and not final."""
    node_lost_micros: int = 15_000_000
    """A node silent for longer than this is lost."""
    aging_micros: int = 60_000_000
    """Waiting so long outweighs one point of priority, inside a queue and class."""
    cost_buckets: int = 100_000
    """Costs are compared in steps of one part in so many of what can be borrowed."""
    reserve_after_micros: int = 60_000_000
    """The first request blocked by capacity for so long gets a reservation."""
    run_minimum_micros: int = 120_000_000
    """A lease is not preempted before it has run so long."""
    job_types: frozenset[str] | None = None
    """The types of job that have a workflow; jobs of others are not admitted. None: every type."""
    operations_max: int = 1_000_000
    """Bound of a round's work in requests looked at, placements tried and victims weighed: never of time."""


@dataclass(frozen=True, slots=True)
class EndLease:
    """End a held lease as lost."""

    lease_id: str
    job_id: str
    cause: EndCause


class EndCause(StrEnum):
    """Why the scheduler ends a lease; the words its holder is told."""

    EXPIRED = "the lease was not renewed in time"
    NODE_LOST = "the node is silent"
    NODE_RESTARTED = "the node was restarted"


@dataclass(frozen=True, slots=True)
class Grant:
    """Give a request what it asks for."""

    request: Request
    pool: str
    placement: Placement
    incarnations: tuple[str, ...]
    cost: int
    """To reserve in every budget on the way to the root: accelerators x longest run time x price, rounded up, in millionths."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """End a request that can never be granted."""

    request: Request
    reason: Reason


@dataclass(frozen=True, slots=True)
class Preempt:
    """Ask a lease to checkpoint and yield."""

    lease_id: str
    job_id: str
    request_id: str
    """What it yields to."""
    lost_ms: int
    """Accelerator-milliseconds since its last checkpoint, when this was decided."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Keep for a request what its victims are giving up."""

    request_id: str
    placement: Placement
    """Empty: the claim it had is dissolved; it waits as any other."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is kept for the first request of a pool that has been blocked for long."""

    request_id: str
    pool: str
    starts: Micros
    """When declared longest run times say that it fits."""
    placement: Placement


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why all that is left in a group waits: every reason that holds for its head, in order of precedence."""

    group: GroupKey
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. Every queued job is admitted or waits; every request is granted, refused or waits."""

    ends: tuple[EndLease, ...] = ()
    grants: tuple[Grant, ...] = ()
    refusals: tuple[Refuse, ...] = ()
    preemptions: tuple[Preempt, ...] = ()
    claims: tuple[Claim, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    admissions: tuple[QueuedJob, ...] = ()
    waiting_requests: tuple[Waiting, ...] = ()
    waiting_jobs: tuple[Waiting, ...] = ()
    carried_over: tuple[GroupKey, ...] = ()
    """Groups this round did not get to; part of the next snapshot."""

    @property
    def complete(self) -> bool:
        """Whether the round got to everything; if not, another should follow at once."""
        return not self.carried_over

    @property
    def changes(self) -> int:
        """How many decisions change anything but a reason."""
        decisions = (self.ends, self.grants, self.refusals, self.preemptions, self.claims, self.admissions)
        return sum(len(some) for some in decisions)
