"""A control plane with an admin and a worker from the start, and callers with whatever credential a test gives them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.app import ControlPlane
from control_plane.db.engine import create_engine
from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_IDENTITY
from control_plane.identity.authenticator import Authenticator
from control_plane.identity.service_tokens import bootstrap_token_id, new_secret
from control_plane.settings import (
    BootstrapToken,
    ControlPlaneSettings,
    IdentitySettings,
    OidcSettings,
    PostgresSettings,
    S3Settings,
    Settings,
    TlsSettings,
)
from headway.audit.v1 import audit_service_pb2_grpc
from headway.identity.v1 import identity_service_pb2 as identity_pb
from headway.identity.v1 import identity_service_pb2_grpc
from headway.jobs.v1 import job_service_pb2_grpc
from headway.projects.v1 import project_service_pb2 as projects_pb
from headway.projects.v1 import project_service_pb2_grpc
from tests.credentials import AUDIENCE, Issuer
from tests.integration.control_plane.conftest import new_id

ADMIN = new_secret(bootstrap_token_id("admin"))
WORKER = new_secret(bootstrap_token_id("gpu-1"))
SECRET_KEY = "a secret key of the tests, 32 or more"

Metadata = Sequence[tuple[str, str]]


class Bearing(grpc.aio.UnaryUnaryClientInterceptor):  # pyright: ignore[reportMissingTypeArgument] - not subscriptable when it runs
    """Sends the same metadata with every unary call."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), *self._metadata)
        return await continuation(client_call_details._replace(metadata=metadata), request)


