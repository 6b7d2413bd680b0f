from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from temporalio.exceptions import ActivityError, ApplicationError, RetryState, TimeoutType
from temporalio.exceptions import TimeoutError as ActivityTimeoutError

from control_plane.jobs.states import FailureKind
from workers.activities import attempt_lost, verdict
from workers.workflows.contracts import DataViolation, JobFailure, LossReason
from workers.workflows.failures import STALE_ATTEMPT, failure_of, is_stale, loss_of


def activity_error(cause: BaseException) -> ActivityError:
    error = ActivityError(
        "failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="",
        activity_type="train",
        activity_id="1",
        retry_state=RetryState.NON_RETRYABLE_FAILURE,
    )
    error.__cause__ = cause
    return error


def timeout(kind: TimeoutType) -> ActivityTimeoutError:
    details: Sequence[Any] = []
    return ActivityTimeoutError("timed out", type=kind, last_heartbeat_details=details)


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (timeout(TimeoutType.HEARTBEAT), LossReason.AGENT_LOST),
        (timeout(TimeoutType.SCHEDULE_TO_START), LossReason.NOT_STARTED),
        (timeout(TimeoutType.START_TO_CLOSE), None),
        (ApplicationError("stale", type=STALE_ATTEMPT), LossReason.LEASE_LOST),
        (ApplicationError("no answer", type="UNAVAILABLE"), LossReason.PLATFORM_UNAVAILABLE),
        (ApplicationError("out of memory", type="OUT_OF_MEMORY"), None),
    ],
)
def test_what_loses_an_attempt(cause: BaseException, reason: LossReason | None) -> None:
    loss = loss_of(activity_error(cause))
    assert (loss and loss.reason) == reason


def test_a_typed_loss_keeps_its_reason() -> None:
    error = attempt_lost(LossReason.PREEMPTED, "at step 3")
    as_decoded = ApplicationError(error.message, error.details[0].model_dump(), type=error.type)
    loss = loss_of(activity_error(as_decoded))
    assert loss is not None
    assert (loss.reason, loss.message) == (LossReason.PREEMPTED, "at step 3")


def test_a_verdict_keeps_its_violations() -> None:
    violation = DataViolation(path="/prompt", line=3, code="empty", message="expected text")
    failure = JobFailure(kind=FailureKind.INVALID_DATASET, message="1 fault", violations=(violation,), violation_count=1)
    error = verdict(failure)
    assert error.non_retryable
    as_decoded = ApplicationError(error.message, error.details[0].model_dump(mode="json"), type=error.type)
    assert failure_of(activity_error(as_decoded)) == failure


def test_a_failure_stays_small_enough_to_travel() -> None:
    violation = DataViolation(path="/prompt", line=3, code="empty", message="x" * 1_000)
    failure = JobFailure(kind=FailureKind.INVALID_DATASET, message="many", violations=(violation,) * 5_000)
    carried: JobFailure = verdict(failure).details[0]
    assert 100 < len(carried.violations) < 300
    assert carried.violation_count == 5_000


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (timeout(TimeoutType.START_TO_CLOSE), FailureKind.RUN_TIME_EXCEEDED),
        (timeout(TimeoutType.SCHEDULE_TO_CLOSE), FailureKind.PLATFORM),
        (ApplicationError("no answer", type="UNAVAILABLE"), FailureKind.PLATFORM),
        (ApplicationError("no detail", type="INTEGRITY"), FailureKind.INTEGRITY),
    ],
)
def test_failures_without_detail(cause: BaseException, kind: FailureKind) -> None:
    assert failure_of(activity_error(cause)).kind is kind


def test_stale() -> None:
    assert is_stale(activity_error(ApplicationError("stale", type=STALE_ATTEMPT)))
    assert not is_stale(activity_error(ApplicationError("other", type="UNAVAILABLE")))
    assert not is_stale(ValueError())
