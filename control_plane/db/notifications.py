"""Wake-ups from PostgreSQL's NOTIFY, for any number of waiting tasks over one connection."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
import structlog

_log = structlog.get_logger()

_RECONNECT_SECONDS = 0.5


class Notifications:
    """Listens on channels and wakes whoever waits on one.

    A notification may be lost (while reconnecting, say); so everybody who waits does so with a time limit and then looks.
    """

    def __init__(self, dsn: str, channels: Sequence[str]) -> None:
        self._dsn = dsn
        self._channels = tuple(channels)
        self._waiting: defaultdict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to listen; reconnects for ever."""
        self._task = asyncio.create_task(self._run(), name="notifications")

    async def stop(self) -> None:
        """Ends listening."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @contextmanager
    def subscribed(self, channel: str, payload: str = "") -> Generator[asyncio.Event]:
        """An event that is set whenever `channel` is notified with `payload`. Who waits clears it before looking."""
        event = asyncio.Event()
        key = (channel, payload)
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def _wake(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        for event in self._waiting.get((channel, str(payload)), ()):
            event.set()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
                _log.warning("notifications.connection_lost")
            # A connection that breaks off in the middle of a statement raises whatever the driver was about to do, its
            # internal errors included. Listening must outlive them all.
            except Exception as error:
                _log.warning("notifications.unavailable", error=str(error))
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen(self) -> None:
        """Listens until the connection is lost."""
        connection = await asyncpg.connect(self._dsn, timeout=10)
        try:
            closed = asyncio.Event()
            connection.add_termination_listener(_setter(closed))
            for channel in self._channels:
                await connection.add_listener(channel, self._wake)
            # What was notified while nobody listened is found by looking once.
            self._wake_all()
            await closed.wait()
        finally:
            connection.terminate()


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Waits until the event is set or the time has passed; says whether it was set, and clears it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    was_set = event.is_set()
    event.clear()
    return was_set


def _setter(event: asyncio.Event) -> Callable[[Any], None]:
    def set_event(_connection: Any) -> None:
        event.set()

    return set_event
