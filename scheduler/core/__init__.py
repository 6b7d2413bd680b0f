"""The pure core: `plan(snapshot, now, limits)` decides everything the scheduler does.

No clock, no randomness, no input or output, no floating point; every order ends in a unique key. So the same snapshot gives
the same plan, in production, in a test and in a replay.
"""

from scheduler.core.planner import plan
from scheduler.core.reasons import (
    AdmissionWindow,
    ExceedsMaximum,
    Fragmented,
    NoCapacity,
    NotEvaluated,
    NoWorkflow,
    QuotaReached,
    Reason,
    ReasonCode,
)
from scheduler.core.types import (
    ANY_KIND,
    Admit,
    EndCause,
    EndLease,
    Grant,
    HeldLease,
    LeaseRequest,
    Limits,
    Micros,
    Plan,
    QueuedJob,
    QueueKey,
    Refuse,
    Shape,
    Snapshot,
    Waiting,
    Worker,
)

__all__ = [
    "ANY_KIND",
    "AdmissionWindow",
    "Admit",
    "EndCause",
    "EndLease",
    "ExceedsMaximum",
    "Fragmented",
    "Grant",
    "HeldLease",
    "LeaseRequest",
    "Limits",
    "Micros",
    "NoCapacity",
    "NoWorkflow",
    "NotEvaluated",
    "Plan",
    "QueueKey",
    "QueuedJob",
    "QuotaReached",
    "Reason",
    "ReasonCode",
    "Refuse",
    "Shape",
    "Snapshot",
    "Waiting",
    "Worker",
    "plan",
]
