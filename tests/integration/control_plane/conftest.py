"""A control plane on real PostgreSQL and a real object store, reached through a real channel with a real credential."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import boto3
import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.app import ControlPlane
from control_plane.datasets.object_store import blob_key
from control_plane.db.engine import create_engine
from control_plane.settings import (
    ControlPlaneSettings,
    LimitsSettings,
    PostgresSettings,
    S3Settings,
    Settings,
)
from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.attempts.v1 import attempt_service_pb2_grpc
from headway.audit.v1 import audit_service_pb2_grpc
from headway.capacity.v1 import capacity_service_pb2_grpc
from headway.datasets.v1 import dataset_service_pb2 as datasets_pb
from headway.datasets.v1 import dataset_service_pb2_grpc
from headway.identity.v1 import identity_service_pb2 as identity_pb
from headway.identity.v1 import identity_service_pb2_grpc
from headway.jobs.v1 import job_pb2, job_service_pb2_grpc, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.logs.v1 import log_service_pb2_grpc
from headway.projects.v1 import project_service_pb2 as projects_pb
from headway.projects.v1 import project_service_pb2_grpc
from headway.quotas.v1 import quota_service_pb2_grpc
from headway.registry.v1 import registry_service_pb2 as registry_pb
from headway.registry.v1 import registry_service_pb2_grpc
from headway.scheduler.v1 import scheduler_service_pb2_grpc
from tests.integration.control_plane.callers import ADMIN_TOKEN, IDENTITY, PROJECT, WORKER_TOKEN, attempt_token, channel_to


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Refusal:
    """What a client learns of an error."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    message: str


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """The contract's form of an error; fails the test if the error has another form."""
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - an AioRpcError has what a call has
    assert isinstance(status, status_pb2.Status), f"no google.rpc.Status in {error!r}"
    infos: list[error_details_pb2.ErrorInfo] = []
    fields: list[str] = []
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            infos.append(info)
        elif detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    assert len(infos) == 1, f"expected exactly one ErrorInfo, got {infos}"
    assert infos[0].domain == "headway"
    return Refusal(error.code(), infos[0].reason, dict(infos[0].metadata), fields, status.message)


