"""How a lease ends: the one place where what it used is settled.

Everything that locks both a job and its leases locks the job first; so do these functions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.settling import LeaseUse, settle_many
from control_plane.db.events import EventType, Happening, append_events, notify
from control_plane.db.tables import CHANNEL_SCHEDULER, leases

OUTCOME_LOST = "lost"
OUTCOME_REFUSED = "refused"
OUTCOME_PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Ending:
    """How one lease ends.

    Attributes:
        lease_id: the lease.
        outcome: how the work under it ended: "completed", "failed", "cancelled", "lost", "preempted", "paused" or "refused".
        reason: why, in words, when it was lost, preempted or paused; for the event.
    """

    lease_id: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ClosedLease:
    """A lease that has ended.

    Attributes:
        lease_id: the lease.
        job_id: its job.
        granted_kind: of the accelerators it held; None: it was never granted.
        used_ms: accelerator-milliseconds, from grant to end.
        ended: what LEASE_ENDED says of it.
        lost: what ATTEMPT_LOST says, where an attempt was.
    """

    lease_id: str
    job_id: str
    granted_kind: str | None
    used_ms: int
    ended: Happening
    lost: Happening | None


_LOCK_JOBS = text(
    """
    SELECT job_id FROM jobs
    WHERE job_id IN (SELECT job_id FROM leases WHERE lease_id = ANY(CAST(:lease_ids AS uuid[]))) ORDER BY job_id FOR UPDATE
    """
)
# A request that was never granted has no `granted_at` and used nothing.
_END = text(
    """
    UPDATE leases
    SET state = 'ENDED', ended_at = now(), outcome = given.outcome,
        accelerator_ms = accelerators * members::bigint
            * coalesce(greatest(0, floor(extract(epoch FROM now() - granted_at) * 1000)), 0)::bigint
    FROM unnest(CAST(:lease_ids AS uuid[]), CAST(:outcomes AS text[])) AS given (lease_id, outcome)
    WHERE leases.lease_id = given.lease_id AND state <> 'ENDED'
    RETURNING leases.lease_id::text, job_id::text, phase, attempt, granted_kind, accelerators * members AS accelerators,
        accelerator_ms
    """
)
_SETTLE = text(
    """
    UPDATE jobs
    SET accelerator_ms = accelerator_ms || (
        SELECT jsonb_object_agg(used.kind, used.ms::bigint + coalesce((accelerator_ms ->> used.kind)::bigint, 0))
        FROM jsonb_each_text(given.used::jsonb) AS used (kind, ms)
    )
    FROM unnest(CAST(:job_ids AS uuid[]), CAST(:used AS text[])) AS given (job_id, used)
    WHERE jobs.job_id = given.job_id
    """
)


async def end_lease(connection: AsyncConnection, lease_id: str, outcome: str, reason: str = "") -> int | None:
    """Ends a lease, or withdraws its request, as `end_leases` does.

    Returns:
        Accelerator-milliseconds used; None if there is no such lease or it had ended before, which changes nothing.
    """
    return (await end_leases(connection, [Ending(lease_id, outcome, reason)])).get(lease_id)


async def end_leases(connection: AsyncConnection, endings: Sequence[Ending]) -> dict[str, int]:
    """Ends leases, or withdraws their requests: settles their use on lease and job, appends the events, wakes the scheduler.

    Use is the milliseconds from grant to end, by the database's clock, times the accelerators held.

    Args:
        connection: a connection in a transaction.
        endings: of each lease one.

    Returns:
        Accelerator-milliseconds used, by lease; those that do not exist or had ended before are not in it, and stay.
    """
    lease_ids = [ending.lease_id for ending in endings]
    await connection.execute(_LOCK_JOBS, {"lease_ids": lease_ids})
    closed = await close_leases(connection, endings)
    if not closed:
        return {}
    await _settle(connection, closed)
    await append_events(connection, EventType.LEASE_ENDED, [lease.ended for lease in closed])
    await append_events(connection, EventType.ATTEMPT_LOST, [lease.lost for lease in closed if lease.lost is not None])
    await settle_leases(connection, closed)
    await notify(connection, CHANNEL_SCHEDULER)
    return {lease.lease_id: lease.used_ms for lease in closed}


async def close_leases(connection: AsyncConnection, endings: Sequence[Ending]) -> list[ClosedLease]:
    """Of `end_leases` what concerns the leases alone: for those who write the jobs themselves, and then call `settle_leases`.

    Args:
        connection: a connection in a transaction that has locked the leases' jobs.
        endings: of each lease one.

    Returns:
        The leases that this ended, in the order given, with what their jobs are to be told.
    """
    parameters = {"lease_ids": [ending.lease_id for ending in endings], "outcomes": [ending.outcome for ending in endings]}
    rows = {row.lease_id: row for row in await connection.execute(_END, parameters)}
    return [_closed(ending, rows[ending.lease_id]) for ending in endings if ending.lease_id in rows]


async def settle_leases(connection: AsyncConnection, closed: Sequence[ClosedLease]) -> None:
    """Settles in the budgets what leases used. The last step: the ledgers it locks are those that all of a project wait for."""
    await settle_many(
        connection, [LeaseUse(lease.lease_id, lease.used_ms) for lease in closed if lease.granted_kind is not None]
    )


async def end_open_leases(connection: AsyncConnection, job_id: str, outcome: str, reason: str = "") -> None:
    """Ends every lease that a job holds or asks for."""
    still_open = select(leases.c.lease_id).where(leases.c.job_id == job_id, leases.c.state != "ENDED")
    lease_ids = (await connection.execute(still_open.order_by(leases.c.lease_id))).scalars().all()
    if lease_ids:
        await end_leases(connection, [Ending(lease_id, outcome, reason) for lease_id in lease_ids])


async def _settle(connection: AsyncConnection, closed: Sequence[ClosedLease]) -> None:
    used: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for lease in closed:
        if lease.granted_kind is not None:
            used[lease.job_id][lease.granted_kind] += lease.used_ms
    if used:
        settled = {"job_ids": list(used), "used": [json.dumps(by_kind) for by_kind in used.values()]}
        await connection.execute(_SETTLE, settled)


def _closed(ending: Ending, row: Row[Any]) -> ClosedLease:
    said = {"reason": ending.reason} if ending.reason else {}
    detail: dict[str, Any] = {
        "lease_id": ending.lease_id,
        "outcome": ending.outcome,
        "accelerators": row.accelerators,
        "accelerator_kind": row.granted_kind or "",
        "accelerator_seconds": row.accelerator_ms / 1000,
    }
    ended = Happening(row.job_id, detail | said, phase=row.phase, attempt=row.attempt)
    lost = None
    if ending.outcome == OUTCOME_LOST and row.attempt is not None:
        lost = Happening(row.job_id, {"lease_id": ending.lease_id} | said, phase=row.phase, attempt=row.attempt)
    return ClosedLease(ending.lease_id, row.job_id, row.granted_kind, int(row.accelerator_ms), ended, lost)
