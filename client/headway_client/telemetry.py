"""Traces and structured logs, set up the same way in every process of Headway.

One trace follows a job from the client's call to the training step. A process that starts another hands its context over
as a W3C traceparent (https://www.w3.org/TR/trace-context/): in gRPC metadata, in a Temporal header, in a database column,
or in the environment variable TRACEPARENT.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_exported = False


def configure(service: str, otlp_traces_url: str | None, otlp_headers: Mapping[str, str]) -> TracerProvider:
    """Sets the process's tracer provider and its logging; returns the provider, to be shut down at the end.

    The arguments are those of `configure_tracing`.
    """
    provider = configure_tracing(service, otlp_traces_url, otlp_headers)
    _configure_logging(service)
    return provider


def configure_tracing(service: str, otlp_traces_url: str | None, otlp_headers: Mapping[str, str]) -> TracerProvider:
    """Sets the process's tracer provider only, for a program whose output is for people; returns the provider.

    Args:
        service: `service.name` of every span, such as "headway-scheduler".
        otlp_traces_url: full URL of an OTLP/HTTP traces endpoint, or None to keep spans inside the process.
        otlp_headers: headers of every export.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(_Labelled(service))
    if otlp_traces_url is not None:
        exporter = OTLPSpanExporter(endpoint=otlp_traces_url, headers=dict(otlp_headers), timeout=5)
        # A collector that is down or slow must cost spans, never work: the queue is bounded and drops.
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=4096, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)
    global _exported  # noqa: PLW0603 - belongs to the process, as the tracer provider does
    _exported = otlp_traces_url is not None
    return provider


def exported() -> bool:
    """Whether spans leave this process: where thousands a second are made, none is if nobody can ever see it."""
    return _exported


class _Labelled(SpanProcessor):
    """Names the process on each span too: some trace stores, MLflow's among them, drop what stands on the resource."""

    def __init__(self, service: str) -> None:
        self._service = service

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        """Called when a span opens."""
        del parent_context
        span.set_attribute("service.name", self._service)


def tracer() -> trace.Tracer:
    """The tracer of Headway's own spans."""
    return trace.get_tracer("headway")


def traceparent() -> str:
    """The current context as a W3C traceparent; empty when no span is open."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id_of(parent: str) -> str:
    """The 32 hex digits of the trace in a traceparent; empty for an empty one."""
    parts = parent.split("-")
    return parts[1] if len(parts) == 4 else ""


@contextmanager
def continued(parent: str) -> Generator[None]:
    """Makes `parent`, a traceparent, the current context inside the block; an empty one starts a new trace."""
    token = context.attach(propagate.extract({"traceparent": parent}) if parent else context.Context())
    try:
        yield
    finally:
        context.detach(token)


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event.setdefault("trace_id", f"{span.trace_id:032x}")
        event.setdefault("span_id", f"{span.span_id:016x}")
    return event


def _configure_logging(service: str) -> None:
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.dict_tracebacks,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
