"""LogService: an agent's stream in, any number of readers' streams out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.db.notifications import Notifications, wait_for
from control_plane.db.tables import CHANNEL_LOGS
from control_plane.errors import invalid_field
from control_plane.jobs import repository
from control_plane.logs import store
from control_plane.logs.store import Chunk, LogPosition
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier
from headway.logs.v1 import log_record_pb2, log_service_pb2_grpc
from headway.logs.v1 import log_service_pb2 as pb

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Record = log_record_pb2.LogRecord

_RECORDS_MAX = 1_000
_BATCH_BYTES_MAX = 2**20
_TEXT_BYTES_MAX = 16 * 1_024 + 64  # what a line is cut to, and the words that say so
_METRICS_MAX = 64
_CHUNKS_PER_READ = 16
_POLL_SECONDS = 1.0


class LogServicer(log_service_pb2_grpc.LogServiceServicer):
    """Logs and progress of running jobs."""

    def __init__(self, engine: AsyncEngine, notifications: Notifications, heartbeat_seconds: float) -> None:
        self._engine = engine
        self._notifications = notifications
        self._heartbeat_seconds = heartbeat_seconds

    async def AppendLogs(  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[pb.AppendLogsRequest], context: _Context
    ) -> AsyncIterator[pb.AppendLogsResponse]:
        """Stores batch after batch, each before it is acknowledged."""
        del context
        async for request in request_iterator:
            job_id, records = identifier(request.job_id, "job_id"), list(request.records)
            _require_batch(request, records)
            attempt = request.attempt

            async def append(
                connection: AsyncConnection,
                job_id: str = job_id,
                attempt: int = attempt,
                records: Sequence[_Record] = records,
            ) -> int:
                return await store.append(connection, job_id, attempt, records)

            yield pb.AppendLogsResponse(acknowledged_sequence=await in_transaction(self._engine, append))

    async def TailLogs(self, request: pb.TailLogsRequest, context: _Context) -> AsyncIterator[pb.TailLogsResponse]:  # noqa: N802 - gRPC's name
        """A job's records, and with `follow` what comes until the job is final."""
        del context
        query = ["TailLogs", request.job_id]

        def wanted(record: _Record) -> bool:
            # A line that states no level counts as INFO; measurements have none.
            level = record.line.level or log_record_pb2.LOG_LEVEL_INFO
            return record.WhichOneof("body") != "line" or level >= request.min_level

        async for chunk, last in self._follow(request.job_id, _position(request.start_cursor, query), request.follow):
            yield pb.TailLogsResponse(records=_only(chunk, wanted), cursor=_cursor(query, chunk.end), end_of_stream=last)

    async def StreamProgress(  # noqa: N802 - gRPC's name
        self, request: pb.StreamProgressRequest, context: _Context
    ) -> AsyncIterator[pb.StreamProgressResponse]:
        """A job's measurements until it is final."""
        del context
        query = ["StreamProgress", request.job_id]
        async for chunk, last in self._follow(request.job_id, _position(request.start_cursor, query), follow=True):
            yield pb.StreamProgressResponse(
                records=_only(chunk, lambda record: record.WhichOneof("body") == "progress"),
                cursor=_cursor(query, chunk.end),
                end_of_stream=last,
            )

    async def _follow(self, job_id: str, after: LogPosition, follow: bool) -> AsyncIterator[tuple[Chunk, bool]]:
        """Chunks after a position; an empty one as heartbeat and as the end, which the flag says."""
        job_id = identifier(job_id, "job_id")
        async with self._engine.connect() as connection:
            await repository.get_job(connection, job_id)
        with self._notifications.subscribed(CHANNEL_LOGS, job_id) as grown:
            sent_at = time.monotonic()
            while True:
                async with self._engine.connect() as connection:
                    # In this order: what is stored once the job is final is all there will be.
                    final = await store.is_final(connection, job_id)
                    chunks = await store.read(connection, job_id, after, _CHUNKS_PER_READ)
                for chunk in chunks:
                    after = chunk.end
                    yield chunk, False
                    sent_at = time.monotonic()
                if chunks:
                    continue
                if final or not follow:
                    yield Chunk((), after), final
                    return
                if time.monotonic() - sent_at >= self._heartbeat_seconds:
                    yield Chunk((), after), False
                    sent_at = time.monotonic()
                await wait_for(grown, min(_POLL_SECONDS, self._heartbeat_seconds))


def _require_batch(request: pb.AppendLogsRequest, records: Sequence[_Record]) -> None:
    if not 1 <= len(records) <= _RECORDS_MAX:
        raise invalid_field("records", f"holds {len(records)}; expected 1 to {_RECORDS_MAX:,}")
    if request.ByteSize() > _BATCH_BYTES_MAX:
        raise invalid_field("records", f"take {request.ByteSize()} bytes; expected at most {_BATCH_BYTES_MAX:,} in a batch")
    for index, record in enumerate(records):
        if record.sequence != records[0].sequence + index or record.sequence < 1:
            raise invalid_field(
                f"records[{index}].sequence", f"is {record.sequence}; expected {max(records[0].sequence, 1) + index}"
            )
        if len(record.line.text.encode()) > _TEXT_BYTES_MAX:
            raise invalid_field(f"records[{index}].line.text", "is longer than 16 KiB; cut it")
        if len(record.progress.metrics) > _METRICS_MAX:
            raise invalid_field(f"records[{index}].progress.metrics", f"names more than {_METRICS_MAX} metrics")


def _only(chunk: Chunk, wanted: Callable[[_Record], bool]) -> list[_Record]:
    return [record for record in chunk.records if wanted(record)]


def _position(cursor: str, query: object) -> LogPosition:
    position = pages.decode(cursor, query, (int, int), "start_cursor")
    return LogPosition() if position is None else LogPosition(*position)


def _cursor(query: object, position: LogPosition) -> str:
    return pages.encode(query, [position.attempt, position.sequence])
