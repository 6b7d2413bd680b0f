"""Channels to the control plane that carry the current trace, for blocking and for asyncio callers.

A unary call gets a client span. A stream gets none, because it may live for hours and a span is only seen once it has
ended; it carries the caller's own trace context instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, cast

import grpc
from grpc import aio
from opentelemetry import propagate
from opentelemetry.instrumentation.grpc import aio_client_interceptors, client_interceptor, grpcext

_MESSAGE_BYTES_MAX = 32 * 1024 * 1024  # A batch of 1,000 log lines of 16 KiB fits.


def sync_channel(address: str) -> grpc.Channel:
    """A channel for blocking calls to `address`, host:port."""
    channel = grpc.insecure_channel(address, options=_options(address))
    # The interceptor's own handling of streams ties them to a generator that can neither be cancelled nor read elsewhere.
    spans: Any = client_interceptor(filter_=_is_unary)
    return cast("grpc.Channel", grpcext.intercept_channel(channel, spans))


def aio_channel(address: str) -> aio.Channel:
    """A channel for asyncio calls to `address`, host:port. It belongs to the running event loop."""
    spans = [i for i in aio_client_interceptors() if isinstance(i, aio.UnaryUnaryClientInterceptor)]
    streams = [_UnaryStreamContext(), _StreamUnaryContext(), _StreamStreamContext()]
    return aio.insecure_channel(address, options=_options(address), interceptors=[*spans, *streams])


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """The current trace context as gRPC metadata; empty when no span is open."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())


def _is_unary(call: object) -> bool:
    # The interceptor describes a stream, and only a stream, by which sides of it stream.
    return not hasattr(call, "is_server_stream")


def _options(address: str) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        # Come back within seconds of a restarted server; the defaults grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A peer that vanished without closing is noticed while a stream waits. The server's heartbeats come more often
        # than these pings, so a healthy one is never asked.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # An environment's HTTP proxy has no way to this machine's own loopback.
        ("grpc.enable_http_proxy", 0 if _is_loopback(address) else 1),
    ]


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_Continuation = Callable[[aio.ClientCallDetails, Any], Any]


def _with_context(details: aio.ClientCallDetails) -> aio.ClientCallDetails:
    metadata = aio.Metadata(*(details.metadata or ()), *trace_metadata())
    return aio.ClientCallDetails(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)


class _UnaryStreamContext(aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: _Continuation, client_call_details: aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details), request)


class _StreamUnaryContext(aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: _Continuation,
        client_call_details: aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(_with_context(client_call_details), request_iterator)


class _StreamStreamContext(aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: _Continuation,
        client_call_details: aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(_with_context(client_call_details), request_iterator)
