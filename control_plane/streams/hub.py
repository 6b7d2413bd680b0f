"""One reader of new events for all watchers of a process.

A tailer is woken by the sequencer's notification, and once a second should one be lost. It reads what was positioned since, if
anybody follows it, serialises it once, and hands it to the channel of every scope it belongs to. A channel holds the newest
events of its scope; a watcher that is further behind reads pages of the log until it is within reach (`follow`).
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

import structlog
from sqlalchemy import ARRAY, ColumnElement, RowMapping, Text, any_, literal, or_, select
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.notifications import Notifications, wait_for
from control_plane.db.tables import CHANNEL_EVENTS_POSITIONED, event_log_head, job_events
from control_plane.streams.event_log import Event, events_of, fitting
from control_plane.streams.scopes import JobScope, VisibleScope, WatchScope, scopes_of

_log = structlog.get_logger()

_POLL_SECONDS = 1.0
# How late a heartbeat may be.
_TICK_SECONDS = 0.1
# Positions read in one go: a bound on how long the event loop serialises, and on memory.
_POSITIONS_PER_READ = 500
# All channels together; each has an equal share, and at least so much that a message fits.
_CHANNELS_BYTES = 32 * 2**20
_CHANNEL_BYTES_MIN = 16 * 2**10


class Channel:
    """The newest events of one scope. Everything of the scope after `start` and up to `end` is in it.

    Attributes:
        start: None until the tailer has taken the scope into account.
        end: the newest position that is known to hold nothing more of the scope.
    """

    def __init__(self) -> None:
        self.start: int | None = None
        self.end = 0
        self.watchers = 0
        self._events: list[Event] = []
        self._positions: list[int] = []
        self._bytes = 0
        # Until when each waits. No timer of its own for each: there may be thousands, and most are woken by an event.
        self._waiting: dict[asyncio.Future[None], float] = {}
        self._told: list[asyncio.Event] = []

    def reaches(self, position: int) -> bool:
        """Whether whoever has seen everything up to `position` can go on from here."""
        return self.start is not None and self.start <= position

    def after(self, position: int) -> Sequence[Event]:
        """What follows a position that is within reach, one message of it at most."""
        return fitting(self._events, bisect_right(self._positions, position))

    async def grown(self, until: float) -> None:
        """Waits until the tailer brings something, or until a time of the loop's clock, give or take a tick."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = until
        try:
            await future
        finally:
            self._waiting.pop(future, None)

    def wake(self, now: float) -> None:
        """Wakes those who wait no longer than until now."""
        for future in [future for future, until in self._waiting.items() if until <= now]:
            _wake(future)

    @contextmanager
    def telling(self, told: asyncio.Event) -> Generator[None]:
        """Inside the block `told` is set when events came: for who also waits for other things."""
        self._told.append(told)
        try:
            yield
        finally:
            self._told.remove(told)

    def add(self, event: Event) -> None:
        """Appends the next event."""
        self._events.append(event)
        self._positions.append(event.position)
        self._bytes += len(event.frame)

    def advance(self, position: int, bytes_max: int, *, wake: bool) -> None:
        """Notes that everything up to a position has been added; the oldest half goes when there is too much."""
        self.end = position
        if self._bytes > bytes_max:
            cut = (len(self._events) + 1) // 2
            self.start = self._positions[cut - 1]
            self._bytes -= sum(len(event.frame) for event in self._events[:cut])
            del self._events[:cut], self._positions[:cut]
        if wake:
            self.wake(math.inf)
            for told in self._told:
                told.set()


