"""Phases that hold a lease: ask, wait, run, give back, and go again with a new lease when the attempt was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from control_plane.jobs.states import FailureKind
    from workers.workflows.contracts import (
        AttemptLoss,
        JobFailure,
        JobInput,
        LeasedPhase,
        LeaseEnd,
        LeaseGrant,
        LossReason,
        PhaseContext,
        ReleaseLease,
        RequestLease,
    )
    from workers.workflows.failures import PhaseFailedError, failure_of, loss_of
    from workers.workflows.steps import RELEASE_LEASE, REQUEST_LEASE

T = TypeVar("T")

Start = Callable[[LeaseGrant, float], workflow.ActivityHandle[T]]
"""Starts a phase's activity under a lease, with the seconds it may still run."""


@dataclass(frozen=True)
class RetryProfile:
    """How often a leased phase is tried. Verdicts on the job (out of memory and numeric failure too) are never retried."""

    attempts: int
    """Leases that may be lost before the job fails with ATTEMPTS_EXHAUSTED: a job that kills its runner is quarantined."""
    preemptions: int
    """Leases that may be given up because a worker was asked to stop, which is no fault of the job."""
    backoff: tuple[timedelta, ...]
    """Wait after the first, second, … lost attempt; the last one repeats."""


LEASED = RetryProfile(
    attempts=5,
    preemptions=100,
    backoff=(timedelta(), timedelta(seconds=2), timedelta(seconds=10), timedelta(seconds=30)),
)


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even when the workflow is cancelled meanwhile; the cancellation is not passed on."""
    task = asyncio.create_task(work)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise


def stop_if_cancelled() -> None:
    """Notices a cancellation that was swallowed: by an activity that ended well in that moment, or by a shield.

    Raises:
        CancelledError: the workflow was asked to stop.
    """
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


class Leases:
    """The leases of one job's workflow: fed by its signals, used by its run method."""

    def __init__(self, job: JobInput, profile: RetryProfile = LEASED) -> None:
        self._job = job
        self._profile = profile
        self._granted: dict[str, LeaseGrant] = {}
        self._lost: dict[str, LeaseEnd] = {}
        self._running: dict[str, workflow.ActivityHandle[Any]] = {}
        self.attempt = job.attempt
        """The newest attempt known. It follows the signal, not its use: a grant that nobody waits for any more counts too."""

    def grant(self, grant: LeaseGrant) -> None:
        """Takes the signal `lease_granted`; a repeated one changes nothing."""
        self._granted[grant.lease_id] = grant
        self.attempt = max(self.attempt, grant.attempt)

    def lose(self, end: LeaseEnd) -> None:
        """Takes the signal `lease_lost`: what runs under the lease is stopped."""
        self._lost[end.lease_id] = end
        if handle := self._running.get(end.lease_id):
            handle.cancel()

    def context(self) -> PhaseContext:
        """What the next activity is told."""
        return PhaseContext(job=self._job, attempt=self.attempt)

    async def run(self, phase: LeasedPhase, start: Start[T]) -> T:
        """Runs the activity that `start` starts, under one lease after another until one is not lost.

        The longest run time of the spec holds for all attempts of the phase together; waiting for a lease is not running.

        Raises:
            PhaseFailedError: a verdict, or the retry profile is used up.
            ActivityError: cancelled.
            CancelledError: cancelled while waiting.
        """
        losses = preemptions = 0
        left = float(self._job.spec.resources.max_run_seconds)
        while True:
            stop_if_cancelled()
            outcome, ran = await self._run_once(phase, start, left)
            left -= ran
            if not isinstance(outcome, AttemptLoss):
                return outcome
            workflow.logger.warning("attempt lost", extra={"phase": phase.value, "reason": outcome.reason.value})
            if outcome.reason is LossReason.PREEMPTED and left > 0 and preemptions < self._profile.preemptions:
                preemptions += 1
                continue
            losses += 1
            if left <= 0:
                message = f"the {phase.value.lower()} phase used up its longest run time over several attempts"
                raise PhaseFailedError(JobFailure(kind=FailureKind.RUN_TIME_EXCEEDED, message=message))
            if losses >= self._profile.attempts:
                raise PhaseFailedError(_exhausted(phase, losses, outcome))
            delay = self._profile.backoff[min(losses, len(self._profile.backoff)) - 1]
            if delay:
                await workflow.sleep(delay)

    async def _run_once(self, phase: LeasedPhase, start: Start[T], left: float) -> tuple[T | AttemptLoss, float]:
        """The result of one lease, and how many seconds its activity took."""
        lease_id = str(workflow.uuid4())
        ended_as = "cancelled"
        try:
            request = RequestLease(context=self.context(), lease_id=lease_id, phase=phase)
            await REQUEST_LEASE.run(request)
            stop_if_cancelled()
            await workflow.wait_condition(lambda: lease_id in self._granted or lease_id in self._lost)
            began = workflow.time()
            result = await self._under_lease(lease_id, start, left)
            ended_as = "lost" if isinstance(result, AttemptLoss) else "completed"
            return result, workflow.time() - began
        except PhaseFailedError:
            ended_as = "failed"
            raise
        finally:
            # Also withdraws a request that was never granted.
            release = ReleaseLease(context=self.context(), lease_id=lease_id, outcome=ended_as)
            await shielded(RELEASE_LEASE.run(release))

    async def _under_lease(self, lease_id: str, start: Start[T], left: float) -> T | AttemptLoss:
        if lease_id not in self._granted:
            # Grants are signalled before ends, so this request was refused: no machine could ever serve it.
            raise PhaseFailedError(_refused(self._lost[lease_id].reason))
        if lease_id in self._lost:
            return self._loss(lease_id)
        handle = start(self._granted[lease_id], left)
        self._running[lease_id] = handle
        try:
            return await handle
        except ActivityError as error:
            if is_cancelled_exception(error) and workflow.cancellation_reason() is None and lease_id in self._lost:
                return self._loss(lease_id)
            if is_cancelled_exception(error):
                raise
            if loss := loss_of(error):
                return loss
            raise PhaseFailedError(failure_of(error)) from error
        finally:
            del self._running[lease_id]

    def _loss(self, lease_id: str) -> AttemptLoss:
        return AttemptLoss(reason=LossReason.LEASE_LOST, message=self._lost[lease_id].reason)


def _refused(reason: str) -> JobFailure:
    return JobFailure(kind=FailureKind.USER_ERROR, message=f"the scheduler refused the lease that the spec asks for: {reason}")


def _exhausted(phase: LeasedPhase, losses: int, last: AttemptLoss) -> JobFailure:
    message = (
        f"the {phase.value.lower()} phase lost {losses} attempts, as many as its retry profile allows; "
        f"the last one: {last.message} ({last.reason.value})"
    )
    return JobFailure(kind=FailureKind.ATTEMPTS_EXHAUSTED, message=message)