async def refused(call: Any) -> Refusal:
    """Awaits a call that must be refused, and says how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


class Api:
    """Typed stubs over one channel, and the steps that many tests begin with.

    The one that tests begin with calls as an admin of the organisation; and where only they may, as a worker or as the attempt
    that a request names. Those made from it call with their one credential, whatever it is good for.
    """

    def __init__(
        self,
        port: int,
        engine: AsyncEngine,
        s3: S3Settings,
        token: str | None = ADMIN_TOKEN,
        subject: str = "service:admin",
        *,
        as_attempts: bool = True,
    ) -> None:
        self.port = port
        self.token = token
        self.subject = subject
        self._opened = AsyncExitStack()
        self._as_attempts = as_attempts
        self.engine = engine
        self.channel = channel = self.channel_to(port)
        self._s3 = s3
        self.bucket = s3.bucket
        self.audit = audit_service_pb2_grpc.AuditServiceStub(channel)
        self.identity = identity_service_pb2_grpc.IdentityServiceStub(channel)
        self.projects = project_service_pb2_grpc.ProjectServiceStub(channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.attempts = attempt_service_pb2_grpc.AttemptServiceStub(channel)
        self.capacity = capacity_service_pb2_grpc.CapacityServiceStub(channel)
        self.datasets = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        self.logs = log_service_pb2_grpc.LogServiceStub(channel)
        self.quotas = quota_service_pb2_grpc.QuotaServiceStub(channel)
        self.registry = registry_service_pb2_grpc.RegistryServiceStub(channel)
        self.scheduler = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)

    async def __aenter__(self) -> Api:
        await self._opened.enter_async_context(self.channel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._opened.aclose()

    async def acting_as(self, role: str, project: str = PROJECT, name: str = "") -> Api:
        """The same for another principal: a new token with this role, of the project or of the organisation."""
        if role == "WORKER":
            return await self.with_token(WORKER_TOKEN, "worker:worker")
        of_organisation = role in {"ORG_ADMIN", "AUDITOR"}
        request = identity_pb.CreateTokenRequest(
            request_id=new_id(),
            project="" if of_organisation else project,
            name=name or f"{role.lower().replace('_', '-')}-{uuid.uuid4().hex[:8]}",
            role=projects_pb.Role.Value(f"ROLE_{role}"),
        )
        answer = await self.identity.CreateToken(request)
        made = answer.token
        return await self.with_token(
            answer.secret, f"service:{made.project}/{made.name}" if made.project else f"service:{made.name}"
        )

    async def with_token(self, token: str | None, subject: str) -> Api:
        """The same with another token, or none."""
        return await self._opened.enter_async_context(Api(self.port, self.engine, self._s3, token, subject, as_attempts=False))

    async def as_attempt(self, job_id: str, attempt: int) -> Api:
        """The same with the credential of an attempt, for everything."""
        return await self.with_token(attempt_token(job_id, attempt), f"attempt:{job_id}/{attempt}")

    def channel_to(self, port: int) -> grpc.aio.Channel:
        """A channel with the same credentials to another port, such as a proxy's."""
        return channel_to(port, self.token, self.engine if self._as_attempts else None)

    def put(self, project: str, data: bytes) -> tuple[str, str]:
        """Stores bytes where an upload would have put them; returns their hash and URI."""
        sha256 = hashlib.sha256(data).hexdigest()
        key = blob_key(project, sha256)
        assert self._s3.access_key_id is not None
        assert self._s3.secret_access_key is not None
        boto3.client(
            "s3",
            endpoint_url=self._s3.endpoint_url,
            region_name=self._s3.region,
            aws_access_key_id=self._s3.access_key_id.get_secret_value(),
            aws_secret_access_key=self._s3.secret_access_key.get_secret_value(),
        ).put_object(Bucket=self._s3.bucket, Key=key, Body=data)
        return sha256, f"s3://{self._s3.bucket}/{key}"

    async def inputs(self) -> job_spec_pb2.JobSpec:
        """Registers a dataset and a base model, and returns a minimal spec that names them."""
        data = b'{"prompt": "q", "completion": "a"}\n'
        sha256, uri = self.put(PROJECT, data)
        await self.datasets.RegisterDataset(
            datasets_pb.RegisterDatasetRequest(
                request_id=new_id(),
                dataset=datasets_pb.Dataset(project=PROJECT, name="questions", sha256=sha256, size_bytes=len(data)),
            )
        )
        await self.registry.RegisterBaseModel(
            registry_pb.RegisterBaseModelRequest(
                request_id=new_id(),
                base_model=registry_pb.BaseModel(
                    name="base", sha256=sha256, size_bytes=len(data), uri=uri, format=registry_pb.BASE_MODEL_FORMAT_GGUF
                ),
            )
        )
        return job_spec_pb2.JobSpec(
            fine_tune=job_spec_pb2.FineTuneSpec(
                base_model="base", dataset=job_spec_pb2.DatasetRef(name="questions"), output_model="assistant"
            )
        )

    async def submit(self, spec: job_spec_pb2.JobSpec, **fields: Any) -> job_pb2.Job:
        request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec, **fields)
        return (await self.jobs.SubmitJob(request)).job

    async def get(self, job_id: str) -> job_pb2.Job:
        return (await self.jobs.GetJob(jobs_pb.GetJobRequest(job_id=job_id))).job

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    async def running(self, spec: job_spec_pb2.JobSpec | None = None) -> str:
        """A job that the scheduler would have admitted and whose workflow has begun its first phase."""
        job = await self.submit(spec or await self.inputs())
        await self.sql("UPDATE jobs SET state = 'STARTING', admitted_at = now() WHERE job_id = :job_id", job_id=job.job_id)
        await self.attempts.StartPhase(attempts_pb.StartPhaseRequest(job_id=job.job_id, phase=job_pb2.JOB_PHASE_PREPARE))
        return job.job_id

    async def leased(self, job_id: str | None = None, attempt: int = 0) -> tuple[str, str]:
        """A job that holds a lease as the scheduler would have granted it: its id, and the lease's."""
        job_id, lease_id = job_id or await self.running(), new_id()
        await self.attempts.RequestLease(
            attempts_pb.RequestLeaseRequest(
                lease_id=lease_id,
                job_id=job_id,
                attempt=attempt,
                phase=job_pb2.JOB_PHASE_TRAIN,
                shape=attempts_pb.Shape(accelerators=1, accelerator_kind="any"),
                max_run_seconds=60,
            )
        )
        await self.sql(
            """
            WITH fenced AS (UPDATE jobs SET attempt = attempt + 1 WHERE job_id = :job_id RETURNING attempt)
            UPDATE leases SET state = 'GRANTED', attempt = fenced.attempt, worker = 'w', granted_kind = 'cpu',
                granted_at = now(), expires_at = now() + interval '30 seconds'
            FROM fenced WHERE lease_id = :lease_id
            """,
            job_id=job_id,
            lease_id=lease_id,
        )
        return job_id, lease_id


def settings_of(
    postgres_dsn: str, s3_settings: S3Settings, *, limits: LimitsSettings | None = None, **control_plane: Any
) -> Settings:
    """A control plane's settings, on a port of the system's choice."""
    own: dict[str, Any] = {"address": "127.0.0.1:0", "stream_heartbeat_seconds": 0.2, "deadline_seconds_max": 20}
    return Settings(
        postgres=PostgresSettings(dsn=postgres_dsn, pool_size=16),  # pyright: ignore[reportArgumentType] - pydantic makes it secret
        s3=s3_settings,
        identity=IDENTITY,
        limits=limits or LimitsSettings(),
        control_plane=ControlPlaneSettings(**(own | control_plane)),
    )


@pytest_asyncio.fixture
async def control_plane(postgres_dsn: str, s3_settings: S3Settings) -> AsyncIterator[ControlPlane]:
    async with ControlPlane(settings_of(postgres_dsn, s3_settings)) as running:
        yield running


@pytest_asyncio.fixture
async def engine(postgres_dsn: str) -> AsyncIterator[AsyncEngine]:
    """Connections of the test's own to the control plane's database."""
    engine = create_engine(PostgresSettings(dsn=postgres_dsn, pool_size=8))  # pyright: ignore[reportArgumentType] - as above
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture
async def api(control_plane: ControlPlane, engine: AsyncEngine, s3_settings: S3Settings) -> AsyncIterator[Api]:
    async with Api(control_plane.port, engine, s3_settings) as api:
        yield api
