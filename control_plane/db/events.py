"""The event log: one row for everything that happens to a job, in the transaction that makes it happen.

A PostgreSQL sequence is not commit order: a reader that saw 7 may miss 6, which commits later. So events are inserted
without a position, and a sequencer gives positions to committed events in batches. Within a job the order is settled
earlier: the job row's counter, incremented under its lock, numbers the job's events 1, 2, 3, … without a hole.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import CHANNEL_EVENTS_POSITIONED, CHANNEL_EVENTS_WRITTEN, event_log_head, job_events, jobs
from control_plane.jobs.states import JobPhase, JobState


class EventType(StrEnum):
    """What happened; the names are those of headway.jobs.v1.JobEventType without prefix."""

    SUBMITTED = "SUBMITTED"
    STATE_CHANGED = "STATE_CHANGED"
    PHASE_STARTED = "PHASE_STARTED"
    PHASE_FINISHED = "PHASE_FINISHED"
    LEASE_REQUESTED = "LEASE_REQUESTED"
    LEASE_GRANTED = "LEASE_GRANTED"
    LEASE_ENDED = "LEASE_ENDED"
    CHECKPOINT_COMMITTED = "CHECKPOINT_COMMITTED"
    RESUMED = "RESUMED"
    ATTEMPT_LOST = "ATTEMPT_LOST"


async def append_event(
    connection: AsyncConnection,
    job_id: str,
    event_type: EventType,
    *,
    phase: JobPhase | str | None = None,
    attempt: int | None = None,
    detail: Mapping[str, Any] | None = None,
    state: JobState | str | None = None,
) -> int:
    """Appends an event to a job and returns its sequence number, counted from 1.

    The job row is locked by this and its version grows by one. What is not given is taken from the job row.

    Args:
        connection: a connection in a transaction.
        job_id: the job; it must exist.
        event_type: what happened.
        phase: the phase it concerns.
        attempt: the attempt it concerns; None: the job's current one.
        detail: what else there is to know, as JSON values.
        state: the job's new state, which is stored on the job too; None: unchanged.
    """
    changes: dict[str, Any] = {
        "event_sequence": jobs.c.event_sequence + 1,
        "version": jobs.c.version + 1,
        "updated_at": func.now(),
    }
    if state is not None:
        changes["state"] = str(state)
        if JobState(state).final:
            changes["ended_at"] = func.now()
            changes["waiting_reason"] = ""
    job = (
        await connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id)
            .values(**changes)
            .returning(jobs.c.event_sequence, jobs.c.project, jobs.c.state, jobs.c.attempt)
        )
    ).one()
    await connection.execute(
        insert(job_events).values(
            job_id=job_id,
            project=job.project,
            sequence=job.event_sequence,
            type=str(event_type),
            state=job.state,
            phase=None if phase is None else str(phase),
            attempt=job.attempt if attempt is None else attempt,
            detail=dict(detail or {}),
        )
    )
    await notify(connection, CHANNEL_EVENTS_WRITTEN)
    return int(job.event_sequence)


async def notify(connection: AsyncConnection, channel: str, payload: str = "") -> None:
    """Wakes whoever listens on `channel`, once the transaction commits."""
    await connection.execute(select(func.pg_notify(channel, payload)))


async def assign_positions(connection: AsyncConnection, limit: int = 10_000) -> int:
    """Gives the next positions to at most `limit` committed events, in the order they were inserted; returns how many.

    The lock on the head row is the fence: of several replicas one assigns at a time, and each begins where the last ended.
    """
    # The lock is a statement of its own, so that the next one's snapshot is taken after it is held.
    head = (await connection.execute(select(event_log_head.c.position).with_for_update())).scalar_one()
    assigned = (
        await connection.execute(
            text(
                """
                WITH pending AS (
                    SELECT event_id, row_number() OVER (ORDER BY event_id) AS rank
                    FROM (SELECT event_id FROM job_events WHERE position IS NULL ORDER BY event_id LIMIT :limit) AS oldest
                )
                UPDATE job_events SET position = :head + pending.rank
                FROM pending WHERE job_events.event_id = pending.event_id
                """
            ),
            {"limit": limit, "head": head},
        )
    ).rowcount
    if assigned:
        await connection.execute(update(event_log_head).values(position=head + assigned))
        await notify(connection, CHANNEL_EVENTS_POSITIONED)
    return assigned