class EventHub:
    """Reads new events once and serves them to every watcher of this process."""

    def __init__(self, engine: AsyncEngine, notifications: Notifications) -> None:
        self._engine = engine
        self._notifications = notifications
        self._channels: dict[WatchScope, Channel] = {}
        self._position: int | None = None
        self._woken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def scopes(self) -> int:
        """How many scopes are being followed."""
        return len(self._channels)

    async def start(self) -> None:
        """Begins to read."""
        self._tasks = [
            asyncio.create_task(self._run(), name="event hub"),
            asyncio.create_task(self._tick(), name="event hub tick"),
        ]

    async def stop(self) -> None:
        """Ends; who waits for events waits on until its stream is ended."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def subscribed(self, scope: WatchScope) -> Generator[Channel]:
        """The channel of a scope, which exists while somebody follows it."""
        channel = self._channels.get(scope)
        if channel is None:
            channel = self._channels[scope] = Channel()
            self._woken.set()
        channel.watchers += 1
        try:
            yield channel
        finally:
            channel.watchers -= 1
            if channel.watchers == 0 and self._channels.get(scope) is channel:
                del self._channels[scope]

    async def _run(self) -> None:
        with self._notifications.subscribed(CHANNEL_EVENTS_POSITIONED) as positioned:
            self._woken = positioned
            while True:
                if self._channels:
                    try:
                        while await self._advance():
                            pass
                    except (SQLAlchemyError, OSError, TimeoutError) as error:
                        # Watchers stand still and miss nothing: the next visit goes on from the same position.
                        _log.warning("event_hub.unavailable", error=str(error))
                else:
                    # Nobody follows anything: what comes meanwhile is in the log for those who come later.
                    self._position = None
                await wait_for(positioned, _POLL_SECONDS)

    async def _tick(self) -> None:
        """The timer of all who wait."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = loop.time()
            for channel in self._channels.values():
                channel.wake(now)

    async def _advance(self) -> bool:
        """Hands out the next events; says whether there may be more."""
        async with self._engine.connect() as connection:
            head = int((await connection.execute(select(event_log_head.c.position))).scalar_one())
            # Who came since the last visit is served from here on; what lies before is in the log, which this head is part of.
            start = head if self._position is None else self._position
            channels = dict(self._channels)
            new = {id(channel) for channel in channels.values() if channel.start is None}
            until = min(head, start + _POSITIONS_PER_READ)
            rows: Sequence[RowMapping] = ()
            if until > start:
                query = (
                    select(job_events)
                    .where(job_events.c.position > start, job_events.c.position <= until, _demand(channels))
                    .order_by(job_events.c.position)
                )
                rows = (await connection.execute(query)).mappings().all()
        events = await events_of(rows)
        partial = [
            (scope.projects, channel)
            for scope, channel in channels.items()
            if isinstance(scope, VisibleScope) and scope.projects is not None
        ]
        for channel in channels.values():
            if id(channel) in new:
                channel.start = start
        grown = new
        for row, event in zip(rows, events, strict=True):
            for scope in scopes_of(row["job_id"], row["project"], row["job_set"]):
                channel = channels.get(scope)
                if channel is not None:
                    channel.add(event)
                    grown.add(id(channel))
            for projects, channel in partial:
                if row["project"] in projects:
                    channel.add(event)
                    grown.add(id(channel))
        share = max(_CHANNEL_BYTES_MIN, _CHANNELS_BYTES // max(1, len(channels)))
        for channel in channels.values():
            channel.advance(max(until, start), share, wake=id(channel) in grown)
        self._position = max(until, start)
        return self._position < head


def _demand(channels: dict[WatchScope, Channel]) -> ColumnElement[bool]:
    """Selects what somebody follows, more or less: what is selected for nothing is dropped."""
    jobs: set[str] = set()
    projects: set[str] = set()
    for scope in channels:
        if isinstance(scope, VisibleScope):
            if scope.projects is None:
                return VisibleScope(None).condition
            projects |= scope.projects
        elif isinstance(scope, JobScope):
            jobs.add(scope.job_id)
        else:
            projects.add(scope.project)
    return or_(
        job_events.c.job_id == any_(literal(sorted(jobs), ARRAY(UUID(as_uuid=False)))),
        job_events.c.project == any_(literal(sorted(projects), ARRAY(Text))),
    )


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
