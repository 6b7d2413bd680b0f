"""Who calls, from the credential alone and before a byte of the request is parsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from opentelemetry import trace

from control_plane.call import Call, serve_call
from control_plane.errors import Reason, RefusedError
from control_plane.identity.principal import Principal
from control_plane.rpc.exchange import Exchange, Proceed


class Authenticator(Protocol):
    """What finds the principal of a credential."""

    async def authenticate(
        self, metadata: Iterable[tuple[str, str | bytes]], auth_context: Mapping[str, Sequence[bytes]]
    ) -> Principal:
        """The caller.

        Args:
            metadata: what the caller sent.
            auth_context: what the connection proves, as gRPC names it.

        Raises:
            RefusedError: UNAUTHENTICATED, for every cause alike.
        """
        ...


class Authentication:
    """Refuses strangers, and makes the call known to what it runs."""

    name: ClassVar[str] = "authentication"
    after: ClassVar[frozenset[str]] = frozenset({"tracing", "refusing", "auditing", "deadlines"})

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, with a caller.

        Raises:
            RefusedError: nobody that we know calls, or there is no such method.
        """
        method = exchange.method
        if method.rule.access == "everyone":
            return await proceed(exchange)
        context = exchange.context
        metadata: Any = context.invocation_metadata() or ()
        connection: Any = context.auth_context()
        principal = await self._authenticator.authenticate(metadata, connection)
        span = trace.get_current_span().get_span_context()
        exchange.call = Call(
            method=method.name,
            principal=principal,
            trace_id=f"{span.trace_id:032x}" if span.is_valid else "",
            peer=exchange.peer,
        )
        serve_call(exchange.call)
        if not method.known:
            raise RefusedError(
                Reason.UNKNOWN_METHOD, "there is no such method; docs/reference/rpcs.md lists those that there are"
            )
        return await proceed(exchange)
