"""Jobs, their verbs and their attempts on real PostgreSQL behind a real channel, with a caller that each call names."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import grpc
from grpc_status import rpc_status
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.attempts.retention import RetentionPolicy
from control_plane.attempts.servicer import AttemptServicer
from control_plane.call import Call, serve_call
from control_plane.db.engine import create_engine
from control_plane.db.tables import jobs, leases
from control_plane.identity.principal import AttemptBinding, CredentialKind, Principal, Role
from control_plane.jobs.group_writer import GroupWriter
from control_plane.jobs.spec import DatasetRef, FineTuneSpec, canonical_sha256
from control_plane.jobs.states import FINAL_STATES, JobState
from control_plane.jobs.verbs_servicer import JobVerbs
from control_plane.rpc.pages import Cursors
from control_plane.rpc.status import as_refusal, to_status
from control_plane.settings import PostgresSettings
from headway.attempts.v1 import attempt_service_pb2_grpc
from headway.jobs.v1 import job_service_pb2_grpc

if TYPE_CHECKING:
    from headway.attempts.v1.attempt_service_pb2_grpc import AttemptServiceAsyncStub
    from headway.jobs.v1.job_service_pb2_grpc import JobServiceAsyncStub

CEILING = 800
"""Of project north."""
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def _member(name: str, role: Role, project: str = "north") -> Principal:
    return Principal(f"user:{name}", name, CredentialKind.TOKEN, project_roles={project: role})


CALLERS = {
    "admin": Principal("user:admin", "admin", CredentialKind.TOKEN, organisation_roles=frozenset({Role.ORG_ADMIN})),
    "auditor": Principal("user:auditor", "auditor", CredentialKind.TOKEN, organisation_roles=frozenset({Role.AUDITOR})),
    "mia": _member("mia", Role.MAINTAINER),
    "ada": _member("ada", Role.SUBMITTER),
    "bob": _member("bob", Role.SUBMITTER),
    "vic": _member("vic", Role.VIEWER),
    "zoe": _member("zoe", Role.MAINTAINER, "south"),
    "both": Principal("user:both", "both", CredentialKind.TOKEN, project_roles={"north": Role.VIEWER, "south": Role.VIEWER}),
}


class _Caller(grpc.aio.ServerInterceptor):
    """Stands for the chain: says who calls, and gives errors the contract's form."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        metadata = dict(handler_call_details.invocation_metadata or ())

        async def unary(request: Any, context: Any) -> Any:
            principal = CALLERS[str(metadata.get("caller", "admin"))]
            if method.startswith("headway.attempts."):
                bound = AttemptBinding(request.job_id, int(metadata.get("attempt", 0)))
                principal = Principal("attempt", "", CredentialKind.ATTEMPT, attempt=bound)
            serve_call(Call(method, principal))
            try:
                return await handler.unary_unary(request, context)
            except Exception as error:
                status = rpc_status.to_status(to_status(as_refusal(error)))
                await context.abort(status.code, status.details, status.trailing_metadata)

        def encoded(message: Any) -> bytes:
            return message if isinstance(message, bytes) else handler.response_serializer(message)

        return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, encoded)


