"""A span for each decision, in its job's trace: thousands a second, so without the cost of making each the current one."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from headway_client.telemetry import exported, tracer


def decided(name: str, parent: str, attributes: Mapping[str, str | int]) -> str:
    """Records that something was decided; returns the traceparent that what follows continues from: where spans go nowhere,
    `parent` itself.

    Args:
        name: of the span.
        parent: the job's traceparent; one that is empty or makes no sense begins a trace.
        attributes: of the span.
    """
    if not exported():
        return parent
    span = tracer().start_span(name, _context(parent), attributes=attributes)
    span.end()
    own = span.get_span_context()
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}" if own.is_valid else parent


def _context(parent: str) -> Context:
    parts = parent.split("-")
    try:
        _, trace_id, span_id, flags = parts
        remote = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    except ValueError:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(remote), Context())
