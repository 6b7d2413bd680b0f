"""One call on its way through the steps of the chain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import grpc

from control_plane.call import Call
from control_plane.errors import Reason
from control_plane.rpc.policy import Rule

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Method:
    """What never changes about a method.

    Attributes:
        name: full name, such as `headway.jobs.v1.JobService/SubmitJob`.
        rule: who may call it.
        mutates: whether it changes anything but its own caller's knowledge.
        streams: whether it answers with a stream, or takes one.
        takes_stream: whether requests come as a stream.
        decode: bytes to message; raises DecodeError.
        behaviour: the servicer's method.
        known: whether there is such a method at all.
    """

    name: str
    rule: Rule
    mutates: bool
    streams: bool
    takes_stream: bool
    decode: Callable[[bytes], Any]
    behaviour: Callable[[Any, Context], Any]
    known: bool = True


@dataclass(slots=True)
class Exchange:
    """A call under way.

    Attributes:
        method: what is called.
        context: grpc's.
        body: the request as it came; an iterator of them if it is a stream. Nothing parses it before its caller is known.
        request: the request, decoded; likewise.
        call: who calls, once that is known.
        denied: the caller may not do this, or not see what it is about.
        refused: the reason it ended with, if it was refused.
    """

    method: Method
    context: Context
    body: Any
    request: Any = None
    call: Call | None = None
    denied: bool = False
    refused: Reason | None = None

    @property
    def peer(self) -> str:
        """The address the call came from, without the port, which says nothing about who it is."""
        peer = self.context.peer()
        return peer.rpartition(":")[0] if peer.count(":") > 1 else peer


Proceed: TypeAlias = Callable[[Exchange], Awaitable[Any]]
"""The rest of the chain: the response of a unary call, None for a stream, whose messages are written as they come."""


class Step(Protocol):
    """Something that is done around every call."""

    name: ClassVar[str]
    after: ClassVar[frozenset[str]]
    """The steps that must stand before it, further out."""

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """Does its part before and after `proceed`, or refuses.

        Raises:
            RefusedError: the call goes no further.
        """
        ...
