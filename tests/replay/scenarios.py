"""Lives a fine-tuning workflow can have, each played by canned activities against a real Temporal server.

`record.py` writes their histories, `test_replay.py` replays those, and `test_fine_tune_workflow.py` plays them live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from control_plane.jobs.spec import FineTuneSpec
from control_plane.jobs.states import FailureKind
from tests.waiting import until
from workers.workflows import contracts as c
from workers.workflows.failures import ATTEMPT_LOST
from workers.workflows.fine_tune import FineTuneWorkflow
from workers.workflows.steps import CPU_PHASE_QUEUE, CPU_QUEUE, gpu_queue

WORKER = "replay"
FILES = c.StoredFiles(manifest_uri="s3://headway/projects/demo/manifests/0", manifest_sha256="0" * 64)
PREPARED = c.PreparedData(dataset=FILES, base_model=FILES, train_rows=800, eval_rows=80, train_tokens=20_000, eval_tokens=2_000)
TRAINED = c.TrainedModel(adapter=FILES, final_loss=2.5, steps=10, tokens_per_second=100.0)
SCORES = c.Scores(
    base_loss=4.5,
    base_loss_se=0.2,
    tuned_loss=3.0,
    tuned_loss_se=0.1,
    gain=1.5,
    gain_se=0.2,
    rows=80,
    samples=(),
    records=FILES,
)
REGISTERED = c.RegisteredModel(model="answers", version=1, mlflow_version="1", alias="dev")


def job_input(job_id: str, pause: int = 0) -> c.JobInput:
    spec = FineTuneSpec.model_validate(
        {"base_model": "smollm2", "dataset": {"name": "faq", "sha256": "1" * 64}, "output_model": "answers"}
    )
    return c.JobInput(
        job_id=job_id,
        project="demo",
        spec=spec,
        spec_sha256="2" * 64,
        dataset_uri="s3://headway/projects/demo/blobs/1",
        base_model_uri="s3://headway/projects/demo/blobs/3",
        base_model_sha256="3" * 64,
        trace_id="4" * 32,
        pause=pause,
    )


def verdict(kind: FailureKind, message: str) -> ApplicationError:
    failure = c.JobFailure(kind=kind, message=message)
    return ApplicationError(message, failure, type=kind.value, non_retryable=True)


def lost(reason: c.LossReason) -> ApplicationError:
    return ApplicationError("lost", c.AttemptLoss(reason=reason, message="signal 9"), type=ATTEMPT_LOST)


Behaviour = Callable[["Cast"], Awaitable[Any]]


@dataclass
class Cast:
    """The activities of one play. Those with `…_plays` take one behaviour after another; without one they succeed."""

    client: Client
    train_plays: list[Behaviour] = field(default_factory=list[Behaviour])
    passed: bool = True
    prepare_error: ApplicationError | None = None
    grants: bool = True
    finish_plays: list[Behaviour] = field(default_factory=list[Behaviour])
    release_plays: list[Behaviour] = field(default_factory=list[Behaviour])
    confirm_plays: list[Behaviour] = field(default_factory=list[Behaviour])
    prepare_plays: list[Behaviour] = field(default_factory=list[Behaviour])
    register_plays: list[Behaviour] = field(default_factory=list[Behaviour])
    pause: int = 0
    attempt: int = 0
    training: asyncio.Event = field(default_factory=asyncio.Event)
    leases: list[str] = field(default_factory=list[str])
    releases: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    reasons: list[str] = field(default_factory=list[str])
    confirmed: asyncio.Queue[int] = field(default_factory=asyncio.Queue[int])
    phases: list[str] = field(default_factory=list[str])
    finished: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def handle(self) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(activity.info().workflow_id or "")

    async def grant(self, handle: WorkflowHandle[Any, Any], lease_id: str) -> None:
        self.attempt += 1
        grant = c.LeaseGrant(lease_id=lease_id, attempt=self.attempt, worker=WORKER, accelerators=1, accelerator_kind="cpu")
        await handle.signal("lease_granted", grant)

    @activity.defn
    async def prepare(self, context: c.PhaseContext) -> c.PreparedData:
        assert context.attempt == 0
        self.phases.append("prepare")
        if self.prepare_error:
            raise self.prepare_error
        if self.prepare_plays:
            await self.prepare_plays.pop(0)(self)
        return PREPARED

    @activity.defn
    async def request_lease(self, request: c.RequestLease) -> None:
        self.leases.append(request.lease_id)
        if self.grants:
            await self.grant(self.handle(), request.lease_id)

    @activity.defn
    async def release_lease(self, release: c.ReleaseLease) -> None:
        if self.release_plays:
            await self.release_plays.pop(0)(self)
        assert release.context.attempt == self.attempt
        self.releases.append((release.lease_id, release.outcome))
        self.reasons.append(release.reason)

    @activity.defn
    async def confirm_pause(self, confirm: c.ConfirmPause) -> None:
        assert len(self.releases) == len(self.leases), "whoever holds still holds no lease"
        if self.confirm_plays:
            await self.confirm_plays.pop(0)(self)
        assert confirm.context.attempt == self.attempt
        self.phases.append(f"pause {confirm.pause}")
        self.confirmed.put_nowait(confirm.pause)

    @activity.defn
    async def train(self, argument: c.TrainInput) -> c.TrainedModel:
        assert argument.context.attempt == argument.grant.attempt == self.attempt
        self.training.set()
        return await self.train_plays.pop(0)(self) if self.train_plays else TRAINED

    @activity.defn
    async def evaluate(self, argument: c.EvaluateInput) -> c.Scores:
        assert argument.trained == TRAINED
        return SCORES

    @activity.defn
    async def gate(self, argument: c.GateInput) -> c.GateDecision:
        return c.GateDecision(passed=self.passed, explanation="gain 1.5, needed 0.4")

    @activity.defn
    async def package(self, argument: c.PackageInput) -> c.Package:
        return c.Package(files=FILES)

    @activity.defn
    async def register(self, argument: c.RegisterInput) -> c.RegisteredModel:
        if self.register_plays:
            await self.register_plays.pop(0)(self)
        return REGISTERED

    @activity.defn
    async def finish_job(self, argument: c.FinishJob) -> c.FinishedJob:
        if self.finish_plays:
            await self.finish_plays.pop(0)(self)
        self.finished.append((argument.state, argument.context.attempt))
        return c.FinishedJob(state=argument.state)


async def until_cancelled(_cast: Cast) -> None:
    """Trains until asked to stop, as a runner does."""
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.1)


async def silent(_cast: Cast) -> None:
    """A worker that was stopped: no heartbeat, no end."""
    await asyncio.Event().wait()


def raises(error: Exception) -> Behaviour:
    async def play(_cast: Cast) -> None:
        raise error

    return play


async def _result(_cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await handle.result()


async def _cancel_in_training(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await cast.training.wait()
    await handle.cancel()


async def _answered(handle: WorkflowHandle[Any, c.JobOutcome], activities: int = 2) -> None:
    """Waits until so many activities have ended; after two the first lease is asked for."""

    async def ended() -> bool:
        # Asked again and again: the time-skipping server answers a request that waits for the next event after 20 s.
        events = (await handle.fetch_history()).events
        kinds = ("activity_task_completed_event_attributes", "activity_task_canceled_event_attributes")
        return sum(event.HasField(kind) for event in events for kind in kinds) >= activities

    await until(ended, f"{activities} activities have ended")


async def _cancel_in_queue(_cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    # A cancellation that meets the request's answer on its way trips the time-skipping server.
    await _answered(handle)
    await handle.cancel()


async def _lose_lease(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await cast.training.wait()
    await handle.signal("lease_lost", c.LeaseEnd(lease_id=cast.leases[0], reason="not renewed"))


async def _refuse_lease(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await _answered(handle)
    await handle.signal("lease_lost", c.LeaseEnd(lease_id=cast.leases[0], reason="8 accelerators, the largest has 1"))


async def _pause(handle: WorkflowHandle[Any, Any], pause: int = 1) -> None:
    await handle.signal("pause", c.PauseOrder(pause=pause, reason="for the demo"))


async def _resume(handle: WorkflowHandle[Any, Any], pause: int = 1) -> None:
    await handle.signal("resume", c.ResumeOrder(pause=pause))


async def pause_from_inside(cast: Cast) -> None:
    """The pause arrives while the activity runs, which goes on to its end."""
    await _pause(cast.handle())


async def _pause_in_training(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await cast.training.wait()
    await _pause(handle)
    assert await cast.confirmed.get() == 1
    await _pause(handle)
    await _resume(handle)


async def _pause_in_queue(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await _answered(handle)
    await _pause(handle)
    assert await cast.confirmed.get() == 1
    cast.grants = True
    await _resume(handle)


async def _resume_when_confirmed(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await _resume(handle, await cast.confirmed.get())


async def _pause_and_think_better(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await cast.training.wait()
    await _pause(handle)
    await _resume(handle)


async def _cancel_while_paused(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await cast.training.wait()
    await _pause(handle)
    await cast.confirmed.get()
    # The confirmation's answer and the cancellation must not meet on their way: see _cancel_in_queue.
    await _answered(handle, 5)
    await handle.cancel()


async def _preempt(cast: Cast, handle: WorkflowHandle[Any, c.JobOutcome]) -> None:
    await cast.training.wait()
    order = c.PreemptOrder(lease_id=cast.leases[0], reason="a machine goes to repair")
    await handle.signal("preempt", order)
    await handle.signal("preempt", order)


@dataclass(frozen=True)
class Scenario:
    """One life: how the cast plays, and what happens from outside."""

    cast: dict[str, Any] = field(default_factory=dict[str, Any])
    outside: Callable[[Cast, WorkflowHandle[Any, c.JobOutcome]], Awaitable[None]] = _result
    slow: bool = False
    """Takes the heartbeat timeout in real time."""


def _grant_too_late() -> Behaviour:
    async def play(cast: Cast) -> None:
        await cast.grant(cast.handle(), cast.leases[0])
        raise ApplicationError("attempt 0 is not current", type="STALE_ATTEMPT", non_retryable=True)

    return play


def scenarios() -> dict[str, Scenario]:
    """Every scenario by name; fresh at each call, for plays are used up."""
    crash = lost(c.LossReason.RUNNER_CRASHED)
    return {
        "succeeded": Scenario(),
        "invalid_dataset": Scenario({"prepare_error": verdict(FailureKind.INVALID_DATASET, "line 3 is empty")}),
        "numeric_failure": Scenario({"train_plays": [raises(verdict(FailureKind.NUMERIC, "loss is NaN at step 3"))]}),
        "gate_refused": Scenario({"passed": False}),
        "runner_crashed": Scenario({"train_plays": [raises(crash)]}),
        "attempts_exhausted": Scenario({"train_plays": [raises(crash)] * 5}),
        "preempted": Scenario({"train_plays": [raises(lost(c.LossReason.PREEMPTED))] * 2}),
        "worker_silent": Scenario({"train_plays": [silent]}, slow=True),
        "lease_lost": Scenario({"train_plays": [until_cancelled]}, _lose_lease),
        "lease_refused": Scenario({"grants": False}, _refuse_lease),
        "cancelled_in_training": Scenario({"train_plays": [until_cancelled]}, _cancel_in_training),
        "cancelled_in_queue": Scenario({"grants": False}, _cancel_in_queue),
        "paused_in_training": Scenario({"train_plays": [until_cancelled]}, _pause_in_training),
        "paused_in_queue": Scenario({"grants": False}, _pause_in_queue),
        "paused_in_preparation": Scenario({"prepare_plays": [pause_from_inside]}, _resume_when_confirmed),
        "paused_in_the_last_phase": Scenario({"register_plays": [pause_from_inside]}),
        "pause_taken_back": Scenario({"train_plays": [until_cancelled]}, _pause_and_think_better),
        "begun_paused": Scenario({"pause": 3}, _resume_when_confirmed),
        "granted_while_paused": Scenario({"grants": False, "confirm_plays": [_grant_too_late()]}, _pause_in_queue),
        "granted_while_withdrawn": Scenario({"grants": False, "release_plays": [_grant_too_late()]}, _pause_in_queue),
        "cancelled_while_paused": Scenario({"train_plays": [until_cancelled]}, _cancel_while_paused),
        "preempted_on_request": Scenario({"train_plays": [until_cancelled]}, _preempt),
        "granted_while_cancelled": Scenario({"grants": False, "finish_plays": [_grant_too_late()]}, _cancel_in_queue),
    }


async def play(client: Client, job_id: str, scenario: Scenario) -> tuple[Cast, c.JobOutcome]:
    """Plays a scenario to its end; returns the cast and the outcome."""
    cast = Cast(client, **scenario.cast)
    telling = [cast.request_lease, cast.release_lease, cast.confirm_pause, cast.gate, cast.finish_job]
    phases = [cast.prepare, cast.package, cast.register]
    throttle = timedelta(seconds=0.2)
    async with (
        Worker(client, task_queue=CPU_QUEUE, workflows=[FineTuneWorkflow], activities=telling, identity="cpu-worker"),
        Worker(client, task_queue=CPU_PHASE_QUEUE, activities=phases, identity="cpu-worker"),
        Worker(
            client,
            task_queue=gpu_queue(WORKER),
            activities=[cast.train, cast.evaluate],
            identity="gpu-worker",
            max_heartbeat_throttle_interval=throttle,
        ),
    ):
        handle = await client.start_workflow(
            FineTuneWorkflow.run,
            job_input(job_id, cast.pause),
            id=job_id,
            task_queue=CPU_QUEUE,
            retry_policy=RetryPolicy(maximum_attempts=1),
        )
        await scenario.outside(cast, handle)
        return cast, await handle.result()
