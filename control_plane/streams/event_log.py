"""The stored event log, read in pages of one scope. A page is immutable once more events follow it, so it is shared by all who
read through the same stretch."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import RowMapping, and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.tables import event_log_head, job_events, jobs
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.states import FINAL_STATES, JobState
from control_plane.streams import wire
from control_plane.streams.scopes import JobScope, WatchScope

FINAL = sorted(str(state) for state in FINAL_STATES)

# One message at most is held for a reader: what a stalled one costs.
BATCH_EVENTS_MAX = 500
BATCH_BYTES_MAX = 32 * 2**10

_ROWS_PER_READ = 250
_CACHE_BYTES = 16 * 2**20
# Scope, position, and what retention may have taken.
_Key: TypeAlias = tuple[WatchScope, int, int]
# Of the process's connections, streams use so many at most: calls that end must not wait for streams that read.
_READS_AT_ONCE = 4
# Serialising takes the event loop; others get their turn after so many.
_EVENTS_PER_TURN = 50


@dataclass(frozen=True, slots=True)
class Event:
    """One event, ready to be sent.

    Attributes:
        position: its place in commit order, from 1 without a hole.
        frame: a field `events` of a WatchEventsResponse.
        final: the job's state is final with it.
    """

    position: int
    frame: bytes
    final: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Events of one scope in commit order, as many as one message takes.

    Attributes:
        events: what lies between the position asked for and `position`, all of it.
        position: everything of the scope up to here is in this page or before it.
        complete: nothing more of the scope was positioned when it was read.
    """

    events: Sequence[Event]
    position: int
    complete: bool


@dataclass(frozen=True, slots=True)
class LogEnds:
    """Where the log begins and ends.

    Attributes:
        head: the newest position.
        oldest: the newest position that retention has taken; 0 before it took any.
    """

    head: int
    oldest: int

    def refuse_future(self, position: int) -> None:
        """Refuses a position that this log has never reached: of another log, or of one since restored from a backup.

        Raises:
            RefusedError: it is.
        """
        if position > self.head:
            raise RefusedError(
                Reason.INVALID_CURSOR, "start_cursor lies beyond the end of this event log; begin with an empty one"
            )


class CursorExpiredError(Exception):
    """Retention has taken events that a reader has not seen."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"events up to position {oldest} are kept no more")
        self.oldest = oldest


class EventLog:
    """Reads pages; those that cannot change are kept for the next reader, up to 16 MiB of them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reading = asyncio.Semaphore(_READS_AT_ONCE)
        self._pages: OrderedDict[_Key, Page] = OrderedDict()
        self._pages_bytes = 0
        self._under_way: dict[_Key, asyncio.Task[Page]] = {}

    async def ends(self) -> LogEnds:
        """Where the log begins and ends now."""
        async with self._reading, self._engine.connect() as connection:
            return await _ends(connection)

    async def page(self, scope: WatchScope, after: int, known_oldest: int) -> Page:
        """The events of a scope after a position, one message of them at most.

        Args:
            scope: whose.
            after: the position, exclusive.
            known_oldest: what retention had taken when the reader began; no more than that may be missing.

        Raises:
            CursorExpiredError: events after the position have been taken since.
        """
        # What may be missing is part of the key: who may miss less must not get the page of one who may miss more.
        key = (scope, after, max(after, known_oldest))
        kept = self._pages.get(key)
        if kept is not None:
            self._pages.move_to_end(key)
            return kept
        # Readers in step share one read, which goes on when one of them leaves.
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._read(key), name="event log page")
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return await asyncio.shield(task)

    def _finished(self, key: _Key, task: asyncio.Task[Page]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # all who waited may have left; asyncio would complain that nobody looked

    async def _read(self, key: _Key) -> Page:
        scope, after, known_oldest = key
        async with self._reading, self._engine.connect() as connection:
            # In this order: what the second statement sees holds every event up to the head that the first one saw, and what
            # retention took before the second is known from the third.
            head = (await _ends(connection)).head
            query = (
                select(job_events)
                .where(scope.condition, job_events.c.position > after, job_events.c.position <= head)
                .order_by(job_events.c.position)
                .limit(_ROWS_PER_READ)
            )
            rows = (await connection.execute(query)).mappings().all()
            oldest = (await _ends(connection)).oldest
            if oldest > known_oldest and not await _whole(connection, scope):
                raise CursorExpiredError(oldest)
        events = fitting(await events_of(rows, BATCH_BYTES_MAX))
        complete = len(events) == len(rows) < _ROWS_PER_READ
        page = Page(events, max(head, after) if complete else events[-1].position, complete)
        if not complete:
            self._keep(key, page)
        return page

    def _keep(self, key: _Key, page: Page) -> None:
        self._pages[key] = page
        self._pages_bytes += _size(page)
        while self._pages_bytes > _CACHE_BYTES:
            _, oldest = self._pages.popitem(last=False)
            self._pages_bytes -= _size(oldest)

    async def ended(self, job_id: str, position: int) -> bool:
        """Whether the job is final and none of its events follows the position."""
        follows = exists().where(
            job_events.c.job_id == job_id, or_(job_events.c.position.is_(None), job_events.c.position > position)
        )
        query = select(and_(jobs.c.state.in_(FINAL), ~follows)).where(jobs.c.job_id == job_id)
        async with self._reading, self._engine.connect() as connection:
            return bool((await connection.execute(query)).scalar_one_or_none())


async def events_of(rows: Sequence[RowMapping], bytes_enough: float = math.inf) -> list[Event]:
    """Rows of `job_events`, ready to be sent, from the first on until there are enough bytes of them."""
    events: list[Event] = []
    size = 0
    for count, row in enumerate(rows, 1):
        events.append(Event(row["position"], wire.event_frame(row), JobState(row["state"]).final))
        size += len(events[-1].frame)
        if size > bytes_enough:
            break
        if count % _EVENTS_PER_TURN == 0:
            await asyncio.sleep(0)
    return events


def fitting(events: Sequence[Event], start: int = 0) -> Sequence[Event]:
    """As many events from `start` on as fit into one message, and one at least."""
    size, stop = 0, start
    for event in events[start : start + BATCH_EVENTS_MAX]:
        size += len(event.frame)
        if size > BATCH_BYTES_MAX and stop > start:
            break
        stop += 1
    return events[start:stop]


async def _ends(connection: AsyncConnection) -> LogEnds:
    row = (await connection.execute(select(event_log_head.c.position, event_log_head.c.oldest_position))).one()
    return LogEnds(int(row[0]), int(row[1]))


async def _whole(connection: AsyncConnection, scope: WatchScope) -> bool:
    """Whether nothing of the scope was taken, which is known for a job: its events are taken all at once."""
    if not isinstance(scope, JobScope):
        return False
    first = select(func.count()).where(job_events.c.job_id == scope.job_id, job_events.c.sequence == 1)
    return bool((await connection.execute(first)).scalar_one())


def _size(page: Page) -> int:
    # Beside its bytes an event is a Python object and its place in a list.
    return sum(len(event.frame) + 150 for event in page.events)
