"""The streams alone on real PostgreSQL behind a real channel, with limits as short as a test needs them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_status import rpc_status
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.call import Call, serve_call
from control_plane.db.engine import create_engine
from control_plane.db.events import EventType, append_event, assign_positions
from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_EVENTS_POSITIONED, CHANNEL_EVENTS_WRITTEN, CHANNEL_LOGS, job_events
from control_plane.identity.principal import CredentialKind, Principal, Role
from control_plane.jobs.sequencer import Sequencer
from control_plane.jobs.states import JobState
from control_plane.jobs.watch_servicer import JobWatch
from control_plane.rpc.pages import Cursors
from control_plane.rpc.status import as_refusal, to_status
from control_plane.settings import PostgresSettings
from control_plane.streams.guard import StreamGuard
from control_plane.streams.hub import EventHub
from headway.jobs.v1 import job_service_pb2 as pb
from headway.jobs.v1 import job_service_pb2_grpc

ADMIN = Principal("service:admin", "admin", CredentialKind.TOKEN, organisation_roles=frozenset({Role.ORG_ADMIN}))
VIEWER = Principal("service:north/viewer", "viewer", CredentialKind.TOKEN, project_roles={"north": Role.VIEWER})
CALLERS = {"admin": ADMIN, "viewer": VIEWER}


@dataclass
class Standings:
    """Who still holds what they held, as the test says."""

    revoked: set[str] = field(default_factory=set[str])
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def still_valid(self, principal: Principal) -> bool:
        """As the test says."""
        self.asked.set()
        return principal.subject not in self.revoked


class _Caller(grpc.aio.ServerInterceptor):
    """Stands for the chain: says who calls, and gives errors the contract's form."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        method, metadata = handler_call_details.method.lstrip("/"), dict(handler_call_details.invocation_metadata or ())

        async def stream(request: Any, context: Any) -> Any:
            serve_call(Call(method, CALLERS[str(metadata.get("caller", "admin"))]))
            try:
                async for response in handler.unary_stream(request, context):
                    yield response
            except Exception as error:
                if isinstance(error, grpc.aio.AbortError):
                    raise
                status = rpc_status.to_status(to_status(as_refusal(error)))
                await context.abort(status.code, status.details, status.trailing_metadata)

        return grpc.unary_stream_rpc_method_handler(stream, handler.request_deserializer, None)


@dataclass
class StreamServer:
    """A server of streams, and what a test does to its database."""

    address: str
    engine: AsyncEngine
    hub: EventHub
    guard: StreamGuard
    standings: Standings
    jobs: job_service_pb2_grpc.JobServiceStub

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    async def job(self, project: str = "north", job_set: str = "") -> str:
        """A job without events."""
        job_id = str(uuid.uuid4())
        await self.sql(
            "INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, job_set)"
            " VALUES (:job_id, :project, 'a job', 'fine_tune', '{}', '', '{}', 500, 'RUNNING', :job_set)",
            job_id=job_id,
            project=project,
            job_set=job_set,
        )
        return job_id

    async def event(self, job_id: str, state: JobState | None = None, **detail: Any) -> None:
        """Appends one event to a job."""
        async with self.engine.begin() as connection:
            kind = EventType.RESUMED if state is None else EventType.STATE_CHANGED
            await append_event(connection, job_id, kind, state=state, detail=detail)

    async def many_events(self, job_ids: list[str], count: int, detail: str = "{}") -> None:
        """As many events in one statement for each of the jobs, in turns."""
        await self.sql(
            """
            INSERT INTO job_events (job_id, project, sequence, type, state, attempt, detail, job_set)
            SELECT jobs.job_id, project, event_sequence + n, 'RESUMED', state, 0, CAST(:detail AS jsonb), job_set
            FROM jobs, generate_series(1, :count) AS n WHERE job_id = ANY(CAST(:job_ids AS uuid[])) ORDER BY n, job_id
            """,
            job_ids=job_ids,
            count=count,
            detail=detail,
        )
        await self.sql(
            "UPDATE jobs SET event_sequence = event_sequence + :count WHERE job_id = ANY(CAST(:job_ids AS uuid[]))",
            job_ids=job_ids,
            count=count,
        )
        await self.sql(f"NOTIFY {CHANNEL_EVENTS_WRITTEN}")

    async def stored(self, where: str = "true") -> list[tuple[str, int]]:
        """Job and sequence of every event that matches, in commit order, once all have a position."""
        async with self.engine.begin() as connection:
            while await assign_positions(connection):
                pass
        query = select(job_events.c.job_id, job_events.c.sequence).where(text(where)).order_by(job_events.c.position)
        async with self.engine.connect() as connection:
            return [(row[0], row[1]) for row in await connection.execute(query)]


@asynccontextmanager
async def stream_server(
    dsn: str,
    *,
    heartbeat_seconds: float = 0.2,
    stalled_seconds: float = 30.0,
    seconds_max: float = 3_600.0,
) -> AsyncGenerator[StreamServer]:
    """Serves inside the block."""
    async with AsyncExitStack() as exits:
        engine = create_engine(PostgresSettings(dsn=dsn, pool_size=16))  # pyright: ignore[reportArgumentType] - pydantic makes it secret
        exits.push_async_callback(engine.dispose)
        notifications = Notifications(dsn, [CHANNEL_EVENTS_WRITTEN, CHANNEL_EVENTS_POSITIONED, CHANNEL_LOGS])
        standings = Standings()
        sequencer, hub = Sequencer(engine, notifications), EventHub(engine, notifications)
        guard = StreamGuard(standings, stalled_seconds, seconds_max)
        for part in (notifications, sequencer, hub, guard):
            await part.start()
            exits.push_async_callback(part.stop)
        server = grpc.aio.server(interceptors=[_Caller()])
        cursors = Cursors(b"k" * 32)
        watch_only: Any = JobWatch
        job_service_pb2_grpc.add_JobServiceServicer_to_server(
            watch_only(engine, hub, guard, cursors, heartbeat_seconds), server
        )
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        exits.push_async_callback(server.stop, 0)
        channel = await exits.enter_async_context(grpc.aio.insecure_channel(address))
        yield StreamServer(address, engine, hub, guard, standings, job_service_pb2_grpc.JobServiceStub(channel))


def watch(server: StreamServer, caller: str = "admin", **fields: Any) -> Any:
    """Opens a watch."""
    return server.jobs.WatchEvents(pb.WatchEventsRequest(**fields), metadata=(("caller", caller),))
