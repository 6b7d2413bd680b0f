"""Errors in the contract's form, whatever was raised, and whenever: a stream's messages are written further in."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import grpc
import structlog
from grpc_status import rpc_status

from control_plane.errors import Reason
from control_plane.identity.refusal import UnauthenticatedError
from control_plane.rpc.exchange import Exchange, Proceed
from control_plane.rpc.status import as_refusal, to_status

_log = structlog.get_logger()

_LOGGED_ELSEWHERE = frozenset({Reason.INTERNAL})
# These can be made as fast as the network allows; the audit log counts them all.
_FLOODING = frozenset({Reason.UNAUTHENTICATED, Reason.RATE_LIMITED, Reason.TOO_MANY_CALLS})
_FLOODING_LINES_PER_SECOND = 10


class Refusing:
    """Answers with a google.rpc.Status."""

    name: ClassVar[str] = "refusing"
    after: ClassVar[frozenset[str]] = frozenset({"tracing"})

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0

    def _may_log(self) -> bool:
        """Whether one more line of a flood goes into the log."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= _FLOODING_LINES_PER_SECOND

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest; what it raises becomes the call's status."""
        try:
            return await proceed(exchange)
        except grpc.aio.AbortError:  # answered already
            raise
        except Exception as error:
            refusal = as_refusal(error)
            exchange.refused = refusal.reason
            # What a stranger must not be told is for whoever looks for the cause.
            cause = refusal.cause if isinstance(refusal, UnauthenticatedError) else refusal.message
            if refusal.reason not in _LOGGED_ELSEWHERE and (refusal.reason not in _FLOODING or self._may_log()):
                _log.info("rpc.refused", method=exchange.method.name, reason=str(refusal.reason), message=cause)
            status = rpc_status.to_status(to_status(refusal))
            await exchange.context.abort(status.code, status.details, status.trailing_metadata)
