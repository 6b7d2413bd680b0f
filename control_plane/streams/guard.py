"""What every stream keeps to: a reader that takes nothing is cut, a stream grows only so old, and a credential that was taken
away ends it.

A stream holds one message at most, the one that is being written. While its reader takes nothing that write does not end, and
the handler, which waits for it, can say nothing. So a watchman looks over all open streams and ends those that have stood still
for too long: their status follows the message that is under way, and whoever reads again finds it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from control_plane.call import current_call
from control_plane.errors import Reason, RefusedError
from control_plane.identity.principal import Principal
from control_plane.rpc.status import to_status

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_log = structlog.get_logger()

# A revoked credential ends its streams within 60 s: it may be believed for some time before and after it is looked at.
_RECHECK_SECONDS = 20.0


class Standing(Protocol):
    """Whether a caller is still who they were."""

    async def still_valid(self, principal: Principal) -> bool:
        """Whether the credential holds and nothing it gave was taken away."""
        ...


class Message(NamedTuple):
    """One message of a stream.

    Attributes:
        content: what is sent: a message, or its bytes.
        cursor: where a reader goes on that has received it; empty if the stream has none.
    """

    content: Any
    cursor: str


@dataclass(slots=True, eq=False)
class _Open:
    """One open stream.

    Attributes:
        context: of its call.
        method: for the log.
        cursor: of the message that is being written.
        writing_since: by the loop's clock; None while the reader waits for us.
        cut: its status has been given.
    """

    context: _Context
    method: str
    cursor: str = ""
    writing_since: float | None = None
    cut: bool = False


class StreamGuard:
    """The watchman over the open streams of a process."""

    def __init__(self, standing: Standing, stalled_seconds: float, seconds_max: float) -> None:
        """Args:
        standing: asked about the caller of every stream, three times a minute.
        stalled_seconds: a reader that takes nothing for this long is cut.
        seconds_max: a stream as old as this ends without `end_of_stream`; its reader goes on with its cursor.
        """
        self._standing = standing
        self._stalled_seconds = stalled_seconds
        self._seconds_max = seconds_max
        self._open: set[_Open] = set()
        self._cutting: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def open_streams(self) -> int:
        """How many there are."""
        return len(self._open)

    @property
    def cut_streams(self) -> int:
        """How many of them have been cut, and are open until their readers read up to there or are gone."""
        return sum(stream.cut for stream in self._open)

    async def start(self) -> None:
        """Begins to watch."""
        self._task = asyncio.create_task(self._watch(), name="stream guard")

    async def stop(self) -> None:
        """Ends; what is being cut is left to the server, which ends every call."""
        for task in (self._task, *self._cutting):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def guarded(self, messages: AsyncIterator[Message], context: _Context) -> AsyncGenerator[Any]:
        """The contents of a stream's messages, while its caller may have them and takes them.

        Raises:
            RefusedError: the caller's credential holds no more.
        """
        loop = asyncio.get_running_loop()
        call, began = current_call(), loop.time()
        check_at = began + _RECHECK_SECONDS
        stream = _Open(context, call.method)
        self._open.add(stream)
        try:
            async for message in messages:
                now = loop.time()
                if now >= check_at:
                    if not await self._standing.still_valid(call.principal):
                        raise RefusedError(Reason.UNAUTHENTICATED, "the credential is missing or not valid")
                    check_at = now + _RECHECK_SECONDS
                stream.cursor, stream.writing_since = message.cursor, now
                yield message.content
                if stream.cut or now - began >= self._seconds_max:
                    return
                stream.writing_since = None
        finally:
            self._open.discard(stream)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Often enough that a stalled stream is cut when it is due, give or take a tenth.
            await asyncio.sleep(min(1.0, self._stalled_seconds / 10))
            due = loop.time() - self._stalled_seconds
            for stream in tuple(self._open):
                if not stream.cut and stream.writing_since is not None and stream.writing_since <= due:
                    task = asyncio.create_task(self._cut(stream), name="cut stream")
                    self._cutting.add(task)
                    task.add_done_callback(self._cutting.discard)

    async def _cut(self, stream: _Open) -> None:
        if stream.writing_since is None:
            return  # it was read from just now
        stream.cut = True
        _log.info("stream.cut", method=stream.method, stalled_seconds=self._stalled_seconds)
        refusal = RefusedError(
            Reason.SLOW_READER,
            f"nothing was read from this stream for {self._stalled_seconds:g} s; read faster, or ask for less, and resume with "
            "the cursor in the metadata",
            {"resume_from": stream.cursor},
        )
        status = rpc_status.to_status(to_status(refusal))
        # Done when the reader has read up to here, or its connection is gone: the call is open, and counted, until then.
        # It raises what ends the handler, whose task is another one.
        with suppress(grpc.aio.AbortError, grpc.aio.BaseError):
            await stream.context.abort(status.code, status.details, status.trailing_metadata)
