"""Following events: what is stored in commit order, then what comes, resumable after any batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from control_plane.streams.event_log import Event, EventLog
from control_plane.streams.hub import EventHub
from control_plane.streams.scopes import JobScope, WatchScope


class Batch(NamedTuple):
    """Events in commit order (none in a heartbeat), and the position after them.

    Attributes:
        events: as many as fit into one message.
        position: everything of the scope up to here has been sent with this batch.
        last: nothing can follow.
    """

    events: Sequence[Event]
    position: int
    last: bool


async def follow(
    hub: EventHub, log: EventLog, scope: WatchScope, position: int, known_oldest: int, heartbeat_seconds: float
) -> AsyncGenerator[Batch]:
    """The events of a scope after a position, for ever; or, for one job, until its final event.

    Only positioned events are read, so that what was seen is never followed by something older. Nothing is kept for the reader
    between two batches but its position.

    Args:
        hub: brings what is new.
        log: holds what is older.
        scope: what to follow.
        position: what has been seen, inclusive.
        known_oldest: what retention had taken when the reader began.
        heartbeat_seconds: a batch comes at least this often, and the first at once.

    Raises:
        CursorExpiredError: retention took events before they were sent.
    """
    loop = asyncio.get_running_loop()
    beat_at = loop.time()
    begun = False
    with hub.subscribed(scope) as channel:
        while True:
            if channel.reaches(position):
                events = channel.after(position)
                reached = events[-1].position if events else max(position, channel.end)
                caught_up = not events
            else:
                page = await log.page(scope, position, known_oldest)
                events, reached = page.events, page.position
                # What the channel holds begins where the log was read to, or before; or it holds nothing yet.
                caught_up = not events and page.complete and (channel.start is None or channel.reaches(reached))
            position = reached
            if caught_up and loop.time() < beat_at:
                await channel.grown(until=beat_at)
            elif caught_up or events:
                if events:
                    # The final state's event is the last a job ever has.
                    last = isinstance(scope, JobScope) and events[-1].final
                else:
                    # A reader may resume after the end, and is told so at once.
                    last = isinstance(scope, JobScope) and not begun and await log.ended(scope.job_id, position)
                yield Batch(events, position, last)
                if last:
                    return
                begun, beat_at = True, loop.time() + heartbeat_seconds
