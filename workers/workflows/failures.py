"""What a failed activity means for its job: an attempt lost, a verdict for good, or a cancellation.

Activities raise `ApplicationError` with one of these types: the value of a `FailureKind` (a verdict; the detail is a
`JobFailure`), ATTEMPT_LOST (the detail is an `AttemptLoss`), or STALE_ATTEMPT.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType
from temporalio.exceptions import TimeoutError as ActivityTimeoutError

with workflow.unsafe.imports_passed_through():
    from control_plane.jobs.states import FailureKind
    from workers.workflows.contracts import AttemptLoss, JobFailure, LossReason

ATTEMPT_LOST = "ATTEMPT_LOST"
STALE_ATTEMPT = "STALE_ATTEMPT"
"""Another attempt is current: whoever gets this has been replaced and must change nothing more."""

_VERDICTS = frozenset(kind.value for kind in FailureKind)
_LOST_BY_TIMEOUT: dict[TimeoutType | None, tuple[LossReason, str]] = {
    TimeoutType.HEARTBEAT: (LossReason.AGENT_LOST, "the worker was silent for longer than the heartbeat timeout"),
    TimeoutType.SCHEDULE_TO_START: (LossReason.NOT_STARTED, "the worker that holds the lease did not pick it up"),
}


class PhaseFailedError(Exception):
    """A phase ended with a verdict on the job."""

    def __init__(self, failure: JobFailure) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure


def loss_of(error: ActivityError) -> AttemptLoss | None:
    """How a leased activity's attempt was lost; None when its failure is a verdict or a cancellation."""
    cause = error.cause
    if isinstance(cause, ActivityTimeoutError) and cause.type in _LOST_BY_TIMEOUT:
        reason, message = _LOST_BY_TIMEOUT[cause.type]
        return AttemptLoss(reason=reason, message=message)
    if isinstance(cause, ApplicationError) and cause.type == ATTEMPT_LOST:
        detail = _detail(cause)
        return AttemptLoss.model_validate(detail) if detail else None
    if isinstance(cause, ApplicationError) and cause.type == STALE_ATTEMPT:
        return AttemptLoss(reason=LossReason.LEASE_LOST, message=cause.message)
    if isinstance(cause, ApplicationError) and cause.type not in _VERDICTS:
        # A server out of reach, or a fault of our own: another try, on another worker perhaps, may do.
        return AttemptLoss(reason=LossReason.PLATFORM_UNAVAILABLE, message=f"{cause.type}: {cause.message}")
    return None


def is_stale(error: BaseException) -> bool:
    """Whether the activity was refused because another attempt is current."""
    cause = error.cause if isinstance(error, ActivityError) else None
    return isinstance(cause, ApplicationError) and cause.type == STALE_ATTEMPT


def failure_of(error: ActivityError) -> JobFailure:
    """The verdict on the job in a failed activity; what was not typed by the activity is a fault of the platform."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type in _VERDICTS:
        try:
            return JobFailure.model_validate(_detail(cause))
        except ValidationError:
            return JobFailure(kind=FailureKind(cause.type), message=cause.message)
    if isinstance(cause, ActivityTimeoutError) and cause.type is TimeoutType.START_TO_CLOSE:
        message = f"the {error.activity_type} activity was stopped at its longest run time"
        return JobFailure(kind=FailureKind.RUN_TIME_EXCEEDED, message=message)
    told = cause.message if isinstance(cause, ApplicationError | ActivityTimeoutError) else str(cause or error)
    return JobFailure(kind=FailureKind.PLATFORM, message=f"the {error.activity_type} activity failed: {told}")


def _detail(error: ApplicationError) -> Any:
    return error.details[0] if error.details else None
