"""A server span for every call, in the trace its caller began.

The attributes are those of OpenTelemetry's semantic conventions for RPC. Only `traceparent` is read of what the caller sends:
baggage of strangers would travel on with every outgoing call.
"""

from __future__ import annotations

from typing import Any, ClassVar

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from control_plane.rpc.exchange import Exchange, Proceed
from control_plane.rpc.status import status_code

_PROPAGATOR = TraceContextTextMapPropagator()
_ROOT = otel.Context()


class Tracing:
    """Opens a span and names in it how the call ended."""

    name: ClassVar[str] = "tracing"
    after: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        """Args:
        tracer: what opens spans; None: that of the process.
        """
        self._tracer = tracer or trace.get_tracer("headway.rpc")

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, inside a span; but health checks would drown the traces of work."""
        if exchange.method.rule.access == "everyone":
            return await proceed(exchange)
        method = exchange.method.name
        service, _, verb = method.partition("/")
        parent = _parent(exchange)
        span = self._tracer.start_span(
            method,
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": verb,
                "net.peer.ip": exchange.peer.partition(":")[2],
            },
        )
        token = otel.attach(trace.set_span_in_context(span, parent))
        try:
            return await proceed(exchange)
        finally:
            otel.detach(token)
            if exchange.refused is None:
                span.set_attribute("rpc.grpc.status_code", 0)
            else:
                code = status_code(exchange.refused)
                span.set_attribute("rpc.grpc.status_code", code)
                span.set_attribute("error.type", str(exchange.refused))
                if code in _OUR_FAULT:
                    span.set_status(trace.StatusCode.ERROR, str(exchange.refused))
            span.end()


# What the conventions count as a server's error: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
_OUR_FAULT = frozenset({2, 4, 12, 13, 14, 15})


def _parent(exchange: Exchange) -> otel.Context:
    for key, value in exchange.context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str):
            return _PROPAGATOR.extract({key: value}, _ROOT)
    return _ROOT