@dataclass
class VerbsServer:
    """A server of jobs, and what a test does to its database."""

    engine: AsyncEngine
    jobs: JobServiceAsyncStub
    attempts: AttemptServiceAsyncStub

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    async def job(self, state: str = "QUEUED", **values: Any) -> str:
        """A job as submit and scheduler would have made it; admitted, unless it is QUEUED or said to be not."""
        return (await self.many(1, state, **values))[0]

    async def many(self, count: int, state: str = "QUEUED", *, admitted: bool | None = None, **values: Any) -> list[str]:
        """Many jobs, each a second younger than the one before."""
        spec = values.pop("spec", SPEC)
        if admitted is None:
            admitted = state != "QUEUED"
        row: dict[str, Any] = {
            "admitted_at": BEGINNING if admitted else None,
            "project": "north",
            "name": "a job",
            "type": "fine_tune",
            "spec": spec.model_dump(mode="json"),
            "spec_sha256": canonical_sha256(spec),
            "inputs": {"dataset_uri": "s3://b/d", "base_model_uri": "s3://b/m", "base_model_sha256": "b" * 64},
            "priority": 500,
            "state": state,
            "submitter": "user:ada",
            "ended_at": BEGINNING if JobState(state) in FINAL_STATES else None,
            **values,
        }
        rows: list[dict[str, Any]] = [
            {**row, "job_id": str(uuid.uuid4()), "created_at": BEGINNING + timedelta(seconds=number)} for number in range(count)
        ]
        async with self.engine.begin() as connection:
            await connection.execute(insert(jobs), rows)
        return [found["job_id"] for found in rows]

    async def lease(self, job_id: str, *, granted: bool) -> str:
        """A lease that a job asks for or holds."""
        lease_id = str(uuid.uuid4())
        now = datetime.now(UTC)
        held: dict[str, Any] = {
            "state": "GRANTED",
            "attempt": 1,
            "worker": "w",
            "granted_kind": "cpu",
            "granted_at": now,
            "expires_at": now + timedelta(minutes=1),
        }
        async with self.engine.begin() as connection:
            await connection.execute(
                insert(leases).values(
                    lease_id=lease_id,
                    job_id=job_id,
                    project="north",
                    phase="TRAIN",
                    accelerators=1,
                    accelerator_kind="any",
                    priority=500,
                    max_run_seconds=60,
                    **(held if granted else {"state": "REQUESTED"}),
                )
            )
        if granted:
            await self.sql("UPDATE jobs SET attempt = 1 WHERE job_id = :job_id", job_id=job_id)
        return lease_id

    async def state(self, job_id: str) -> str:
        return (await self.sql("SELECT state FROM jobs WHERE job_id = :job_id", job_id=job_id))[0][0]

    async def events(self, job_id: str) -> list[tuple[str, str, dict[str, Any]]]:
        """Type, state and detail of a job's events, in order; their numbers must have no hole."""
        rows = await self.sql(
            "SELECT sequence, type, state, detail FROM job_events WHERE job_id = :job_id ORDER BY sequence", job_id=job_id
        )
        assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
        return [(row.type, row.state, row.detail) for row in rows]

    async def signals(self, job_id: str) -> list[tuple[str, dict[str, Any]]]:
        """What a job's workflow is to be told, in order."""
        rows = await self.sql(
            "SELECT kind, payload FROM outbox WHERE job_id = :job_id AND state = 'ready' ORDER BY outbox_id", job_id=job_id
        )
        return [(row.kind, row.payload) for row in rows]


SPEC = FineTuneSpec(base_model="smol", dataset=DatasetRef(name="faq", sha256="a" * 64), output_model="answers")


@asynccontextmanager
async def verbs_server(dsn: str) -> AsyncGenerator[VerbsServer]:
    """Serves inside the block, with projects north and south."""
    async with AsyncExitStack() as exits:
        engine = create_engine(PostgresSettings(dsn=dsn, pool_size=8))  # pyright: ignore[reportArgumentType] - pydantic makes it secret
        exits.push_async_callback(engine.dispose)
        writer = GroupWriter(engine)
        await writer.start()
        exits.push_async_callback(writer.stop)
        server = grpc.aio.server(interceptors=[_Caller()])
        # A part of the service; the methods it lacks are not called here.
        verbs = cast("type[Any]", JobVerbs)(engine, writer, Cursors(b"k" * 32))
        job_service_pb2_grpc.add_JobServiceServicer_to_server(verbs, server)
        attempt_service_pb2_grpc.add_AttemptServiceServicer_to_server(AttemptServicer(engine, 30.0, RetentionPolicy()), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        exits.push_async_callback(server.stop, 0)
        channel = await exits.enter_async_context(grpc.aio.insecure_channel(address))
        running = VerbsServer(
            engine,
            job_service_pb2_grpc.JobServiceStub(channel),
            attempt_service_pb2_grpc.AttemptServiceStub(channel),
        )
        await running.sql(
            "INSERT INTO projects (project, priority_max, creator) VALUES ('north', :ceiling, 'user:admin'),"
            " ('south', 1000, 'user:admin')",
            ceiling=CEILING,
        )
        yield running


def caller(name: str) -> tuple[tuple[str, str], ...]:
    """Metadata that says who calls."""
    return (("caller", name),)


def attempt(number: int) -> tuple[tuple[str, str], ...]:
    """Metadata that says which attempt of its job writes."""
    return (("attempt", str(number)),)
