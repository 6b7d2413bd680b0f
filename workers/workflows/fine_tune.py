"""Supervised fine-tuning, from data to registered model.

    prepare ─ [lease: train] ─ [lease: evaluate] ─ gate ─ package ─ register ─ finish

The workflow only drives. Postgres decides: which attempt is current, who holds a lease, in which state the job ended.
"""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

# `from package import module` would load the module a second time inside the sandbox; name what is needed instead.
with workflow.unsafe.imports_passed_through():
    import asyncio

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
        PauseOrder,
        PreemptOrder,
        RegisteredModel,
        RegisterInput,
        ResumeOrder,
        Scores,
        TrainedModel,
        TrainInput,
    )
    from workers.workflows.failures import PhaseFailedError, failure_of
    from workers.workflows.leasing import Leases, shielded, stop_if_cancelled
    from workers.workflows.steps import EVALUATE, FINISH_JOB, GATE, PACKAGE, PREPARE, REGISTER, TRAIN


@workflow.defn(name="FineTuneWorkflow")
class FineTuneWorkflow:
    """Runs one fine-tuning job. Workflow id = job id."""

    @workflow.init
    def __init__(self, job: JobInput) -> None:
        self._leases = Leases(job)

    @workflow.signal
    def lease_granted(self, grant: LeaseGrant) -> None:
        """A lease asked for is held from now on."""
        self._leases.grant(grant)

    @workflow.signal
    def lease_lost(self, end: LeaseEnd) -> None:
        """A lease ended under its holder."""
        self._leases.lose(end)

    @workflow.signal
    def preempt(self, order: PreemptOrder) -> None:
        """A lease is to be given back, and a new one asked for."""
        self._leases.preempt(order)

    @workflow.signal
    def pause(self, order: PauseOrder) -> None:
        """The job is to hold still."""
        self._leases.pause(order)

    @workflow.signal
    def resume(self, order: ResumeOrder) -> None:
        """The job goes on."""
        self._leases.resume(order)

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

        await self._leases.hold()
        prepared = await PREPARE.run(leases.context())
        trained = await leases.run(LeasedPhase.TRAIN, start_training)
        scores = await leases.run(LeasedPhase.EVALUATE, start_evaluation)
        await self._next()
        decision = await GATE.run(GateInput(context=leases.context(), scores=scores))
        if not decision.passed:
            raise PhaseFailedError(JobFailure(kind=FailureKind.GATE_REFUSED, message=decision.explanation))
        await self._next()
        package = await PACKAGE.run(PackageInput(context=leases.context(), prepared=prepared, trained=trained, scores=scores))
        await self._next()
        return await REGISTER.run(RegisterInput(context=leases.context(), package=package, scores=scores))

    async def _next(self) -> None:
        """Between two phases: whoever asked for an end or a pause while the last one ran gets it now."""
        stop_if_cancelled()
        await self._leases.hold()

    async def _finish(self, state: JobState, failure: JobFailure | None) -> FinishedJob:
        return await self._leases.tell(
            lambda context: FINISH_JOB.run(FinishJob(context=context, state=state.value, failure=failure))
        )
