"""Following events: what is stored in commit order, then what comes, resumable after any batch."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, RowMapping, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.notifications import Notifications, wait_for
from control_plane.db.tables import CHANNEL_EVENTS_POSITIONED, event_log_head, job_events
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.states import JobState

_BATCH = 500
# Should a notification be lost, the stream looks by itself this often.
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in commit order (none in a heartbeat), and the position after them."""

    events: Sequence[RowMapping]
    position: int
    last: bool


async def follow(
    engine: AsyncEngine,
    notifications: Notifications,
    scope: ColumnElement[bool],
    position: int,
    *,
    one_job: bool,
    heartbeat_seconds: float,
) -> AsyncIterator[Batch]:
    """The events of a scope after a position, for ever; or, for one job, until its final event.

    Only positioned events are read, so that what was seen is never followed by something older.

    Raises:
        RefusedError: the position was never reached by this log.
    """
    await _refuse_future(engine, position)
    with notifications.subscribed(CHANNEL_EVENTS_POSITIONED) as positioned:
        sent_at = time.monotonic()
        while True:
            events = await _read(engine, scope, position)
            if events:
                position = events[-1]["position"]
                # The final state's event is the last a job ever has.
                last = one_job and JobState(events[-1]["state"]).final
                yield Batch(events, position, last)
                sent_at = time.monotonic()
                if last:
                    return
                continue
            if one_job and await _ended_before(engine, scope, position):
                yield Batch((), position, last=True)
                return
            if time.monotonic() - sent_at >= heartbeat_seconds:
                yield Batch((), position, last=False)
                sent_at = time.monotonic()
            await wait_for(positioned, min(_POLL_SECONDS, heartbeat_seconds))


async def _read(engine: AsyncEngine, scope: ColumnElement[bool], position: int) -> Sequence[RowMapping]:
    query = select(job_events).where(scope, job_events.c.position > position).order_by(job_events.c.position).limit(_BATCH)
    async with engine.connect() as connection:
        return (await connection.execute(query)).mappings().all()


async def _ended_before(engine: AsyncEngine, scope: ColumnElement[bool], position: int) -> bool:
    """Whether the job's final event lies at or before the position: somebody resumes after the end."""
    finals = [str(state) for state in JobState if state.final]
    query = select(func.count()).where(scope, job_events.c.position <= position, job_events.c.state.in_(finals))
    async with engine.connect() as connection:
        return (await connection.execute(query)).scalar_one() > 0


async def _refuse_future(engine: AsyncEngine, position: int) -> None:
    async with engine.connect() as connection:
        head = (await connection.execute(select(event_log_head.c.position))).scalar_one()
    if position > head:
        raise RefusedError(Reason.INVALID_CURSOR, "start_cursor lies beyond the end of this event log; begin with an empty one")
