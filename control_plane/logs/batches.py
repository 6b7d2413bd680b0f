"""What runners send: the limits of a batch, and batches that arrived together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

from control_plane.errors import RefusedError, invalid_field
from control_plane.rpc.convert import identifier
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as pb

RECORDS_MAX = 1_000
_BATCH_BYTES_MAX = 2**20
_TEXT_BYTES_MAX = 16 * 1_024 + 64  # what a line is cut to, and the words that say so
_SOURCE_MAX = 64
_METRICS_MAX = 64
_METRIC_NAME_MAX = 128
_PHASE_MAX = 64
_TRACE_ID_MAX = 32
# Batches of one stream that share a commit, and that wait for the next: a runner that is faster than the disk waits for it.
_TOGETHER_MAX = 8


def require_batch(request: pb.AppendLogsRequest) -> None:
    """Holds a batch to its limits.

    Raises:
        RefusedError: with the first field at fault.
    """
    identifier(request.job_id, "job_id")
    records = request.records
    if not 1 <= len(records) <= RECORDS_MAX:
        raise invalid_field("records", f"holds {len(records)}; expected 1 to {RECORDS_MAX:,}")
    size = request.ByteSize()
    if size > _BATCH_BYTES_MAX:
        raise invalid_field("records", f"take {size} bytes; expected at most {_BATCH_BYTES_MAX:,} in a batch")
    expected = max(records[0].sequence, 1)
    for index, record in enumerate(records):
        if record.sequence != expected:
            raise invalid_field(f"records[{index}].sequence", f"is {record.sequence}; expected {expected}")
        expected += 1
        if record.HasField("line"):
            line = record.line
            # UTF-8 takes four bytes a character at most, so that few texts need to be encoded to be measured.
            if len(line.text) * 4 > _TEXT_BYTES_MAX and len(line.text.encode()) > _TEXT_BYTES_MAX:
                raise invalid_field(f"records[{index}].line.text", "is longer than 16 KiB; cut it")
            if len(line.source) > _SOURCE_MAX:
                raise invalid_field(f"records[{index}].line.source", f"is longer than {_SOURCE_MAX} characters")
        elif record.HasField("progress"):
            _require_progress(record.progress, f"records[{index}].progress")
        if len(record.trace_id) > _TRACE_ID_MAX or len(record.span_id) > _TRACE_ID_MAX:
            raise invalid_field(f"records[{index}].trace_id", "or span_id is longer than 32 hex digits")


def _require_progress(progress: log_record_pb2.Progress, path: str) -> None:
    if len(progress.metrics) > _METRICS_MAX:
        raise invalid_field(f"{path}.metrics", f"names more than {_METRICS_MAX} metrics")
    if any(len(name) > _METRIC_NAME_MAX for name in progress.metrics):
        raise invalid_field(f"{path}.metrics", f"holds a name longer than {_METRIC_NAME_MAX} characters")
    if len(progress.phase) > _PHASE_MAX:
        raise invalid_field(f"{path}.phase", f"is longer than {_PHASE_MAX} characters")


async def together(requests: AsyncIterator[pb.AppendLogsRequest]) -> AsyncGenerator[list[pb.AppendLogsRequest]]:
    """What has come since the last round, at least one request at a time.

    A request that cannot be had (it is refused, say) ends the stream after those before it were handed out.
    """
    queue: asyncio.Queue[pb.AppendLogsRequest | Exception | None] = asyncio.Queue(_TOGETHER_MAX)

    async def pull() -> None:
        try:
            async for request in requests:
                await queue.put(request)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pulling = asyncio.create_task(pull(), name="log requests")
    try:
        while True:
            arrived = [await queue.get()]
            while not queue.empty():
                arrived.append(queue.get_nowait())
            batch = [one for one in arrived if isinstance(one, pb.AppendLogsRequest)]
            if batch:
                yield batch
            end = arrived[-1]
            if isinstance(end, Exception):
                raise end
            if end is None:
                return
    finally:
        pulling.cancel()
        with suppress(asyncio.CancelledError, RefusedError):
            await pulling
