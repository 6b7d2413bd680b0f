"""Several events of a job in one transaction, and what they leave on its row, which is then written once and not by each.

For what happens to many jobs at once: whoever writes a job's row writes all of it and an entry in most of its indexes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.events import EventType, Happening, notify
from control_plane.db.tables import CHANNEL_EVENTS_WRITTEN
from control_plane.jobs.states import FINAL_STATES, JobState
from control_plane.webhooks.outbox import enqueue


@dataclass(slots=True)
class History:
    """What happens to one job.

    Attributes:
        job_id: the job; its row is locked by the transaction.
        state: where it stands before all of it.
        events: type and content of each, in order; a state that one of them gives is the job's from there on.
        used_ms: accelerator-milliseconds that its leases used, by kind, to be added to the job's.
    """

    job_id: str
    state: JobState
    events: list[tuple[EventType, Happening]] = field(default_factory=list[tuple[EventType, Happening]])
    used_ms: dict[str, int] = field(default_factory=dict[str, int])


# A row a job, with its events inside: a join of the two could not bear many, whose number the planner does not know.
_APPEND = text(
    """
    WITH changed AS (
        UPDATE jobs
        SET event_sequence = event_sequence + given.count, version = version + given.count, updated_at = now(),
            state = given.state,
            ended_at = CASE WHEN given.state = ANY(CAST(:final AS text[])) THEN coalesce(ended_at, now()) ELSE ended_at END,
            accelerator_ms = CASE WHEN given.used IS NULL THEN accelerator_ms ELSE accelerator_ms || (
                SELECT jsonb_object_agg(used.kind, used.ms::bigint + coalesce((accelerator_ms ->> used.kind)::bigint, 0))
                FROM jsonb_each_text(given.used::jsonb) AS used (kind, ms)
            ) END
        FROM unnest(
            CAST(:job_ids AS uuid[]), CAST(:states AS text[]), CAST(:counts AS int[]), CAST(:used AS text[]),
            CAST(:events AS text[])
        ) AS given (job_id, state, count, used, events)
        WHERE jobs.job_id = given.job_id
        RETURNING jobs.job_id, project, job_set, attempt, event_sequence - given.count AS before, given.events
    )
    INSERT INTO job_events (job_id, project, job_set, sequence, type, state, phase, attempt, detail)
    SELECT job_id, project, job_set, before + nth, event ->> 'type', event ->> 'state', event ->> 'phase',
        coalesce((event ->> 'attempt')::int, attempt), event -> 'detail'
    FROM changed CROSS JOIN LATERAL jsonb_array_elements(events::jsonb) WITH ORDINALITY AS each (event, nth)
    """
)
_FINAL = sorted(FINAL_STATES)


async def append_histories(connection: AsyncConnection, histories: Sequence[History]) -> None:
    """Appends events as `append_event` does, of each job all in order, in one statement.

    No event moves a job to another attempt, nor admits it.

    Args:
        connection: a connection in a transaction that has locked the jobs.
        histories: of each job one, with an event at least.
    """
    if not histories:
        return
    told = [_told(history) for history in histories]
    parameters = {
        "job_ids": [history.job_id for history in histories],
        "states": [state for state, _ in told],
        "counts": [len(history.events) for history in histories],
        "used": [to_json(history.used_ms).decode() if history.used_ms else None for history in histories],
        "events": [to_json(events).decode() for _, events in told],
        "final": _FINAL,
    }
    appended = (await connection.execute(_APPEND, parameters)).rowcount
    expected = sum(len(history.events) for history in histories)
    if appended != expected:
        raise NoResultFound(f"{appended} events were appended to {len(histories)} jobs; expected {expected}: some do not exist")
    await notify(connection, CHANNEL_EVENTS_WRITTEN)
    ended = [history.job_id for history in histories if any(happening.state in FINAL_STATES for _, happening in history.events)]
    if ended:
        await enqueue(connection, ended)


def _told(history: History) -> tuple[str, list[Mapping[str, Any]]]:
    """The state that a job ends up in, and its events as JSON values."""
    state, events = history.state, list[Mapping[str, Any]]()
    for event_type, happening in history.events:
        state = happening.state or state
        events.append(
            {
                "type": str(event_type),
                "state": str(state),
                "phase": None if happening.phase is None else str(happening.phase),
                "attempt": happening.attempt,
                "detail": happening.detail,
            }
        )
    return str(state), events
