"""The span that a person's command begins a trace with, in a program that lives for one command."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

from headway_client import telemetry
from headway_client.connection import Connection

_FLUSH_SECONDS = 2.0


@contextmanager
def traced(connection: Connection, service: str, span: str) -> Generator[None]:
    """Makes the calls of the block one trace, exported when the block ends; without a place for traces, does nothing.

    At most once in a process, because it sets up and shuts down the process's tracing.

    Args:
        connection: says where spans go.
        service: `service.name` of the spans, such as "headway-cli".
        span: the name of the first one.
    """
    if connection.otlp_traces_url is None:
        yield
        return
    # A collector that is away is not the reader's concern; the command's own answer is.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    provider = telemetry.configure_tracing(service, connection.otlp_traces_url, connection.otlp_headers)
    try:
        with telemetry.tracer().start_as_current_span(span):
            yield
    finally:
        # A daemon thread, so that a collector that hangs cannot hold the command for longer than this.
        flush = threading.Thread(target=provider.shutdown, daemon=True)
        flush.start()
        flush.join(_FLUSH_SECONDS)
