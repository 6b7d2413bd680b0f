"""The event log: one row for everything that happens to a job, in the transaction that makes it happen.

A PostgreSQL sequence is not commit order: a reader that saw 7 may miss 6, which commits later. So events are inserted
without a position, and a sequencer gives positions to committed events in batches. Within a job the order is settled
earlier: the job row's counter, incremented under its lock, numbers the job's events 1, 2, 3, … without a hole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import CHANNEL_EVENTS_POSITIONED, CHANNEL_EVENTS_WRITTEN, event_log_head
from control_plane.jobs.states import ADMIT, FINAL_STATES, JobPhase, JobState
from control_plane.webhooks.outbox import enqueue


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
    UPDATED = "UPDATED"
    PREEMPTION_REQUESTED = "PREEMPTION_REQUESTED"


@dataclass(frozen=True, slots=True)
class Happening:
    """What happened to one of many jobs.

    Attributes:
        job_id: the job; it must exist.
        detail: what there is to know, as JSON values.
        state: the job's new state, which is stored on the job too; None: unchanged.
        phase: the phase it concerns.
        attempt: the attempt it concerns; None: the job's current one. An event of the next attempt moves the job on to it.
    """

    job_id: str
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])
    state: JobState | None = None
    phase: JobPhase | str | None = None
    attempt: int | None = None


# One statement however many jobs: their rows are changed, and give their events what only they know.
_APPEND = text(
    """
    WITH given AS (
        SELECT job_id, state, phase, attempt, detail::jsonb AS detail
        FROM unnest(
            CAST(:job_ids AS uuid[]), CAST(:states AS text[]), CAST(:phases AS text[]), CAST(:attempts AS int[]),
            CAST(:details AS text[])
        ) AS given (job_id, state, phase, attempt, detail)
    ), changed AS (
        UPDATE jobs
        SET event_sequence = event_sequence + 1, version = version + 1, updated_at = now(),
            state = coalesce(given.state, jobs.state),
            attempt = greatest(jobs.attempt, given.attempt),
            admitted_at = CASE WHEN given.state = :admitted THEN now() ELSE admitted_at END,
            ended_at = CASE WHEN given.state = ANY(CAST(:final AS text[])) THEN now() ELSE ended_at END
        FROM given WHERE jobs.job_id = given.job_id
        RETURNING jobs.job_id, project, job_set, event_sequence, jobs.state, given.phase,
            coalesce(given.attempt, jobs.attempt) AS attempt, given.detail
    )
    INSERT INTO job_events (job_id, project, job_set, sequence, type, state, phase, attempt, detail)
    SELECT job_id, project, job_set, event_sequence, :type, state, phase, attempt, detail FROM changed
    RETURNING sequence
    """
)
_FINAL = sorted(FINAL_STATES)


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
    happening = Happening(job_id, detail or {}, None if state is None else JobState(state), phase, attempt)
    [sequence] = await _append(connection, event_type, [happening])
    return sequence


async def append_events(connection: AsyncConnection, event_type: EventType, happenings: Sequence[Happening]) -> None:
    """Appends events of a type, as `append_event` does, in one statement; a job's in the order given, which takes one more for
    each further time that a job is named."""
    left = happenings
    while left:
        first: dict[str, Happening] = {}
        again: list[Happening] = []
        for happening in left:
            if first.setdefault(happening.job_id, happening) is not happening:
                again.append(happening)
        await _append(connection, event_type, list(first.values()))
        left = again


async def _append(connection: AsyncConnection, event_type: EventType, happenings: Sequence[Happening]) -> Sequence[int]:
    appended = await connection.execute(
        _APPEND,
        {
            "job_ids": [happening.job_id for happening in happenings],
            "states": [None if happening.state is None else str(happening.state) for happening in happenings],
            "phases": [None if happening.phase is None else str(happening.phase) for happening in happenings],
            "attempts": [happening.attempt for happening in happenings],
            "details": [json.dumps(dict(happening.detail)) for happening in happenings],
            "type": str(event_type),
            "admitted": str(ADMIT.target),
            "final": _FINAL,
        },
    )
    sequences = appended.scalars().all()
    if len(sequences) != len(happenings):
        raise NoResultFound(f"{event_type} was to be appended to {len(happenings)} jobs, of which {len(sequences)} exist")
    await notify(connection, CHANNEL_EVENTS_WRITTEN)
    if ended := [happening.job_id for happening in happenings if happening.state in FINAL_STATES]:
        await enqueue(connection, ended)
    return sequences


async def notify(connection: AsyncConnection, channel: str, payload: str = "") -> None:
    """Wakes whoever listens on `channel`, once the transaction commits."""
    await connection.execute(select(func.pg_notify(channel, payload)))


_ASSIGN = text(
    f"""
    WITH pending AS (
        SELECT place, row_number() OVER (ORDER BY event_id) AS rank
        FROM (SELECT ctid AS place, event_id FROM job_events WHERE position IS NULL ORDER BY event_id LIMIT :limit) AS oldest
    ), assigned AS (
        UPDATE job_events SET position = :head + pending.rank
        FROM pending WHERE job_events.ctid = pending.place
        RETURNING 1
    ), counted AS (
        SELECT count(*) AS events FROM assigned
    ), moved AS (
        UPDATE event_log_head SET position = position + counted.events FROM counted WHERE counted.events > 0
        RETURNING pg_notify('{CHANNEL_EVENTS_POSITIONED}', '')
    )
    SELECT events FROM counted LEFT JOIN moved ON true
    """  # noqa: S608 - a constant
)
POSITIONS_PER_ROUND = 10_000
"""Most positions given in one transaction."""


async def assign_positions(connection: AsyncConnection, limit: int = POSITIONS_PER_ROUND) -> int:
    """Gives the next positions to at most `limit` committed events, in the order they were inserted; returns how many.

    The lock on the head row is the fence: of several replicas one assigns at a time, and each begins where the last ended.
    Nobody else changes an event without position, so its place in the table holds until then.
    """
    # The lock is a statement of its own, so that the next one's snapshot is taken after it is held.
    head = (await connection.execute(select(event_log_head.c.position).with_for_update())).scalar_one()
    return int((await connection.execute(_ASSIGN, {"limit": limit, "head": head})).scalar_one())
