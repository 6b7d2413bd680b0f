"""The control plane as workers see it: typed calls in the workers' own terms, patient with a server that restarts.

A worker speaks for itself with its own credentials, and for an attempt of a job with that attempt's token, which it asks for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from google.protobuf.struct_pb2 import Struct

from control_plane.jobs.states import JobPhase
from control_plane.settings import Settings, WorkerSettings, require
from headway.attempts.v1 import attempt_service_pb2 as pb
from headway.attempts.v1.attempt_service_pb2_grpc import AttemptServiceStub
from headway.capacity.v1 import capacity_service_pb2
from headway.capacity.v1.capacity_service_pb2_grpc import CapacityServiceStub
from headway.identity.v1 import identity_service_pb2
from headway.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from headway.jobs.v1 import job_pb2
from headway.logs.v1 import log_service_pb2
from headway.logs.v1.log_service_pb2_grpc import LogServiceStub
from headway.registry.v1 import registry_service_pb2
from headway.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from headway_client.channels import aio_channel
from headway_client.credentials import Credentials, Tls, bearer
from headway_client.errors import HeadwayError, from_rpc_error
from workers.attempt_credentials import AttemptCredentials, IssuedToken
from workers.workflows.contracts import JobFailure, LeasedPhase, PhaseContext, StoredFiles

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_CALL_SECONDS = 10.0
_TRANSIENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED})

STALE_ATTEMPT = "STALE_ATTEMPT"
LEASE_NOT_HELD = "LEASE_NOT_HELD"


@dataclass(frozen=True, slots=True)
class CommittedCheckpoint:
    """A checkpoint on record: the optimizer steps it covers, its files, and what held-out data said of it, lower is better."""

    step: int
    files: StoredFiles
    metric: float | None = None


def fenced_off(error: HeadwayError) -> bool:
    """Whether the control plane says that whoever writes has been replaced, and must stop."""
    return error.reason in {STALE_ATTEMPT, LEASE_NOT_HELD}


class ControlPlane:
    """Calls for the event loop it is made in. Every one is idempotent, so each is repeated while nobody answers.

    All methods raise `HeadwayError`, in which `reason` tells a refusal and `code` an outage that lasted too long.
    """

    def __init__(self, address: str, credentials: Credentials, *, patience_seconds: float = 20.0) -> None:
        """Dials on the first call.

        Args:
            address: host:port.
            credentials: the worker's own.
            patience_seconds: how long one call is repeated while nobody answers. Callers above have patience of their own.

        Raises:
            CredentialsError: the worker's token could be read on the way.
        """
        self._address = address
        self._patience_seconds = patience_seconds
        self._channel = aio_channel(address, credentials)
        self._tokens = AttemptCredentials(self._issue_attempt_token)
        self._identity = IdentityServiceStub(self._channel)
        self._attempts = AttemptServiceStub(self._channel)
        self._capacity = CapacityServiceStub(self._channel)
        self._registry = RegistryServiceStub(self._channel)
        self._logs = LogServiceStub(self._channel)

    @classmethod
    def of(cls, settings: Settings, process: str) -> Self:
        """The control plane that the settings name, with the worker's credentials in them.

        Args:
            settings: with the sections `control_plane` and `worker`.
            process: who is connecting, for the message when something is missing.

        Raises:
            MissingSettingError: the control plane's address or the worker's credentials are absent.
            CredentialsError: a file that is named cannot be used, or the token could be read on the way.
        """
        address = require(settings.control_plane, "control_plane", process).address
        return cls(address, _credentials(settings.worker, process))

    async def close(self) -> None:
        """Ends every call."""
        await self._channel.close()

    async def start_phase(self, context: PhaseContext, phase: JobPhase) -> None:
        """Says that a phase begins."""
        request = pb.StartPhaseRequest(job_id=context.job.job_id, attempt=context.attempt, phase=_phase(phase))
        await self._of(self._attempts.StartPhase, request, context)

    async def finish_phase(self, context: PhaseContext, phase: JobPhase, detail: Mapping[str, Any]) -> None:
        """Says that a phase ended well, and what it found: JSON values."""
        request = pb.FinishPhaseRequest(
            job_id=context.job.job_id, attempt=context.attempt, phase=_phase(phase), detail=_struct(detail)
        )
        await self._of(self._attempts.FinishPhase, request, context)

    async def request_lease(self, context: PhaseContext, lease_id: str, phase: LeasedPhase) -> None:
        """Asks for a lease of the shape that the job's spec names."""
        resources = context.job.spec.resources
        request = pb.RequestLeaseRequest(
            lease_id=lease_id,
            job_id=context.job.job_id,
            attempt=context.attempt,
            phase=_phase(JobPhase(phase.value)),
            shape=pb.Shape(accelerators=resources.accelerators, accelerator_kind=resources.accelerator_kind),
            max_run_seconds=resources.max_run_seconds,
        )
        await self._of(self._attempts.RequestLease, request, context)

    async def renew_lease(self, job_id: str, attempt: int, lease_id: str, *, deadline_seconds: float) -> float:
        """Keeps a lease alive; returns for how many seconds from now. One try: the caller knows until when it may try."""
        request = pb.RenewLeaseRequest(lease_id=lease_id, job_id=job_id, attempt=attempt)
        answer = await self._try_as_attempt(self._attempts.RenewLease, request, job_id, attempt, deadline_seconds)
        return answer.remaining_seconds

    async def release_lease(self, context: PhaseContext, lease_id: str, outcome: str, reason: str) -> None:
        """Gives a lease back, or withdraws its request."""
        job_id, attempt = context.job.job_id, context.attempt
        request = pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome=outcome, reason=reason)
        try:
            await self._as_attempt(self._attempts.ReleaseLease, request, job_id, attempt)
        except HeadwayError as error:
            # A lease is given back whoever came after it: the newer attempt may do it too.
            if error.reason != STALE_ATTEMPT or not (current := error.metadata.get("current_attempt", "")).isdecimal():
                raise
            await self._as_attempt(self._attempts.ReleaseLease, request, job_id, int(current))

    async def commit_checkpoint(self, job_id: str, attempt: int, checkpoint: CommittedCheckpoint) -> None:
        """Makes an uploaded checkpoint the one to resume from."""
        message = pb.Checkpoint(
            step=checkpoint.step,
            manifest_uri=checkpoint.files.manifest_uri,
            manifest_sha256=checkpoint.files.manifest_sha256,
            attempt=attempt,
            metric=checkpoint.metric,
        )
        request = pb.CommitCheckpointRequest(job_id=job_id, attempt=attempt, checkpoint=message)
        await self._as_attempt(self._attempts.CommitCheckpoint, request, job_id, attempt)

    async def list_checkpoints(self, job_id: str, attempt: int, *, before_step: int = 0) -> list[CommittedCheckpoint]:
        """A page of committed checkpoints, newest first; with `before_step`, those below it."""
        request = pb.ListCheckpointsRequest(job_id=job_id, before_step=before_step)
        answer = await self._as_attempt(self._attempts.ListCheckpoints, request, job_id, attempt)
        return [
            CommittedCheckpoint(
                step=found.step,
                files=StoredFiles(manifest_uri=found.manifest_uri, manifest_sha256=found.manifest_sha256),
                metric=found.metric if found.HasField("metric") else None,
            )
            for found in answer.checkpoints
        ]

    async def record_resume(self, job_id: str, attempt: int, step: int, damaged_steps: Sequence[int]) -> None:
        """Records where the attempt goes on from, and which checkpoints it passed over."""
        request = pb.RecordResumeRequest(job_id=job_id, attempt=attempt, step=step, damaged_steps=damaged_steps[:100])
        await self._as_attempt(self._attempts.RecordResume, request, job_id, attempt)

    async def confirm_pause(self, context: PhaseContext, pause: int) -> str:
        """Says that the job holds still; returns the state it is in then."""
        request = pb.ConfirmPauseRequest(job_id=context.job.job_id, attempt=context.attempt, pause=pause)
        answer = await self._of(self._attempts.ConfirmPause, request, context)
        return job_pb2.JobState.Name(answer.state).removeprefix("JOB_STATE_")

    async def finish_job(self, context: PhaseContext, state: str, failure: JobFailure | None) -> str:
        """Moves the job to its final state; returns the state it is in then."""
        request = pb.FinishJobRequest(
            job_id=context.job.job_id,
            attempt=context.attempt,
            state=job_pb2.JobState.Value(f"JOB_STATE_{state}"),
            failure=None if failure is None else _failure(failure),
        )
        answer = await self._of(self._attempts.FinishJob, request, context)
        return job_pb2.JobState.Name(answer.state).removeprefix("JOB_STATE_")

    async def register_worker(self, worker: capacity_service_pb2.Worker) -> float:
        """Says what this machine offers; returns within how many seconds to say it again. One try."""
        request = capacity_service_pb2.RegisterWorkerRequest(worker=worker)
        try:
            answer = await self._capacity.RegisterWorker(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._address) from error
        return answer.heartbeat_seconds

    async def register_model_version(
        self, context: PhaseContext, version: registry_service_pb2.ModelVersion
    ) -> registry_service_pb2.ModelVersion:
        """Registers what the job made, once per job; returns it as stored."""
        request = registry_service_pb2.RegisterModelVersionRequest(
            job_id=context.job.job_id, attempt=context.attempt, model_version=version
        )
        return (await self._of(self._registry.RegisterModelVersion, request, context)).model_version

    async def append_logs(
        self, job_id: str, attempt: int, requests: AsyncIterator[log_service_pb2.AppendLogsRequest]
    ) -> AsyncGenerator[log_service_pb2.AppendLogsResponse]:
        """One stream to the log service, from what `requests` makes to what is acknowledged. One try.

        Whoever reads it sees to it that a stream that broke is opened again.
        """
        token = await self._tokens.token(job_id, attempt)
        call = self._logs.AppendLogs(requests, metadata=bearer(token))
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            failure = from_rpc_error(error, "the log service")
            if failure.code is grpc.StatusCode.UNAUTHENTICATED:
                self._tokens.refused(job_id, attempt, token)
            raise failure from error
        finally:
            call.cancel()

    async def record_mirror(self, context: PhaseContext, mlflow_version: str) -> None:
        """Says that MLflow mirrors the job's model version."""
        request = registry_service_pb2.RecordMirrorRequest(
            job_id=context.job.job_id, attempt=context.attempt, mlflow_version=mlflow_version
        )
        await self._of(self._registry.RecordMirror, request, context)

    async def _of(self, method: UnaryUnaryMultiCallable[_Request, _Response], request: _Request, by: PhaseContext) -> _Response:
        """As `_as_attempt`, for the attempt of a context."""
        return await self._as_attempt(method, request, by.job.job_id, by.attempt)

    async def _as_attempt(
        self, method: UnaryUnaryMultiCallable[_Request, _Response], request: _Request, job_id: str, attempt: int
    ) -> _Response:
        """Calls with the token of an attempt, again and again while nobody answers."""
        give_up = time.monotonic() + self._patience_seconds
        wait = 0.1
        while True:
            try:
                return await self._try_as_attempt(method, request, job_id, attempt, _CALL_SECONDS)
            except HeadwayError as error:
                if error.code not in _TRANSIENT or time.monotonic() + wait > give_up:
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 — jitter, not a secret
            wait = min(2 * wait, 2.0)

    async def _try_as_attempt(
        self,
        method: UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        job_id: str,
        attempt: int,
        deadline_seconds: float,
    ) -> _Response:
        """Calls once, or twice if the token that was kept is not accepted any more."""
        ends_at = time.monotonic() + deadline_seconds
        for kept in (True, False):
            token = await self._token_within(job_id, attempt, ends_at)
            try:
                timeout = max(0.001, ends_at - time.monotonic())
                return await method(request, timeout=timeout, metadata=bearer(token))
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self._address)
                if failure.code is not grpc.StatusCode.UNAUTHENTICATED or not kept:
                    raise failure from error
                self._tokens.refused(job_id, attempt, token)
        raise AssertionError("the second try returns or raises")

    async def _token_within(self, job_id: str, attempt: int, ends_at: float) -> str:
        try:
            async with asyncio.timeout(ends_at - time.monotonic()):
                return await self._tokens.token(job_id, attempt)
        except TimeoutError as error:
            message = f"the control plane at {self._address} did not give the attempt's token in time"
            raise HeadwayError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from error

    async def _issue_attempt_token(self, job_id: str, attempt: int) -> IssuedToken:
        request = identity_service_pb2.IssueAttemptTokenRequest(job_id=job_id, attempt=attempt)
        try:
            answer = await self._identity.IssueAttemptToken(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._address) from error
        return IssuedToken(answer.secret, answer.expire_time.ToNanoseconds() / 1e9 - time.time())


def _credentials(worker: WorkerSettings, process: str) -> Credentials:
    tls = worker.tls
    if worker.token is None and (tls is None or tls.certificate_file is None):
        require(worker.token, "worker.token", process)
    return Credentials(
        token=None if worker.token is None else worker.token.get_secret_value,
        tls=None if tls is None else Tls.from_files(tls.ca_file, tls.certificate_file, tls.key_file),
        allow_insecure=worker.allow_insecure,
    )


def _phase(phase: JobPhase) -> job_pb2.JobPhase.ValueType:
    return job_pb2.JobPhase.Value(f"JOB_PHASE_{phase.value}")


def _struct(values: Mapping[str, Any]) -> Struct:
    struct = Struct()
    struct.update(dict(values))
    return struct


def _failure(failure: JobFailure) -> job_pb2.Failure:
    return job_pb2.Failure(
        kind=job_pb2.FailureKind.Value(f"FAILURE_KIND_{failure.kind.value}"),
        message=failure.message,
        violations=[job_pb2.Violation(**violation.model_dump()) for violation in failure.violations],
        violation_count=failure.violation_count,
    )
