"""WatchEvents: a scope and a cursor in, messages of the event log out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.call import current_call
from control_plane.errors import invalid_field
from control_plane.jobs import repository
from control_plane.jobs.spec import ProjectName, ResourceName
from control_plane.rpc.convert import identifier, validated_value
from control_plane.rpc.pages import Cursors
from control_plane.streams import wire
from control_plane.streams.cursors import Place, WatchCursors
from control_plane.streams.event_log import CursorExpiredError, EventLog
from control_plane.streams.follow import follow
from control_plane.streams.guard import Message, StreamGuard
from control_plane.streams.hub import EventHub
from control_plane.streams.scopes import JobScope, JobSetScope, ProjectScope, VisibleScope, WatchScope
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class JobWatch(job_service_pb2_grpc.JobServiceServicer):
    """The RPC that follows jobs. Whether the caller may see what is followed, the policy has said before."""

    def __init__(
        self, engine: AsyncEngine, hub: EventHub, guard: StreamGuard, cursors: Cursors, heartbeat_seconds: float
    ) -> None:
        self._engine = engine
        self._hub = hub
        self._guard = guard
        self._cursors = cursors
        self._heartbeat_seconds = heartbeat_seconds
        self._log = EventLog(engine)

    def WatchEvents(  # noqa: N802 - gRPC's name
        self, request: job_service_pb2.WatchEventsRequest, context: _Context
    ) -> AsyncIterator[job_service_pb2.WatchEventsResponse]:
        """Events in commit order, as bytes, which the chain lets pass as they are."""
        return self._guard.guarded(self._messages(request), context)

    async def _messages(self, request: job_service_pb2.WatchEventsRequest) -> AsyncIterator[Message]:
        scope = await self._scope(request)
        cursors = WatchCursors(self._cursors.scope(["WatchEvents", *scope.query]))
        place = await self._start(request, cursors)
        known_oldest = place.known_oldest
        try:
            async for batch in follow(self._hub, self._log, scope, place.position, known_oldest, self._heartbeat_seconds):
                cursor = cursors.encode(Place(batch.position, known_oldest))
                frames = (event.frame for event in batch.events)
                yield Message(wire.watch_message(frames, cursor, last=batch.last), cursor)
        except CursorExpiredError as error:
            raise cursors.expired(error) from None

    async def _start(self, request: job_service_pb2.WatchEventsRequest, cursors: WatchCursors) -> Place:
        ends = await self._log.ends()
        if request.from_now:
            return Place(ends.head)
        if not request.start_cursor:
            return Place(0, ends.oldest)
        place = cursors.decode(request.start_cursor)
        ends.refuse_future(place.position)
        return place

    async def _scope(self, request: job_service_pb2.WatchEventsRequest) -> WatchScope:
        if request.from_now and request.start_cursor:
            raise invalid_field("from_now", "is set beside start_cursor; expected one of the two")
        match request.WhichOneof("scope"):
            case "job_id":
                job_id = identifier(request.job_id, "job_id")
                async with self._engine.connect() as connection:
                    await repository.get_job(connection, job_id)
                return JobScope(job_id)
            case "project":
                return ProjectScope(validated_value(ProjectName, request.project, "project"))
            case "job_set":
                project = validated_value(ProjectName, request.job_set.project, "job_set.project")
                return JobSetScope(project, validated_value(ResourceName, request.job_set.name, "job_set.name"))
            case _:
                return VisibleScope(current_call().principal.visible_projects())
