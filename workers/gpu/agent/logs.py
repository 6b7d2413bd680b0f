"""The agent's stream to the log service: batches within 200 ms, acknowledged, taken up again where it broke."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace

from headway.logs.v1 import log_record_pb2 as pb
from headway.logs.v1 import log_service_pb2
from headway_client.errors import HeadwayError
from workers.control_plane import STALE_ATTEMPT, ControlPlane
from workers.gpu.agent.log_buffer import LogBuffer, cut

_LINGER_SECONDS = 0.05
"""How long a record may wait for company."""
_RECONNECT_SECONDS_MAX = 2.0
_METRICS_MAX = 64
_LEVELS = {
    "DEBUG": pb.LOG_LEVEL_DEBUG,
    "INFO": pb.LOG_LEVEL_INFO,
    "WARNING": pb.LOG_LEVEL_WARNING,
    "ERROR": pb.LOG_LEVEL_ERROR,
}
_log = structlog.get_logger()


class LogForwarder:
    """Takes lines and measurements of one attempt, from the event loop it belongs to, and sees to it that they arrive."""

    def __init__(self, control_plane: ControlPlane, job_id: str, attempt: int) -> None:
        self._control_plane = control_plane
        self._job_id = job_id
        self._attempt = attempt
        self._buffer = LogBuffer()
        self._stream = 0

    def line(self, text: str, source: str, level: str = "INFO", at: Mapping[str, Any] | None = None) -> None:
        """A line of text. `at` may hold `time` in Unix seconds, `trace_id` and `span_id`; default: now, the current span."""
        line = pb.LogLine(level=_LEVELS.get(level, pb.LOG_LEVEL_INFO), text=cut(text), source=source)
        record = _record(at or {})
        record.line.CopyFrom(line)
        self._buffer.add(record)

    def progress(self, event: Mapping[str, Any]) -> None:
        """A measurement as the runner wrote it: phase, step, total_steps, metrics."""
        record = _record(event)
        metrics = dict(list(event["metrics"].items())[:_METRICS_MAX])
        progress = pb.Progress(step=event["step"], total_steps=event["total_steps"], metrics=metrics, phase=event["phase"])
        record.progress.CopyFrom(progress)
        self._buffer.add(record)

    async def forward(self) -> str:
        """Forwards until the server says that another attempt is current, and returns what it said."""
        wait = 0.1
        while True:
            started = time.monotonic()
            try:
                await self._run_stream()
            except asyncio.CancelledError:
                # gRPC raises it also when it was the server that cancelled the call.
                if _asked_to_stop():
                    raise
            except HeadwayError as error:
                if error.reason == STALE_ATTEMPT:
                    return error.message
                _log.warning("the log stream broke and is opened again", error=str(error))
            wait = 0.1 if time.monotonic() - started > _RECONNECT_SECONDS_MAX else min(2 * wait, _RECONNECT_SECONDS_MAX)
            await asyncio.sleep(wait)

    async def flush(self, seconds: float) -> bool:
        """Waits until everything taken so far is stored, at most so long; returns whether it is."""
        try:
            async with asyncio.timeout(seconds):
                await self._buffer.emptied()
        except TimeoutError:
            return False
        return True

    async def _run_stream(self) -> None:
        self._stream += 1
        self._buffer.rewind()
        answers = self._control_plane.append_logs(self._job_id, self._attempt, self._requests(self._stream))
        try:
            async with aclosing(answers):
                async for answer in answers:
                    self._buffer.acknowledge(answer.acknowledged_sequence)
        finally:
            self._stream += 1  # Whoever still makes requests for this stream stops.

    async def _requests(self, stream: int) -> AsyncIterator[log_service_pb2.AppendLogsRequest]:
        while stream == self._stream:
            if records := self._buffer.next_batch():
                yield log_service_pb2.AppendLogsRequest(job_id=self._job_id, attempt=self._attempt, records=records)
            else:
                await self._buffer.changed()
                await asyncio.sleep(_LINGER_SECONDS)


def _asked_to_stop() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _record(at: Mapping[str, Any]) -> pb.LogRecord:
    span = trace.get_current_span().get_span_context()
    made = Timestamp()
    made.FromNanoseconds(int(float(at.get("time", time.time())) * 1e9))
    return pb.LogRecord(
        time=made,
        trace_id=str(at.get("trace_id") or (f"{span.trace_id:032x}" if span.is_valid else "")),
        span_id=str(at.get("span_id") or (f"{span.span_id:016x}" if span.is_valid else "")),
    )
