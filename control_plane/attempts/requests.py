"""What the messages of AttemptService ask for, by itself and by the batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from control_plane.attempts.finishing import JobEnd
from control_plane.attempts.leasing import LeaseRequest
from control_plane.errors import RefusedError, invalid_field
from control_plane.jobs.convert import failure_from_proto
from control_plane.jobs.states import JobPhase, JobState
from control_plane.rpc.convert import identifier
from control_plane.scheduling.shapes import shape_of_message
from headway.attempts.v1 import attempt_service_pb2 as pb
from headway.jobs.v1 import job_pb2

_M = TypeVar("_M")
_T = TypeVar("_T")
_O = TypeVar("_O")

BATCH_MAX = 1_000
_RUN_SECONDS_MAX = 2_592_000
_FINAL_STATES = {
    int(job_pb2.JOB_STATE_SUCCEEDED): JobState.SUCCEEDED,
    int(job_pb2.JOB_STATE_FAILED): JobState.FAILED,
    int(job_pb2.JOB_STATE_CANCELLED): JobState.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Batch(Generic[_T]):
    """Many requests of a kind: what each asks for, or why it is not valid."""

    items: Sequence[_T | RefusedError]

    async def carry_out(self, work: Callable[[Sequence[_T]], Awaitable[Sequence[_O]]]) -> list[_O | RefusedError]:
        """Does `work` for those that are valid, which returns an outcome of each; returns the outcomes of all, in order."""
        valid = [item for item in self.items if not isinstance(item, RefusedError)]
        outcomes = iter(await work(valid))
        return [item if isinstance(item, RefusedError) else next(outcomes) for item in self.items]


def batch(requests: Sequence[_M], read: Callable[[_M], _T]) -> Batch[_T]:
    """What a batch asks for.

    Args:
        requests: its messages.
        read: what one of them asks for; it may refuse.

    Raises:
        RefusedError: it has too many, or none.
    """
    if not 1 <= len(requests) <= BATCH_MAX:
        raise invalid_field("requests", f"holds {len(requests)}; expected 1 to {BATCH_MAX:,}")
    items: list[_T | RefusedError] = []
    for request in requests:
        try:
            items.append(read(request))
        except RefusedError as refusal:
            items.append(refusal)
    return Batch(items)


def lease_request(request: pb.RequestLeaseRequest) -> LeaseRequest:
    """The lease that a message asks for.

    Raises:
        RefusedError: a field breaks its limits.
    """
    lease_id, job_id = identifier(request.lease_id, "lease_id"), identifier(request.job_id, "job_id")
    phase = phase_of(request.phase)
    shape = shape_of_message(request.shape, "shape")
    if not 1 <= request.max_run_seconds <= _RUN_SECONDS_MAX:
        raise invalid_field("max_run_seconds", f"is {request.max_run_seconds}; expected 1 to {_RUN_SECONDS_MAX:,}")
    return LeaseRequest(lease_id, job_id, request.attempt, phase, shape, request.max_run_seconds)


def job_end(request: pb.FinishJobRequest) -> JobEnd:
    """The end of a job that a message tells of.

    Raises:
        RefusedError: a field breaks its limits.
    """
    job_id = identifier(request.job_id, "job_id")
    target = _FINAL_STATES.get(request.state)
    if target is None:
        raise invalid_field("state", f"is {request.state}; expected JOB_STATE_SUCCEEDED, FAILED or CANCELLED")
    if (target is JobState.FAILED) != request.HasField("failure"):
        raise invalid_field("failure", "expected to be set exactly when state is FAILED")
    if request.HasField("failure") and request.failure.kind not in job_pb2.FailureKind.values()[1:]:
        raise invalid_field("failure.kind", f"is {request.failure.kind}; expected a FailureKind")
    failure = failure_from_proto(request.failure) if request.HasField("failure") else None
    return JobEnd(job_id, request.attempt, target, failure)


def phase_of(value: int) -> JobPhase:
    """The phase of that number.

    Raises:
        RefusedError: there is none.
    """
    if value == 0 or value not in job_pb2.JobPhase.values():
        raise invalid_field("phase", f"is {value}; expected a JobPhase")
    return JobPhase(job_pb2.JobPhase.Name(job_pb2.JobPhase.ValueType(value)).removeprefix("JOB_PHASE_"))
