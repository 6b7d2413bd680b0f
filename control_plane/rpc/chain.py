"""The chain: every call goes through the same steps in the same order.

grpc's interceptors wrap one another per call, and the request is parsed before the first of them runs. Here one interceptor
replaces each method's handler, once, by one that takes bytes and runs them through the steps. Each step says what must stand
before it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from inspect import isasyncgen, isawaitable
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions

from control_plane.audit.trail import AuditTrail
from control_plane.rpc.auditing import Auditing
from control_plane.rpc.authentication import Authentication, Authenticator
from control_plane.rpc.authorization import Authorization, Permission
from control_plane.rpc.deadlines import Deadlines
from control_plane.rpc.decoding import Decoding
from control_plane.rpc.directory import Directory
from control_plane.rpc.exchange import Context, Exchange, Method, Proceed, Step
from control_plane.rpc.limits import Concurrency, Rates
from control_plane.rpc.policy import DENIED, Rule
from control_plane.rpc.refusing import Refusing
from control_plane.rpc.tracing import Tracing
from control_plane.settings import LimitsSettings

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

UNKNOWN = "unknown"
"""The name under which calls of methods that do not exist are traced and recorded: strangers do not choose what is stored."""


def steps(
    authenticator: Authenticator,
    directory: Directory,
    trail: AuditTrail,
    limits: LimitsSettings,
    deadline_seconds_max: float,
) -> tuple[Step, ...]:
    """The steps of a server, outermost first."""
    return (
        Tracing(),
        Refusing(),
        Auditing(trail),
        Deadlines(deadline_seconds_max),
        Authentication(authenticator),
        Rates(limits),
        Concurrency(limits),
        Permission(),
        Decoding(),
        Authorization(directory),
    )


class MisorderedError(Exception):
    """A step stands before one that it needs."""


def composed(chain: Sequence[Step], last: Proceed) -> Proceed:
    """The steps as one, around `last`.

    Raises:
        MisorderedError: a step comes before one it must come after.
    """
    seen: set[str] = set()
    for step in chain:
        missing = step.after - seen
        if missing:
            raise MisorderedError(f"step {step.name!r} must come after {', '.join(sorted(missing))}; reorder the chain")
        seen.add(step.name)
    proceed = last
    for step in reversed(chain):
        proceed = _around(step, proceed)
    return proceed


def _around(step: Step, proceed: Proceed) -> Proceed:
    around = step.around
    return lambda exchange: around(exchange, proceed)


class Chain(grpc.aio.ServerInterceptor):
    """Runs every call through the steps."""

    def __init__(self, chain: Sequence[Step], policy: Mapping[str, Rule]) -> None:
        self._proceed = composed(chain, _serve)
        self._policy = policy
        self._handlers: dict[str, _Handler] = {}
        unknown = Method(UNKNOWN, DENIED, False, True, True, lambda body: body, _nothing, known=False)
        # Whatever the caller took it for: a stream of no messages and a status is an answer to any kind of call.
        self._unknown = grpc.stream_stream_rpc_method_handler(self._streaming(unknown), None, None)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The method's handler, wrapped when it is first called."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None:
            found = await continuation(handler_call_details)
            if found is None:  # not kept: names that do not exist are without number
                return self._unknown
            handler = self._handlers[path] = self._wrapped(path.removeprefix("/"), found)
        return handler

    def _wrapped(self, name: str, handler: _Handler) -> _Handler:
        serving: Any = handler
        method = Method(
            name,
            self._policy.get(name, DENIED),
            mutates=mutates(name),
            streams=handler.request_streaming or handler.response_streaming,
            takes_stream=handler.request_streaming,
            decode=serving.request_deserializer,
            behaviour=serving.stream_stream or serving.stream_unary or serving.unary_stream or serving.unary_unary,
        )
        encode = _encoder(serving.response_serializer)
        # No deserializer: bytes stay bytes until the chain decodes them.
        if not method.streams:
            return grpc.unary_unary_rpc_method_handler(self._unary(method), None, encode)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(method), None, encode)
        return grpc.unary_stream_rpc_method_handler(self._streaming(method), None, encode)

    def _unary(self, method: Method) -> Any:
        proceed = self._proceed

        async def call(body: bytes, context: Context) -> Any:
            return await proceed(Exchange(method, context, body))

        return call

    def _streaming(self, method: Method) -> Any:
        proceed = self._proceed

        # Not a generator: messages are written further in, where the steps are around them.
        async def call(body: bytes | AsyncIterator[bytes], context: Context) -> None:
            await proceed(Exchange(method, context, body))

        return call


async def _serve(exchange: Exchange) -> Any:
    """The last of the chain: the servicer."""
    answer = exchange.method.behaviour(exchange.request, exchange.context)
    if not exchange.method.streams:
        return await answer
    if isasyncgen(answer):
        write = exchange.context.write
        # Closed here and now, whatever ends the stream, so that what it holds is given back.
        async with aclosing(answer):
            async for message in answer:
                await write(message)
    elif isawaitable(answer):  # it writes its messages itself
        await answer
    return None


def _nothing(request: Any, context: Context) -> None:
    """What a method that does not exist would do."""
    del request, context


def _encoder(encode: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Lets a servicer answer with bytes: those it encoded before, or keeps."""
    if encode is None:
        return None
    return lambda message: message if type(message) is bytes else encode(message)


def mutates(name: str) -> bool:
    """Whether a method of the contract changes anything, by its own words (`idempotency_level`)."""
    try:
        method = descriptor_pool.Default().FindMethodByName(name.replace("/", "."))
    except KeyError:
        return True
    return method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS and name.startswith("headway.")
