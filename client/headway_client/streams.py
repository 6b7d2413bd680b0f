"""How a stream survives its connection: the cursor of the last message consumed, and when to give up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import grpc
from google.protobuf.descriptor import Descriptor

from headway_client.errors import HeadwayError
from headway_client.retries import RetryPolicy, backoff


class StreamRequest(Protocol):
    """What asks for a resumable stream."""

    start_cursor: str

    @property
    def DESCRIPTOR(self) -> Descriptor:  # noqa: N802  the generated name
        """What fields it has."""
        ...


class StreamResponse(Protocol):
    """What every resumable stream sends."""

    @property
    def cursor(self) -> str:
        """Where to go on after this message."""
        ...

    @property
    def end_of_stream(self) -> bool:
        """Nothing can follow."""
        ...


StreamRequestT = TypeVar("StreamRequestT", bound=StreamRequest)
StreamResponseT = TypeVar("StreamResponseT", bound=StreamResponse)

# A read may always be made again. CANCELLED comes from a server that stops, DEADLINE_EXCEEDED from a call that grew old.
_BROKEN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN}
)
_ASK_FOR_ANOTHER = frozenset({"SLOW_READER", "DEADLINE_EXCEEDED"})


class Resumption:
    """The state of one logical stream over all the calls that carry it."""

    def __init__(self, policy: RetryPolicy, start_cursor: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.cursor = start_cursor
        """Resume after this; everything up to it was consumed."""
        self._policy = policy
        self._clock = clock
        self._heard_at = clock()
        self._waits = backoff(policy)

    def ask(self, request: StreamRequest) -> None:
        """Makes the stream's request that of its next call."""
        request.start_cursor = self.cursor
        # "From now" was when the stream was asked for, and that is what the cursor says.
        if self.cursor and "from_now" in request.DESCRIPTOR.fields_by_name:
            setattr(request, "from_now", False)  # noqa: B010  only some requests have it

    def received(self, response: StreamResponse) -> None:
        """Notes a message before it is handed out."""
        self.cursor = response.cursor or self.cursor
        self._heard_at = self._clock()
        self._waits = backoff(self._policy)

    def wait_seconds(self, error: HeadwayError | None, *, token_renewed: bool = False) -> float:
        """How long to wait before the stream is opened again.

        Args:
            error: how the last call ended; None when it ended well but before the stream's end.
            token_renewed: the caller now has another token than the one that the last call was made with.

        Raises:
            HeadwayError: `error`, when reopening cannot help or has been tried for long enough.
        """
        outlived = token_renewed and error is not None and error.code is grpc.StatusCode.UNAUTHENTICATED
        if error is not None and not outlived and not _may_reopen(error):
            raise error
        asked_seconds = (error.retry_after_seconds if error is not None else None) or 0.0
        silent_seconds = self._clock() - self._heard_at
        if silent_seconds > self._policy.stream_silence_seconds_max:
            raise error or HeadwayError(
                grpc.StatusCode.UNAVAILABLE,
                f"the stream ended {silent_seconds:.0f} s ago without saying that it was complete, "
                "and reopening it brought nothing",
            )
        return next(self._waits) + asked_seconds


def _may_reopen(error: HeadwayError) -> bool:
    # An error with a reason is Headway's own answer, not a broken connection; some of them ask for another call.
    if error.reason:
        asked = error.code is grpc.StatusCode.UNAVAILABLE or error.reason in _ASK_FOR_ANOTHER
        return asked or (error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_seconds is not None)
    return error.code in _BROKEN
