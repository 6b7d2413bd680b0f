"""What happens around every call: bytes that parse, a deadline, and errors in the contract's form.

The order is that of `chain()`: tracing first, so that every refusal has a span; then decoding and errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from control_plane.errors import Reason, RefusedError
from control_plane.rpc.status import as_refusal, to_status

_log = structlog.get_logger()

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class _Malformed:
    """Stands for a request whose bytes do not parse; grpc itself would answer INTERNAL."""


_MALFORMED = _Malformed()


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """Maps every error to the contract's form, and holds unary calls to the server's maximum deadline."""

    def __init__(self, deadline_seconds_max: float) -> None:
        self._deadline_seconds_max = deadline_seconds_max

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the method's handler by its kind."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/headway."):  # health and reflection keep their own ways
            return handler
        if handler.request_streaming:
            return _replace(handler, stream_stream=self._stream_stream(handler.stream_stream), decode=_decode_or_mark)
        if handler.response_streaming:
            return _replace(handler, unary_stream=self._unary_stream(handler.unary_stream), decode=_decode_or_mark)
        return _replace(handler, unary_unary=self._unary_unary(handler.unary_unary), decode=_decode_or_mark)

    def _unary_unary(self, behaviour: Any) -> Any:
        async def call(request: Any, context: _Context) -> Any:
            try:
                _refuse_malformed(request)
                # None when the caller set no deadline, whatever the type stubs say.
                remaining = cast("float | None", context.time_remaining())
                limit = self._deadline_seconds_max if remaining is None else min(remaining, self._deadline_seconds_max)
                async with asyncio.timeout(max(limit, 0.0)):
                    return await behaviour(request, context)
            except Exception as error:
                await _abort(context, error)

        return call

    def _unary_stream(self, behaviour: Any) -> Any:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            # The iteration is wrapped, not the call: what a stream raises it raises while it runs.
            try:
                _refuse_malformed(request)
                async for response in behaviour(request, context):
                    yield response
            except Exception as error:
                await _abort(context, error)

        return call

    def _stream_stream(self, behaviour: Any) -> Any:
        async def requests_of(iterator: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in iterator:
                _refuse_malformed(request)
                yield request

        async def call(iterator: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(requests_of(iterator), context):
                    yield response
            except Exception as error:
                await _abort(context, error)

        return call


def _decode_or_mark(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def wrapped(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _MALFORMED

    return wrapped


def _refuse_malformed(request: Any) -> None:
    if request is _MALFORMED:
        raise RefusedError(
            Reason.MALFORMED_REQUEST,
            "the request's bytes are not a message of the method's request type; check the client's version of the protos",
        )


def _replace(
    handler: _Handler,
    *,
    decode: Callable[[Callable[[bytes], Any]], Callable[[bytes], Any]],
    unary_unary: Any = None,
    unary_stream: Any = None,
    stream_stream: Any = None,
) -> _Handler:
    decoder, encoder = decode(cast(Any, handler.request_deserializer)), handler.response_serializer
    if unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(unary_unary, decoder, encoder)
    if unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(unary_stream, decoder, encoder)
    return grpc.stream_stream_rpc_method_handler(stream_stream, decoder, encoder)


async def _abort(context: _Context, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):  # aborted already, further in
        raise error
    refusal = as_refusal(error)
    if refusal.reason is not Reason.INTERNAL:
        _log.info("rpc.refused", reason=str(refusal.reason), message=refusal.message)
    status = rpc_status.to_status(to_status(refusal))
    # abort() rather than abort_with_status(): the tracing interceptor sees only the former, and marks the span.
    await context.abort(status.code, status.details, status.trailing_metadata)
