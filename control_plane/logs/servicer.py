"""LogService: an agent's stream in, any number of readers' streams out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.datasets.object_store import ObjectStore
from control_plane.db.engine import in_transaction
from control_plane.db.notifications import Notifications, wait_for
from control_plane.db.tables import CHANNEL_LOGS
from control_plane.errors import RefusedError
from control_plane.jobs import repository
from control_plane.logs import store
from control_plane.logs.batches import require_batch, together
from control_plane.logs.filters import Filter, progress_filter, tail_filter
from control_plane.logs.reading import LogReader, Segment
from control_plane.logs.store import Appended, LogPosition
from control_plane.rpc.convert import identifier
from control_plane.rpc.pages import Cursors
from control_plane.streams.guard import Message, StreamGuard
from control_plane.streams.hub import EventHub
from control_plane.streams.scopes import JobScope
from headway.logs.v1 import log_record_pb2, log_service_pb2_grpc
from headway.logs.v1 import log_service_pb2 as pb

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Record = log_record_pb2.LogRecord

# One message at most: what a stalled reader costs.
_MESSAGE_RECORDS_MAX = 500
_MESSAGE_BYTES_MAX = 32 * 2**10


@dataclass(frozen=True, slots=True)
class _Part:
    """What goes into one message.

    Attributes:
        records: what of the log the reader wants; none in a heartbeat.
        end: everything up to here has been looked at.
        last: the job is final and this is all.
    """

    records: Sequence[_Record]
    end: LogPosition
    last: bool = False


class LogServicer(log_service_pb2_grpc.LogServiceServicer):
    """Logs and progress of running jobs. Who may write and read which, the policy has said before, for every batch anew."""

    def __init__(
        self,
        engine: AsyncEngine,
        notifications: Notifications,
        hub: EventHub,
        guard: StreamGuard,
        cursors: Cursors,
        objects: ObjectStore,
        heartbeat_seconds: float,
    ) -> None:
        self._engine = engine
        self._notifications = notifications
        self._hub = hub
        self._guard = guard
        self._cursors = cursors
        self._reader = LogReader(engine, objects)
        self._heartbeat_seconds = heartbeat_seconds

    async def AppendLogs(  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[pb.AppendLogsRequest], context: _Context
    ) -> AsyncIterator[pb.AppendLogsResponse]:
        """Stores batch after batch, each before it is acknowledged; those that arrived meanwhile share the next commit."""
        async for response in self._guard.guarded(self._acknowledgements(request_iterator), context):
            yield response

    async def TailLogs(self, request: pb.TailLogsRequest, context: _Context) -> AsyncIterator[pb.TailLogsResponse]:  # noqa: N802 - gRPC's name
        """A job's records, and with `follow` what comes until the job is final."""

        def message(part: _Part, cursor: str) -> pb.TailLogsResponse:
            return pb.TailLogsResponse(records=part.records, cursor=cursor, end_of_stream=part.last)

        messages = self._messages(request, tail_filter(request), request.follow, message)
        async for response in self._guard.guarded(messages, context):
            yield response

    async def StreamProgress(  # noqa: N802 - gRPC's name
        self, request: pb.StreamProgressRequest, context: _Context
    ) -> AsyncIterator[pb.StreamProgressResponse]:
        """A job's measurements until it is final."""

        def message(part: _Part, cursor: str) -> pb.StreamProgressResponse:
            return pb.StreamProgressResponse(records=part.records, cursor=cursor, end_of_stream=part.last)

        messages = self._messages(request, progress_filter(request), follow=True, message=message)
        async for response in self._guard.guarded(messages, context):
            yield response

    async def _acknowledgements(self, requests: AsyncIterator[pb.AppendLogsRequest]) -> AsyncIterator[Message]:
        async for arrived in together(requests):
            for _, one_attempt in groupby(arrived, lambda request: (request.job_id, request.attempt)):
                batches = list(one_attempt)
                sound, refusal = _sound(batches)
                if sound:
                    appended = await self._append(sound)
                    for sequence in appended.acknowledged:
                        yield Message(pb.AppendLogsResponse(acknowledged_sequence=sequence), "")
                    refusal = appended.refusal or refusal
                if refusal is not None:
                    raise refusal

    async def _append(self, batches: Sequence[pb.AppendLogsRequest]) -> Appended:
        async def append(connection: AsyncConnection) -> Appended:
            return await store.append(connection, batches)

        return await in_transaction(self._engine, append)

    async def _messages(
        self,
        request: pb.TailLogsRequest | pb.StreamProgressRequest,
        records: Filter,
        follow: bool,
        message: Callable[[_Part, str], Any],
    ) -> AsyncIterator[Message]:
        job_id = identifier(request.job_id, "job_id")
        cursors = self._cursors.scope([*records.query, job_id])
        position = LogPosition()
        if request.start_cursor:
            position = LogPosition(*cursors.decode(request.start_cursor, (int, int), "start_cursor"))
        async with self._engine.connect() as connection:
            await repository.get_job(connection, job_id)
        async for part in self._parts(job_id, position, records, follow):
            cursor = cursors.encode([part.end.attempt, part.end.sequence])
            yield Message(message(part, cursor), cursor)

    async def _parts(self, job_id: str, after: LogPosition, records: Filter, follow: bool) -> AsyncIterator[_Part]:
        """What a reader wants of a job's log after a position, one message at a time, of which nothing is kept meanwhile."""
        loop = asyncio.get_running_loop()
        position = max(after, LogPosition(records.attempt))
        start, final, beat_at = position, False, loop.time()
        with (
            self._notifications.subscribed(CHANNEL_LOGS, job_id) as grown,
            self._hub.subscribed(JobScope(job_id)) as events,
            # A job that ends writes no log record, but an event.
            events.telling(grown),
        ):
            while True:
                segment = await self._reader.segment(job_id, start)
                part = _part(segment, position, records)
                position, ended = part.end, not segment.records
                if position >= segment.end:
                    start = position
                del segment
                if ended and not final and (final := await self._reader.is_final(job_id)):
                    continue  # once more: what is stored once the job is final is all there will be
                last = ended and (final or not follow)
                if part.records or last or loop.time() >= beat_at:
                    yield replace(part, last=last and final)
                    beat_at = loop.time() + self._heartbeat_seconds
                if last:
                    return
                if ended:
                    await wait_for(grown, max(0.0, beat_at - loop.time()))


def _sound(batches: Sequence[pb.AppendLogsRequest]) -> tuple[Sequence[pb.AppendLogsRequest], RefusedError | None]:
    """The batches before the first that breaks its limits, and what is wrong with that one."""
    for index, batch in enumerate(batches):
        try:
            require_batch(batch)
        except RefusedError as refusal:
            return batches[:index], refusal
    return batches, None


def _part(segment: Segment, after: LogPosition, filtered: Filter) -> _Part:
    """What a reader wants of a segment after a position, as much as one message takes."""
    attempt = segment.end.attempt
    if filtered.attempt not in (0, attempt):
        return _Part((), max(after, segment.end))
    wanted: list[_Record] = []
    size, end = 0, after
    for record in segment.records:
        place = LogPosition(attempt, record.sequence)
        if place <= after:
            continue
        kept = filtered.wanted(record)
        if kept is not None:
            size += kept.ByteSize()
            if wanted and (size > _MESSAGE_BYTES_MAX or len(wanted) == _MESSAGE_RECORDS_MAX):
                break
            wanted.append(kept)
        end = place
    return _Part(wanted, end)
