"""AttemptService over the fenced repository."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.rpc import status_pb2
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.attempts import repository, requests
from control_plane.attempts.finishing import finish_job, finish_jobs
from control_plane.attempts.leasing import request_leases
from control_plane.attempts.retention import RetentionPolicy
from control_plane.call import current_call
from control_plane.db.engine import in_transaction
from control_plane.db.mutations import audited
from control_plane.errors import invalid_field
from control_plane.jobs.spec import Sha256Hex
from control_plane.jobs.states import JobState
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, plain, timestamp, validated_value
from control_plane.rpc.status import as_refusal, to_status
from control_plane.rpc.text import require_text
from headway.attempts.v1 import attempt_service_pb2 as pb
from headway.attempts.v1 import attempt_service_pb2_grpc
from headway.jobs.v1 import job_pb2

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_T = TypeVar("_T")

_OUTCOMES = ("completed", "failed", "cancelled", "lost", "preempted", "paused")
_REASON_MAX = 1_000


class AttemptServicer(attempt_service_pb2_grpc.AttemptServiceServicer):
    """What workers write."""

    def __init__(self, engine: AsyncEngine, lease_seconds: float, retention: RetentionPolicy) -> None:
        self._engine = engine
        self._retention = retention
        self._lease_seconds = lease_seconds

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        return await audited(self._engine, work)

    async def StartPhase(self, request: pb.StartPhaseRequest, context: _Context) -> pb.StartPhaseResponse:  # noqa: N802 - gRPC's name
        """A phase begins."""
        del context
        job_id, phase = identifier(request.job_id, "job_id"), requests.phase_of(request.phase)
        await self._run(lambda connection: repository.start_phase(connection, job_id, request.attempt, phase))
        return pb.StartPhaseResponse()

    async def FinishPhase(self, request: pb.FinishPhaseRequest, context: _Context) -> pb.FinishPhaseResponse:  # noqa: N802 - gRPC's name
        """A phase ended well."""
        del context
        job_id, phase, detail = identifier(request.job_id, "job_id"), requests.phase_of(request.phase), plain(request.detail)
        await self._run(lambda connection: repository.finish_phase(connection, job_id, request.attempt, phase, detail))
        return pb.FinishPhaseResponse()

    async def RequestLease(self, request: pb.RequestLeaseRequest, context: _Context) -> pb.RequestLeaseResponse:  # noqa: N802 - gRPC's name
        """Asks for a lease."""
        del context
        asked = requests.lease_request(request)

        async def store(connection: AsyncConnection) -> None:
            [refusal] = await request_leases(connection, [asked])
            if refusal is not None:
                raise refusal

        await self._run(store)
        return pb.RequestLeaseResponse()

    async def BatchRequestLeases(  # noqa: N802 - gRPC's name
        self, request: pb.BatchRequestLeasesRequest, context: _Context
    ) -> pb.BatchRequestLeasesResponse:
        """Asks for many leases."""
        del context
        batch = requests.batch(request.requests, requests.lease_request)
        refusals = await self._run(lambda connection: batch.carry_out(lambda asked: request_leases(connection, asked)))
        results = [pb.RequestLeaseResult(status=_status(refusal)) for refusal in refusals]
        return pb.BatchRequestLeasesResponse(results=results)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: _Context) -> pb.RenewLeaseResponse:  # noqa: N802 - gRPC's name
        """Keeps a lease alive."""
        del context
        lease_id, job_id = identifier(request.lease_id, "lease_id"), identifier(request.job_id, "job_id")
        # A heartbeat: it has no record of its own.
        expires_at, remaining = await in_transaction(
            self._engine,
            lambda connection: repository.renew_lease(connection, lease_id, job_id, request.attempt, self._lease_seconds),
        )
        return pb.RenewLeaseResponse(expire_time=timestamp(expires_at), remaining_seconds=remaining)

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: _Context) -> pb.ReleaseLeaseResponse:  # noqa: N802 - gRPC's name
        """Gives a lease back."""
        del context
        lease_id, job_id = identifier(request.lease_id, "lease_id"), identifier(request.job_id, "job_id")
        if request.outcome not in _OUTCOMES:
            raise invalid_field("outcome", f"is {request.outcome!r}; expected one of {', '.join(_OUTCOMES)}")
        require_text({"reason": (request.reason, _REASON_MAX)})
        attempt = _calling_attempt()
        used = await self._run(
            lambda connection: repository.release_lease(connection, lease_id, job_id, attempt, request.outcome, request.reason)
        )
        return pb.ReleaseLeaseResponse(accelerator_seconds=used / 1_000)

    async def CommitCheckpoint(  # noqa: N802 - gRPC's name
        self, request: pb.CommitCheckpointRequest, context: _Context
    ) -> pb.CommitCheckpointResponse:
        """Makes a checkpoint the one to resume from."""
        del context
        job_id, checkpoint = identifier(request.job_id, "job_id"), request.checkpoint
        sha256 = validated_value(Sha256Hex, checkpoint.manifest_sha256, "checkpoint.manifest_sha256")
        if checkpoint.step < 1:
            raise invalid_field("checkpoint.step", f"is {checkpoint.step}; expected at least 1")
        if not math.isfinite(checkpoint.metric):
            raise invalid_field("checkpoint.metric", f"is {checkpoint.metric}; expected a finite number, or none")
        await self._run(
            lambda connection: repository.commit_checkpoint(
                connection,
                job_id,
                request.attempt,
                self._retention,
                step=checkpoint.step,
                manifest_uri=checkpoint.manifest_uri,
                manifest_sha256=sha256,
                metric=checkpoint.metric if checkpoint.HasField("metric") else None,
            )
        )
        return pb.CommitCheckpointResponse()

    async def ListCheckpoints(  # noqa: N802 - gRPC's name
        self, request: pb.ListCheckpointsRequest, context: _Context
    ) -> pb.ListCheckpointsResponse:
        """The committed checkpoints."""
        del context
        job_id = identifier(request.job_id, "job_id")
        size = pages.page_size(request.page_size, default=20, maximum=100)
        async with self._engine.connect() as connection:
            rows = await repository.list_checkpoints(connection, job_id, request.before_step, size)
        names = ("step", "manifest_uri", "manifest_sha256", "attempt", "metric")
        return pb.ListCheckpointsResponse(checkpoints=[pb.Checkpoint(**{name: row[name] for name in names}) for row in rows])

    async def RecordResume(self, request: pb.RecordResumeRequest, context: _Context) -> pb.RecordResumeResponse:  # noqa: N802 - gRPC's name
        """An attempt goes on from a checkpoint."""
        del context
        job_id = identifier(request.job_id, "job_id")
        if request.step < 0:
            raise invalid_field("step", f"is {request.step}; expected 0 for the beginning, or a step")
        if len(request.damaged_steps) > 100:
            raise invalid_field("damaged_steps", f"holds {len(request.damaged_steps)}; expected at most 100")
        await self._run(
            lambda connection: repository.record_resume(
                connection, job_id, request.attempt, request.step, list(request.damaged_steps)
            )
        )
        return pb.RecordResumeResponse()

    async def ConfirmPause(self, request: pb.ConfirmPauseRequest, context: _Context) -> pb.ConfirmPauseResponse:  # noqa: N802 - gRPC's name
        """The job holds still."""
        del context
        job_id = identifier(request.job_id, "job_id")
        if request.pause < 1:
            raise invalid_field("pause", f"is {request.pause}; expected at least 1")
        state = await self._run(lambda connection: repository.confirm_pause(connection, job_id, request.attempt, request.pause))
        return pb.ConfirmPauseResponse(state=job_pb2.JobState.Value(f"JOB_STATE_{state}"))

    async def FinishJob(self, request: pb.FinishJobRequest, context: _Context) -> pb.FinishJobResponse:  # noqa: N802 - gRPC's name
        """Ends a job."""
        del context
        end = requests.job_end(request)
        state = await self._run(lambda connection: finish_job(connection, end))
        return pb.FinishJobResponse(state=_state_number(state))

    async def BatchFinishJobs(  # noqa: N802 - gRPC's name
        self, request: pb.BatchFinishJobsRequest, context: _Context
    ) -> pb.BatchFinishJobsResponse:
        """Ends many jobs."""
        del context
        batch = requests.batch(request.requests, requests.job_end)
        outcomes = await self._run(lambda connection: batch.carry_out(lambda ends: finish_jobs(connection, ends)))
        results = [
            pb.FinishJobResult(state=_state_number(outcome))
            if isinstance(outcome, JobState)
            else pb.FinishJobResult(status=_status(outcome))
            for outcome in outcomes
        ]
        return pb.BatchFinishJobsResponse(results=results)


def _status(error: Exception | None) -> status_pb2.Status | None:
    return None if error is None else to_status(as_refusal(error))


def _state_number(state: JobState) -> job_pb2.JobState.ValueType:
    return job_pb2.JobState.Value(f"JOB_STATE_{state}")


def _calling_attempt() -> int:
    """The number of the attempt whose credential the call was made with."""
    bound = current_call().principal.attempt
    if bound is None:
        raise AssertionError("unreachable: the policy lets only attempts call this")
    return bound.attempt
