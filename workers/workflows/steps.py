"""Every activity as workflows see it: its name, what it takes and returns, and every timeout and retry rule, as data.

Nothing here is left to a default. Times are bounds, not estimates: start-to-close ends one try that hangs, the heartbeat
timeout notices a worker that died, schedule-to-start notices one that never came.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from pydantic import BaseModel
from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from workers.workflows import contracts as c

In = TypeVar("In", bound=BaseModel)
Out = TypeVar("Out", bound=BaseModel | None)

CPU_QUEUE = "cpu"
"""Task queue of every workflow, and of the activities that only tell the control plane something."""
CPU_PHASE_QUEUE = "cpu.phases"
"""Task queue of the phases that work on a CPU worker. A lease must not wait for its release behind long preparations."""


def gpu_queue(worker: str) -> str:
    """Task queue of one GPU worker. A lease names the worker, so its phase runs there and nowhere else."""
    return f"gpu.{worker}"


HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""A worker that is silent this long has lost its activity. Workers heartbeat several times within it."""

_DISPATCH_TIMEOUT = timedelta(seconds=30)
_STAGING_MARGIN = timedelta(minutes=30)
"""Beyond the longest run time: downloads before the runner starts, uploads after it ended."""

# Transient faults of servers pass within minutes; what lasts longer is for an operator, and the job fails and says so.
_PATIENT = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=40,
)
# What gives resources back or records the end is never given up while anybody could still repair the servers.
_TENACIOUS = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(minutes=1),
    maximum_attempts=0,
)
# Leased work is never repeated under the same lease: the workflow asks for a new one, so Postgres alone counts attempts.
_ONCE = RetryPolicy(maximum_attempts=1)


@dataclass(frozen=True)
class Step(Generic[In, Out]):
    """One activity and the rules it runs under."""

    name: str
    result: type[Out] | None
    start_to_close: timedelta
    retry: RetryPolicy
    schedule_to_close: timedelta
    heartbeat: timedelta | None = None
    queue: str = CPU_QUEUE

    async def run(self, argument: In) -> Out:
        """Runs the activity on a CPU worker.

        Raises:
            ActivityError: it failed for good, or was cancelled.
        """
        return await workflow.execute_activity(
            self.name,
            argument,
            task_queue=self.queue,
            result_type=self.result,
            start_to_close_timeout=self.start_to_close,
            schedule_to_close_timeout=self.schedule_to_close,
            heartbeat_timeout=self.heartbeat,
            retry_policy=self.retry,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


@dataclass(frozen=True)
class LeasedStep(Generic[In, Out]):
    """One activity that runs under a lease, on the worker the lease names."""

    name: str
    result: type[Out]

    def start(self, argument: In, grant: c.LeaseGrant, run_seconds_left: float) -> workflow.ActivityHandle[Out]:
        """Starts the activity's one and only try. Cancelling the handle waits until the runner has stopped."""
        return workflow.start_activity(
            self.name,
            argument,
            task_queue=gpu_queue(grant.worker),
            result_type=self.result,
            start_to_close_timeout=timedelta(seconds=run_seconds_left) + _STAGING_MARGIN,
            schedule_to_start_timeout=_DISPATCH_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=_ONCE,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


_RPC = timedelta(minutes=1)
_DAY = timedelta(days=1)

PREPARE = Step[c.PhaseContext, c.PreparedData](
    "prepare", c.PreparedData, timedelta(hours=6), _PATIENT, 2 * _DAY, timedelta(seconds=30), CPU_PHASE_QUEUE
)
REQUEST_LEASE = Step[c.RequestLease, None]("request_lease", None, _RPC, _TENACIOUS, 7 * _DAY)
TRAIN = LeasedStep[c.TrainInput, c.TrainedModel]("train", c.TrainedModel)
EVALUATE = LeasedStep[c.EvaluateInput, c.Scores]("evaluate", c.Scores)
RELEASE_LEASE = Step[c.ReleaseLease, None]("release_lease", None, _RPC, _TENACIOUS, 30 * _DAY)
GATE = Step[c.GateInput, c.GateDecision]("gate", c.GateDecision, _RPC, _PATIENT, _DAY)
PACKAGE = Step[c.PackageInput, c.Package](
    "package", c.Package, timedelta(hours=2), _PATIENT, _DAY, timedelta(seconds=30), CPU_PHASE_QUEUE
)
REGISTER = Step[c.RegisterInput, c.RegisteredModel](
    "register", c.RegisteredModel, timedelta(minutes=10), _PATIENT, _DAY, timedelta(seconds=30), CPU_PHASE_QUEUE
)
CONFIRM_PAUSE = Step[c.ConfirmPause, None]("confirm_pause", None, _RPC, _TENACIOUS, 30 * _DAY)
FINISH_JOB = Step[c.FinishJob, c.FinishedJob]("finish_job", c.FinishedJob, _RPC, _TENACIOUS, 30 * _DAY)