class Caller:
    """Stubs that send one credential."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.identity = identity_service_pb2_grpc.IdentityServiceStub(channel)
        self.projects = project_service_pb2_grpc.ProjectServiceStub(channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(channel)

    async def whoami(self) -> identity_pb.WhoAmIResponse:
        return await self.identity.WhoAmI(identity_pb.WhoAmIRequest())

    async def create_token(self, project: str = "", name: str = "ci", role: str = "VIEWER", **fields: Any) -> Any:
        request = identity_pb.CreateTokenRequest(
            request_id=new_id(), project=project, name=name, role=projects_pb.Role.Value(f"ROLE_{role}"), **fields
        )
        return await self.identity.CreateToken(request)

    async def revoke_token(self, token_id: str) -> Any:
        return await self.identity.RevokeToken(identity_pb.RevokeTokenRequest(request_id=new_id(), token_id=token_id))

    async def create_project(self, name: str, **fields: Any) -> Any:
        project = projects_pb.Project(name=name, **fields)
        return await self.projects.CreateProject(projects_pb.CreateProjectRequest(request_id=new_id(), project=project))

    async def set_member(self, project: str, subject: str, role: str) -> Any:
        member = projects_pb.Member(project=project, subject=subject, role=projects_pb.Role.Value(f"ROLE_{role}"))
        return await self.projects.SetMember(projects_pb.SetMemberRequest(request_id=new_id(), member=member))

    async def remove_member(self, project: str, subject: str) -> Any:
        request = projects_pb.RemoveMemberRequest(request_id=new_id(), project=project, subject=subject)
        return await self.projects.RemoveMember(request)


@dataclass
class World:
    """A control plane, its database, and its callers. Its projects are `support` and `other`."""

    control_plane: ControlPlane
    settings: Settings
    engine: AsyncEngine
    exits: contextlib.AsyncExitStack

    async def caller(self, token: str = "", *, metadata: Metadata | None = None) -> Caller:
        """Whoever sends this token, or this metadata."""
        if metadata is None:
            metadata = [("authorization", f"Bearer {token}")] if token else []
        address = f"127.0.0.1:{self.control_plane.port}"
        channel = grpc.aio.insecure_channel(address, interceptors=[Bearing(metadata)])
        return Caller(await self.exits.enter_async_context(channel))

    async def admin(self) -> Caller:
        return await self.caller(ADMIN)

    async def with_role(self, role: str, project: str = "support") -> Caller:
        """A service with a new token of this role."""
        scope = "" if role in {"ORG_ADMIN", "AUDITOR", "WORKER"} else project
        made = await (await self.admin()).create_token(scope, name=f"{role.lower().replace('_', '-')}", role=role)
        return await self.caller(made.secret)

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    async def job(self, project: str = "support", *, attempt: int = 1, state: str = "RUNNING", leased_to: str = "") -> str:
        """A job as the scheduler would have left it."""
        job_id = new_id()
        await self.sql(
            """
            INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, attempt)
            VALUES (:job_id, :project, 'n', 'fine_tune', '{}', '', '{}', 0, :state, :attempt)
            """,
            job_id=job_id,
            project=project,
            state=state,
            attempt=attempt,
        )
        if leased_to:
            await self.sql(
                """
                INSERT INTO leases (lease_id, job_id, project, phase, state, accelerators, accelerator_kind, priority,
                    max_run_seconds, attempt, worker, granted_kind, granted_at, expires_at)
                VALUES (:lease_id, :job_id, :project, 'TRAIN', 'GRANTED', 1, 'any', 0, 60, :attempt, :worker, 'cpu', now(),
                    now() + interval '1 hour')
                """,
                lease_id=new_id(),
                job_id=job_id,
                project=project,
                attempt=attempt,
                worker=leased_to,
            )
        return job_id

    async def offer(self, worker: str) -> None:
        """A worker that registered accelerators."""
        await self.sql(
            "INSERT INTO workers (name, incarnation, accelerator_kind, accelerators) VALUES (:name, :id, 'cpu', 1)",
            name=worker,
            id=new_id(),
        )

    async def authenticator(self, *, hears: bool = True, **changes: Any) -> Authenticator:
        """Another replica's: it hears of changes as the server's own does, or of none, as if every notification were lost."""
        assert self.settings.postgres is not None
        assert self.settings.identity is not None
        notifications = Notifications(self.settings.postgres.dsn.get_secret_value(), [CHANNEL_IDENTITY])
        if hears:
            await notifications.start()
            self.exits.push_async_callback(notifications.stop)
        made = Authenticator(self.engine, notifications, self.settings.identity.model_copy(update=changes))
        await made.start()
        self.exits.push_async_callback(made.stop)
        return made


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    """How a call ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def identity_settings(**changes: Any) -> IdentitySettings:
    tokens: Mapping[str, str] = {"admin": ADMIN, "gpu-1": WORKER}
    return IdentitySettings(
        secret_key=SECRET_KEY,  # pyright: ignore[reportArgumentType] - pydantic makes it secret
        bootstrap_tokens=tuple(
            BootstrapToken(
                name=name,
                role="ORG_ADMIN" if name == "admin" else "WORKER",
                secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
            )
            for name, secret in tokens.items()
        ),
        bootstrap_projects=("support", "other"),
        **changes,
    )


def oidc_settings(issuer: Issuer, **changes: Any) -> OidcSettings:
    return OidcSettings(issuer=issuer.url, audience=AUDIENCE, jwks_url=issuer.jwks_url, **changes)


@contextlib.asynccontextmanager
async def world(
    dsn: str, s3: S3Settings, identity: IdentitySettings | None = None, tls: TlsSettings | None = None
) -> AsyncGenerator[World]:
    """A running one."""
    postgres = PostgresSettings(dsn=dsn, pool_size=8)  # pyright: ignore[reportArgumentType] - pydantic makes it secret
    settings = Settings(
        postgres=postgres,
        s3=s3,
        control_plane=ControlPlaneSettings(address="127.0.0.1:0", deadline_seconds_max=20, tls=tls),
        identity=identity or identity_settings(),
    )
    async with contextlib.AsyncExitStack() as exits:
        engine = create_engine(postgres)
        exits.push_async_callback(engine.dispose)
        control_plane = await exits.enter_async_context(ControlPlane(settings))
        yield World(control_plane, settings, engine, exits)
