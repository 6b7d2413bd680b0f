"""What every activity needs: heartbeats, children that stop with it, and errors in the workflow's terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError

from control_plane.jobs.states import FailureKind
from headway_client.errors import HeadwayError
from workers.child import Child
from workers.control_plane import STALE_ATTEMPT, fenced_off
from workers.programs import describe_exit
from workers.storage import IntegrityError, ObjectMissingError, StorageError
from workers.workflows.contracts import AttemptLoss, JobFailure, LossReason, PhaseContext
from workers.workflows.failures import ATTEMPT_LOST

_HEARTBEAT_SECONDS = 1.0
HEARTBEAT_THROTTLE = timedelta(seconds=2)
"""How often heartbeats go out at least; the SDK's own choice would leave a fifth of the timeout as slack."""
_VIOLATIONS_BYTES_MAX = 200_000
"""A failure travels through Temporal twice, and a history should stay small."""


class WorkerStopsError(Exception):
    """The worker was asked to stop while its activity ran."""


def verdict(failure: JobFailure) -> ApplicationError:
    """The error with which an activity ends the job for good."""
    return ApplicationError(failure.message, _bounded(failure), type=failure.kind.value, non_retryable=True)


def verdict_of(kind: FailureKind, message: str) -> ApplicationError:
    """As `verdict`, for a failure without violations."""
    return verdict(JobFailure(kind=kind, message=message))


def attempt_lost(reason: LossReason, message: str) -> ApplicationError:
    """The error with which a leased activity gives its attempt up, and the workflow asks for a new lease."""
    return ApplicationError(message, AttemptLoss(reason=reason, message=message), type=ATTEMPT_LOST, non_retryable=True)


@asynccontextmanager
async def heartbeating() -> AsyncGenerator[None]:
    """Heartbeats while the block runs, whatever it waits for."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def translated(context: PhaseContext) -> Generator[None]:
    """Turns the errors of servers into what the workflow understands; what may pass stays retryable.

    Log lines of the block carry the job's id, its attempt and its trace.
    """
    with structlog.contextvars.bound_contextvars(job_id=context.job.job_id, attempt=context.attempt):
        try:
            yield
        except HeadwayError as error:
            if error.reason == STALE_ATTEMPT:
                raise ApplicationError(error.message, type=STALE_ATTEMPT, non_retryable=True) from error
            if fenced_off(error):
                raise attempt_lost(LossReason.LEASE_LOST, error.message) from error
            raise ApplicationError(str(error), type=error.reason or error.code.name) from error
        except IntegrityError as error:
            raise verdict_of(FailureKind.INTEGRITY, str(error)) from error
        except (ObjectMissingError, StorageError) as error:
            raise ApplicationError(str(error), type=type(error).__name__) from error


async def supervise(child: Child, grace_seconds: float) -> int:
    """Waits for a child under its activity; returns its exit code.

    When the activity is cancelled or the worker is to stop, the child is asked to stop too, and killed after the grace.

    Raises:
        CancelledError: the activity was cancelled; the child is gone.
        WorkerStopsError: the worker is to stop; the child is gone.
    """
    exited = asyncio.create_task(child.wait())
    shutdown = asyncio.create_task(activity.wait_for_worker_shutdown())
    try:
        await asyncio.wait({exited, shutdown}, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            return exited.result()
        code = await child.stop(grace_seconds)
        raise WorkerStopsError(f"the worker was asked to stop; its child then ended with {describe_exit(code)}")
    except asyncio.CancelledError:
        await asyncio.shield(child.stop(grace_seconds))
        raise
    finally:
        exited.cancel()
        shutdown.cancel()


def _bounded(failure: JobFailure) -> JobFailure:
    kept = 0
    size = 0
    for violation in failure.violations[:1_000]:
        size += len(violation.model_dump_json())
        if size > _VIOLATIONS_BYTES_MAX:
            break
        kept += 1
    count = max(failure.violation_count, len(failure.violations))
    return failure.model_copy(update={"violations": failure.violations[:kept], "violation_count": count})
