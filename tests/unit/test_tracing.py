"""Every call has a span, in the trace of its caller, that says how it ended; through a real server and a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from control_plane.errors import Reason, RefusedError
from control_plane.rpc.chain import Chain
from control_plane.rpc.policy import POLICY
from control_plane.rpc.refusing import Refusing
from control_plane.rpc.tracing import Tracing
from tests.waiting import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


class _Server:
    """Answers a few methods, with nothing around them but spans and statuses."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.baggage: list[object] = []
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        chain = Chain((Tracing(provider.get_tracer("test")), Refusing()), POLICY)
        self.server = grpc.aio.server(interceptors=[chain])
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        handlers: dict[str, Any] = {
            "GetJob": grpc.unary_unary_rpc_method_handler(self._good),
            "CancelJob": grpc.unary_unary_rpc_method_handler(self._refused),
            "UpdateJob": grpc.unary_unary_rpc_method_handler(self._broken),
            "WatchEvents": grpc.unary_stream_rpc_method_handler(self._stream),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("headway.jobs.v1.JobService", handlers),))

    async def _good(self, request: Any, context: Any) -> bytes:
        del request, context
        self.baggage.append(baggage.get_baggage("secret"))
        assert trace.get_current_span().get_span_context().is_valid
        return b""

    async def _refused(self, request: Any, context: Any) -> bytes:
        del request, context
        raise RefusedError(Reason.JOB_NOT_FOUND, "there is no such job")

    async def _broken(self, request: Any, context: Any) -> bytes:
        del request, context
        raise ZeroDivisionError

    async def _stream(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        del request, context
        yield b"one"
        raise RefusedError(Reason.SLOW_READER, "too slow")

    async def span(self) -> ReadableSpan:
        """The one there is; it ends after its caller has the answer."""
        await until(lambda: bool(self.exporter.get_finished_spans()), "a span of the server's")
        [span] = self.exporter.get_finished_spans()
        return span


@pytest.fixture
async def server() -> AsyncIterator[_Server]:
    running = _Server()
    await running.server.start()
    yield running
    await running.server.stop(0)


async def _call(server: _Server, verb: str, **options: Any) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        path = f"/headway.jobs.v1.JobService/{verb}"
        if verb == "WatchEvents":
            async for _ in channel.unary_stream(path)(b"", **options):
                pass
        else:
            await channel.unary_unary(path)(b"", **options)


async def test_a_call_continues_its_callers_trace_and_nothing_else_of_it(server: _Server) -> None:
    metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("baggage", "secret=1"))
    await _call(server, "GetJob", metadata=metadata)
    span = await server.span()
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    assert parent is not None
    assert (f"{context.trace_id:032x}", f"{parent.span_id:016x}") == (TRACE, SPAN)
    assert span.kind is trace.SpanKind.SERVER
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "headway.jobs.v1.JobService",
        "rpc.method": "GetJob",
        "net.peer.ip": "127.0.0.1",
        "rpc.grpc.status_code": 0,
    }
    assert server.baggage == [None]


@pytest.mark.parametrize("traceparent", [None, "", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5_000])
async def test_a_caller_without_a_trace_begins_one(server: _Server, traceparent: str | None) -> None:
    await _call(server, "GetJob", metadata=() if traceparent is None else (("traceparent", traceparent),))
    span = await server.span()
    assert span.parent is None


@pytest.mark.parametrize(
    ("verb", "code", "error", "ours"),
    [("CancelJob", 5, "JOB_NOT_FOUND", False), ("UpdateJob", 13, "INTERNAL", True), ("WatchEvents", 8, "SLOW_READER", False)],
)
async def test_a_span_says_how_its_call_ended(server: _Server, verb: str, code: int, error: str, ours: bool) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _call(server, verb)
    number: Any = caught.value.code().value
    assert number[0] == code
    span = await server.span()
    assert span.attributes is not None
    assert (span.attributes["rpc.grpc.status_code"], span.attributes["error.type"]) == (code, error)
    assert (span.status.status_code is trace.StatusCode.ERROR) is ours
