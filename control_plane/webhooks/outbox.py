"""Notifications that are due: written with the change they tell of, claimed by one deliverer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import CHANNEL_WEBHOOKS, webhook_deliveries

KEPT_DAYS = 30
"""What was sent is on record for so long."""

# What varies little and tells little: whoever wants more asks for the job, with a credential of their own.
_ENQUEUE = text(
    """
    WITH written AS (
        INSERT INTO webhook_deliveries (delivery_id, webhook_id, job_id, body, state)
        SELECT gen_random_uuid(), webhooks.webhook_id, jobs.job_id,
            json_build_object(
                'type', 'job.' || lower(jobs.state),
                'timestamp', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                'data', json_build_object(
                    'job_id', jobs.job_id, 'project', jobs.project, 'name', jobs.name, 'job_set', jobs.job_set,
                    'state', jobs.state, 'submitter', jobs.submitter
                )
            )::text,
            'PENDING'
        FROM jobs JOIN webhooks ON webhooks.project = jobs.project AND webhooks.deleted_at IS NULL
            AND (cardinality(webhooks.states) = 0 OR jobs.state = ANY(webhooks.states))
            AND webhooks.job_set IN ('', jobs.job_set)
        WHERE jobs.job_id = ANY(CAST(:job_ids AS uuid[]))
        ON CONFLICT (webhook_id, job_id) DO NOTHING
        RETURNING 1
    )
    SELECT pg_notify(:channel, '') FROM (SELECT 1 FROM written LIMIT 1) AS any_written
    """
)

# A claim is a try that ends by itself: a deliverer that dies leaves nothing that another must know of.
_CLAIM = text(
    """
    UPDATE webhook_deliveries AS claimed
    SET tries = tries + 1, next_try_at = now() + make_interval(secs => :claim_seconds)
    FROM (
        SELECT due.delivery_id, webhooks.url
        FROM webhooks CROSS JOIN LATERAL (
            SELECT delivery_id, next_try_at FROM webhook_deliveries
            WHERE webhook_id = webhooks.webhook_id AND state = 'PENDING' AND next_try_at <= now()
            ORDER BY next_try_at LIMIT :each FOR UPDATE SKIP LOCKED
        ) AS due
        WHERE webhooks.deleted_at IS NULL AND webhooks.webhook_id <> ALL(CAST(:busy AS uuid[]))
        ORDER BY due.next_try_at LIMIT :most
    ) AS chosen
    WHERE claimed.delivery_id = chosen.delivery_id
    RETURNING claimed.delivery_id, claimed.webhook_id, claimed.body, claimed.tries, chosen.url
    """
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that is to be tried now."""

    delivery_id: str
    webhook_id: str
    url: str
    body: str
    tries: int
    """This one counted."""


async def enqueue(connection: AsyncConnection, job_ids: Sequence[str]) -> None:
    """Writes the notifications that the end of these jobs causes, in the transaction that ends them; at most once each.

    Most projects have no endpoint: then it is one statement that finds nothing.
    """
    await connection.execute(_ENQUEUE, {"job_ids": list(job_ids), "channel": CHANNEL_WEBHOOKS})


async def claim(
    connection: AsyncConnection, *, most: int, each: int, busy: Sequence[str], claim_seconds: float
) -> list[Delivery]:
    """Takes messages that are due; nobody else gets them for `claim_seconds`.

    Args:
        connection: a connection in a transaction.
        most: the most of them.
        each: the most for one endpoint.
        busy: endpoints that get no more for now.
        claim_seconds: longer than a try takes.
    """
    values = {"most": most, "each": each, "busy": list(busy), "claim_seconds": claim_seconds}
    rows = (await connection.execute(_CLAIM, values)).all()
    return [Delivery(str(row.delivery_id), str(row.webhook_id), row.url, row.body, row.tries) for row in rows]


async def record(
    connection: AsyncConnection, delivery_id: str, state: str, result: str, retry_seconds: float | None = None
) -> None:
    """Writes what came of a try.

    Args:
        connection: a connection in a transaction.
        delivery_id: the message.
        state: PENDING, DELIVERED or FAILED.
        result: an HTTP status or an error, for people.
        retry_seconds: from now until the next try, for PENDING.
    """
    values = {"state": state, "last_result": result}
    statement = update(webhook_deliveries).where(
        webhook_deliveries.c.delivery_id == delivery_id, webhook_deliveries.c.state == "PENDING"
    )
    if retry_seconds is not None:
        statement = statement.values(next_try_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, retry_seconds))
    await connection.execute(statement.values(**values))


async def next_due_seconds(connection: AsyncConnection) -> float | None:
    """In how many seconds the next message is due; None if none waits."""
    query = select(func.extract("epoch", func.min(webhook_deliveries.c.next_try_at) - func.now())).where(
        webhook_deliveries.c.state == "PENDING"
    )
    found: Any = (await connection.execute(query)).scalar_one()
    return None if found is None else float(found)


async def purge(connection: AsyncConnection) -> None:
    """Forgets messages that were sent, or given up, long ago."""
    age = func.now() - func.make_interval(0, 0, 0, KEPT_DAYS)
    await connection.execute(
        delete(webhook_deliveries).where(webhook_deliveries.c.state != "PENDING", webhook_deliveries.c.created_at < age)
    )
