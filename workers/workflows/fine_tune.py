"""Supervised fine-tuning, from data to registered model.

    prepare ─ [lease: train] ─ [lease: evaluate] ─ gate ─ package ─ register ─ finish

The workflow only drives. Postgres decides: which attempt is current, who holds a lease, in which state the job ended.
"""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

# `from package import module` would load the module a second time inside the sandbox; name what is needed instead.
with workflow.unsafe.imports_passed_through():
    import asyncio
    from datetime import timedelta

    from control_plane.jobs.states import FailureKind, JobState
    from workers.workflows.contracts import (
        EvaluateInput,
        FinishedJob,
        FinishJob,
        GateInput,
        JobFailure,
        JobInput,
        JobOutcome,
        LeasedPhase,
        LeaseEnd,
        LeaseGrant,
        PackageInput,
        RegisteredModel,
        RegisterInput,
        Scores,
        TrainedModel,
        TrainInput,
    )
    from workers.workflows.failures import STALE_ATTEMPT, PhaseFailedError, failure_of, is_stale
    from workers.workflows.leasing import Leases, shielded, stop_if_cancelled
    from workers.workflows.steps import EVALUATE, FINISH_JOB, GATE, PACKAGE, PREPARE, REGISTER, TRAIN

_SIGNAL_PATIENCE = timedelta(minutes=5)
"""A grant is committed before it is signalled; this is how long its signal may be under way."""


@workflow.defn(name="FineTuneWorkflow")
class FineTuneWorkflow:
    """Runs one fine-tuning job. Workflow id = job id."""

    @workflow.init
    def __init__(self, job: JobInput) -> None:
        self._job = job
        self._leases = Leases(job)

    @workflow.signal
    def lease_granted(self, grant: LeaseGrant) -> None:
        """A lease asked for is held from now on."""
        self._leases.grant(grant)

    @workflow.signal
    def lease_lost(self, end: LeaseEnd) -> None:
        """A lease ended under its holder."""
        self._leases.lose(end)

    @workflow.run
    async def run(self, job: JobInput) -> JobOutcome:
        """Runs the phases, and records the job's end however they ended.

        Raises:
            ApplicationError: of type STALE_ATTEMPT, when Postgres says that another workflow runs this job.
        """
        model: RegisteredModel | None = None
        failure: JobFailure | None = None
        try:
            model = await self._make_model(job)
            state = JobState.SUCCEEDED
        except PhaseFailedError as error:
            state, failure = JobState.FAILED, error.failure
        except (ActivityError, asyncio.CancelledError) as error:
            if is_cancelled_exception(error):
                state = JobState.CANCELLED
            elif isinstance(error, ActivityError):
                state, failure = JobState.FAILED, failure_of(error)
            else:
                raise
        finished = await shielded(self._finish(state, failure))
        return JobOutcome(state=finished.state, failure=failure, model=model)

    async def _make_model(self, job: JobInput) -> RegisteredModel:
        leases = self._leases

        def start_training(grant: LeaseGrant, left: float) -> workflow.ActivityHandle[TrainedModel]:
            argument = TrainInput(context=leases.context(), grant=grant, prepared=prepared, run_seconds_left=left)
            return TRAIN.start(argument, grant, left)

        def start_evaluation(grant: LeaseGrant, left: float) -> workflow.ActivityHandle[Scores]:
            argument = EvaluateInput(
                context=leases.context(), grant=grant, prepared=prepared, trained=trained, run_seconds_left=left
            )
            return EVALUATE.start(argument, grant, left)

        prepared = await PREPARE.run(leases.context())
        stop_if_cancelled()
        trained = await leases.run(LeasedPhase.TRAIN, start_training)
        stop_if_cancelled()
        scores = await leases.run(LeasedPhase.EVALUATE, start_evaluation)
        stop_if_cancelled()
        decision = await GATE.run(GateInput(context=leases.context(), scores=scores))
        if not decision.passed:
            raise PhaseFailedError(JobFailure(kind=FailureKind.GATE_REFUSED, message=decision.explanation))
        stop_if_cancelled()
        package = await PACKAGE.run(PackageInput(context=leases.context(), prepared=prepared, trained=trained, scores=scores))
        stop_if_cancelled()
        return await REGISTER.run(RegisterInput(context=leases.context(), package=package, scores=scores))

    async def _finish(self, state: JobState, failure: JobFailure | None) -> FinishedJob:
        while True:
            context = self._leases.context()
            try:
                return await FINISH_JOB.run(FinishJob(context=context, state=state.value, failure=failure))
            except ActivityError as error:
                if not is_stale(error):
                    raise
            await self._newer_attempt(context.attempt)

    async def _newer_attempt(self, known: int) -> None:
        # A lease granted while the job was being stopped has moved the attempt on, and its signal is still under way.
        try:
            await workflow.wait_condition(lambda: self._leases.attempt > known, timeout=_SIGNAL_PATIENCE)
        except TimeoutError:
            message = f"attempt {known} of job {self._job.job_id} is not current; another workflow runs this job"
            raise ApplicationError(message, type=STALE_ATTEMPT, non_retryable=True) from None
