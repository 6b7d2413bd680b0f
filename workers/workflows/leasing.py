"""Phases that hold a lease: ask, wait, run, give back, and go again with a new lease when the attempt was lost.

What asks an attempt to stop (a pause, a preemption, a lease that ended) cancels its activity, whose runner then stops at a
checkpoint. None of it adds a command to a history that lacks its signal, so the histories of before replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from control_plane.jobs.states import FailureKind
    from workers.workflows.contracts import (
        AttemptLoss,
        ConfirmPause,
        JobFailure,
        JobInput,
        LeasedPhase,
        LeaseEnd,
        LeaseGrant,
        LossReason,
        PauseOrder,
        PhaseContext,
        PreemptOrder,
        ReleaseLease,
        RequestLease,
        ResumeOrder,
    )
    from workers.workflows.failures import STALE_ATTEMPT, PhaseFailedError, failure_of, is_stale, loss_of
    from workers.workflows.pausing import Pauses
    from workers.workflows.steps import CONFIRM_PAUSE, RELEASE_LEASE, REQUEST_LEASE

T = TypeVar("T")

Start = Callable[[LeaseGrant, float], workflow.ActivityHandle[T]]
"""Starts a phase's activity under a lease, with the seconds it may still run."""

_SIGNAL_PATIENCE = timedelta(minutes=5)
"""A grant is committed before it is signalled; this is how long its signal may be under way."""
_REASON_MAX = 1_000
"""Characters of a reason that the control plane takes."""
_GIVEN_UP = {LossReason.PREEMPTED: "preempted", LossReason.DISPLACED: "preempted", LossReason.PAUSED: "paused"}
"""How a lease ended that was given up, not lost."""


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
        self._pauses = Pauses(job)
        self._granted: dict[str, LeaseGrant] = {}
        self._lost: dict[str, LeaseEnd] = {}
        self._running: dict[str, workflow.ActivityHandle[Any]] = {}
        self._stopped: dict[str, AttemptLoss] = {}
        self.attempt = job.attempt
        """The newest attempt known. It follows the signal, not its use: a grant that nobody waits for any more counts too."""

    def grant(self, grant: LeaseGrant) -> None:
        """Takes the signal `lease_granted`; a repeated one changes nothing."""
        self._granted[grant.lease_id] = grant
        self.attempt = max(self.attempt, grant.attempt)

    def lose(self, end: LeaseEnd) -> None:
        """Takes the signal `lease_lost`: what runs under the lease is stopped."""
        self._lost[end.lease_id] = end
        self._stop(end.lease_id, AttemptLoss(reason=LossReason.LEASE_LOST, message=end.reason))

    def preempt(self, order: PreemptOrder) -> None:
        """Takes the signal `preempt`: what runs under the lease is stopped, and goes on under another."""
        why = f": {order.reason}" if order.reason else ""
        self._stop(order.lease_id, AttemptLoss(reason=LossReason.DISPLACED, message=f"the lease was asked back{why}"))

    def pause(self, order: PauseOrder) -> None:
        """Takes the signal `pause`: what runs under a lease is stopped, and what would come next waits."""
        self._pauses.ask(order)
        if self._pauses.hold:
            for lease_id in list(self._running):
                self._stop(lease_id, self._paused())

    def resume(self, order: ResumeOrder) -> None:
        """Takes the signal `resume`."""
        self._pauses.end(order)

    def context(self) -> PhaseContext:
        """What the next activity is told."""
        return PhaseContext(job=self._job, attempt=self.attempt)

    async def hold(self) -> None:
        """Waits while the job is to hold still. Called where it holds no lease; says so first.

        Raises:
            ActivityError, CancelledError: cancelled.
        """
        while self._pauses.hold:
            pause = self._pauses.newest

            def confirm(context: PhaseContext, pause: int = pause) -> Coroutine[Any, Any, None]:
                return CONFIRM_PAUSE.run(ConfirmPause(context=context, pause=pause))

            await self.tell(confirm)
            stop_if_cancelled()
            await workflow.wait_condition(lambda pause=pause: self._pauses.over(pause))

    async def tell(self, told: Callable[[PhaseContext], Coroutine[Any, Any, T]]) -> T:
        """Tells the control plane something as the newest attempt.

        Raises:
            ApplicationError: of type STALE_ATTEMPT, when Postgres says that another workflow runs this job.
            ActivityError: as `told`.
        """
        while True:
            context = self.context()
            try:
                return await told(context)
            except ActivityError as error:
                if not is_stale(error):
                    raise
            await self._newer_attempt(context.attempt)

    async def _newer_attempt(self, known: int) -> None:
        # A lease granted while the job was being stopped has moved the attempt on, and its signal is still under way.
        try:
            await workflow.wait_condition(lambda: self.attempt > known, timeout=_SIGNAL_PATIENCE)
        except TimeoutError:
            message = f"attempt {known} of job {self._job.job_id} is not current; another workflow runs this job"
            raise ApplicationError(message, type=STALE_ATTEMPT, non_retryable=True) from None

    async def run(self, phase: LeasedPhase, start: Start[T]) -> T:
        """Runs the activity that `start` starts, under one lease after another until one is not lost.

        The longest run time of the spec holds for all attempts of the phase together; waiting for a lease and pausing are not
        running.

        Raises:
            PhaseFailedError: a verdict, or the retry profile is used up.
            ActivityError: cancelled.
            CancelledError: cancelled while waiting.
        """
        losses = preemptions = 0
        left = float(self._job.spec.resources.max_run_seconds)
        while True:
            stop_if_cancelled()
            await self.hold()
            outcome, ran = await self._run_once(phase, start, left)
            left -= ran
            if not isinstance(outcome, AttemptLoss):
                return outcome
            workflow.logger.warning("attempt lost", extra={"phase": phase.value, "reason": outcome.reason.value})
            preemptions += outcome.reason is LossReason.PREEMPTED
            if outcome.reason in _GIVEN_UP and left > 0 and preemptions <= self._profile.preemptions:
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
        reason = ""
        try:
            request = RequestLease(context=self.context(), lease_id=lease_id, phase=phase)
            await REQUEST_LEASE.run(request)
            stop_if_cancelled()
            await workflow.wait_condition(lambda: lease_id in self._granted or lease_id in self._lost or self._pauses.hold)
            began = workflow.time()
            result = await self._under_lease(lease_id, start, left)
            if isinstance(result, AttemptLoss):
                ended_as = _GIVEN_UP.get(result.reason, "lost")
                reason = f"{result.reason.value}: {result.message}"[:_REASON_MAX]
            else:
                ended_as = "completed"
            return result, workflow.time() - began
        except PhaseFailedError:
            ended_as = "failed"
            raise
        finally:
            await shielded(self.tell(lambda context: _release(context, lease_id, ended_as, reason)))

    async def _under_lease(self, lease_id: str, start: Start[T], left: float) -> T | AttemptLoss:
        if lease_id in self._lost and lease_id not in self._granted:
            # Grants are signalled before ends, so this request was refused: no machine could ever serve it.
            raise PhaseFailedError(_refused(self._lost[lease_id].reason))
        if lease_id in self._stopped:
            return self._stopped[lease_id]
        if self._pauses.hold:
            return self._paused()
        handle = start(self._granted[lease_id], left)
        self._running[lease_id] = handle
        try:
            return await handle
        except ActivityError as error:
            if is_cancelled_exception(error) and workflow.cancellation_reason() is None and lease_id in self._stopped:
                return self._stopped[lease_id]
            if is_cancelled_exception(error):
                raise
            if loss := loss_of(error):
                return loss
            raise PhaseFailedError(failure_of(error)) from error
        finally:
            del self._running[lease_id]

    def _stop(self, lease_id: str, loss: AttemptLoss) -> None:
        """Stops what runs under a lease, or is about to. That a lease is gone outweighs that it was asked back."""
        if loss.reason is LossReason.LEASE_LOST:
            self._stopped[lease_id] = loss
        else:
            self._stopped.setdefault(lease_id, loss)
        if handle := self._running.get(lease_id):
            handle.cancel()

    def _paused(self) -> AttemptLoss:
        reason = self._pauses.reason
        return AttemptLoss(
            reason=LossReason.PAUSED, message=f"the job is to pause: {reason}" if reason else "the job is to pause"
        )


def _release(context: PhaseContext, lease_id: str, outcome: str, reason: str) -> Coroutine[Any, Any, None]:
    """Gives a lease back. Also withdraws a request that was never granted, or is granted in that moment."""
    return RELEASE_LEASE.run(ReleaseLease(context=context, lease_id=lease_id, outcome=outcome, reason=reason))


def _refused(reason: str) -> JobFailure:
    return JobFailure(kind=FailureKind.USER_ERROR, message=f"the scheduler refused the lease that the spec asks for: {reason}")


def _exhausted(phase: LeasedPhase, losses: int, last: AttemptLoss) -> JobFailure:
    message = (
        f"the {phase.value.lower()} phase lost {losses} attempts, as many as its retry profile allows; "
        f"the last one: {last.message} ({last.reason.value})"
    )
    return JobFailure(kind=FailureKind.ATTEMPTS_EXHAUSTED, message=message)
