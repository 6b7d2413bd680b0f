"""Channels to the control plane that carry the caller's token and the current trace, for blocking and for asyncio callers.

A unary call gets a client span. A stream gets none, because it may live for hours and a span is only seen once it has
ended; it carries the caller's own trace context instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, NamedTuple, cast

import grpc
from grpc import aio
from opentelemetry import propagate
from opentelemetry.instrumentation.grpc import aio_client_interceptors, client_interceptor, grpcext

from headway_client.credentials import ANONYMOUS, AUTHORIZATION, Credentials, is_loopback

_MESSAGE_BYTES_MAX = 32 * 1024 * 1024  # A batch of 1,000 log lines of 16 KiB fits.


def sync_channel(address: str, credentials: Credentials = ANONYMOUS) -> grpc.Channel:
    """A channel for blocking calls to `address`, host:port.

    Raises:
        CredentialsError: the token could be read on the way.
    """
    credentials.check(address)
    options = _options(address)
    channel = (
        grpc.insecure_channel(address, options=options)
        if credentials.tls is None
        else grpc.secure_channel(address, credentials.tls.channel_credentials(), options=options)
    )
    # The interceptor's own handling of streams ties them to a generator that can neither be cancelled nor read elsewhere.
    spans: Any = client_interceptor(filter_=_is_unary)
    channel = cast("grpc.Channel", grpcext.intercept_channel(channel, spans))
    return channel if credentials.token is None else grpc.intercept_channel(channel, _Bearer(credentials))


def aio_channel(address: str, credentials: Credentials = ANONYMOUS) -> aio.Channel:
    """A channel for asyncio calls to `address`, host:port. It belongs to the running event loop.

    A call that brings an authorization of its own keeps it.

    Raises:
        CredentialsError: the token could be read on the way.
    """
    credentials.check(address)
    spans = [i for i in aio_client_interceptors() if isinstance(i, aio.UnaryUnaryClientInterceptor)]
    own = [kind(credentials) for kind in (_UnaryUnaryContext, _UnaryStreamContext, _StreamUnaryContext, _StreamStreamContext)]
    options, interceptors = _options(address), [*spans, *own]
    if credentials.tls is None:
        return aio.insecure_channel(address, options=options, interceptors=interceptors)
    return aio.secure_channel(address, credentials.tls.channel_credentials(), options=options, interceptors=interceptors)


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
        ("grpc.enable_http_proxy", 0 if is_loopback(address) else 1),
    ]


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds the token to calls of a blocking client, none of which sends a stream."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def _with_token(self, details: Any) -> Any:
        return _CallDetails(
            details.method,
            details.timeout,
            [*(details.metadata or ()), *self._credentials.metadata()],
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


_Continuation = Callable[[aio.ClientCallDetails, Any], Any]


class _Context:
    """Adds to a call's metadata what every call carries."""

    carries_trace = True

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def _with_context(self, details: aio.ClientCallDetails) -> aio.ClientCallDetails:
        given = tuple(details.metadata or ())
        own = () if any(key == AUTHORIZATION for key, _ in given) else self._credentials.metadata()
        metadata = aio.Metadata(*given, *own, *(trace_metadata() if self.carries_trace else ()))
        return aio.ClientCallDetails(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)


class _UnaryUnaryContext(_Context, aio.UnaryUnaryClientInterceptor):
    carries_trace = False  # The span's interceptor sees to it.

    async def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._with_context(client_call_details), request)


class _UnaryStreamContext(_Context, aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: _Continuation, client_call_details: aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._with_context(client_call_details), request)


class _StreamUnaryContext(_Context, aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: _Continuation,
        client_call_details: aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(self._with_context(client_call_details), request_iterator)


class _StreamStreamContext(_Context, aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: _Continuation,
        client_call_details: aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(self._with_context(client_call_details), request_iterator)
