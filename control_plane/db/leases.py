"""How a lease ends: the one place where what it used is settled.

Everything that locks both a job and its leases locks the job first; so do these functions.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.events import EventType, append_event, notify
from control_plane.db.tables import CHANNEL_SCHEDULER, jobs, leases

OUTCOME_LOST = "lost"
OUTCOME_REFUSED = "refused"
OUTCOME_PAUSED = "paused"

# A request that was never granted has no `granted_at` and used nothing.
_END = text(
    """
    UPDATE leases
    SET state = 'ENDED', ended_at = now(), outcome = :outcome, waiting_reason = '',
        accelerator_ms = accelerators
            * coalesce(greatest(0, floor(extract(epoch FROM now() - granted_at) * 1000)), 0)::bigint
    WHERE lease_id = :lease_id AND state <> 'ENDED'
    RETURNING phase, attempt, granted_kind, accelerators, accelerator_ms
    """
)

_SETTLE = text(
    """
    UPDATE jobs
    SET accelerator_ms = jsonb_set(
        accelerator_ms, ARRAY[CAST(:kind AS text)],
        to_jsonb(coalesce((accelerator_ms ->> CAST(:kind AS text))::bigint, 0) + :used)
    )
    WHERE job_id = :job_id
    """
)


async def end_lease(connection: AsyncConnection, lease_id: str, outcome: str, reason: str = "") -> int | None:
    """Ends a lease, or withdraws its request: settles its use on lease and job, appends the event, wakes the scheduler.

    Use is the milliseconds from grant to end, by the database's clock, times the accelerators held.

    Args:
        connection: a connection in a transaction.
        lease_id: the lease.
        outcome: how the work under it ended: "completed", "failed", "cancelled", "lost", "preempted", "paused" or "refused".
        reason: why, in words, when it was lost, preempted or paused; for the event.

    Returns:
        Accelerator-milliseconds used; None if there is no such lease or it had ended before, which changes nothing.
    """
    job_id = await _lock_job_of(connection, lease_id)
    if job_id is None:
        return None
    lease = (await connection.execute(_END, {"lease_id": lease_id, "outcome": outcome})).one_or_none()
    if lease is None:
        return None
    used = int(lease.accelerator_ms)
    if lease.granted_kind is None:
        # Its job was waiting for it, and said so.
        await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(waiting_reason=""))
    else:
        await connection.execute(_SETTLE, {"job_id": job_id, "kind": lease.granted_kind, "used": used})
    await _append_events(connection, job_id, lease_id, lease, outcome, reason)
    await notify(connection, CHANNEL_SCHEDULER)
    return used


async def end_open_leases(connection: AsyncConnection, job_id: str, outcome: str, reason: str = "") -> None:
    """Ends every lease that a job holds or asks for."""
    still_open = select(leases.c.lease_id).where(leases.c.job_id == job_id, leases.c.state != "ENDED")
    for lease_id in (await connection.execute(still_open.order_by(leases.c.lease_id))).scalars().all():
        await end_lease(connection, lease_id, outcome, reason)


async def _lock_job_of(connection: AsyncConnection, lease_id: str) -> str | None:
    owner = select(leases.c.job_id).where(leases.c.lease_id == lease_id).scalar_subquery()
    return (
        await connection.execute(select(jobs.c.job_id).where(jobs.c.job_id == owner).with_for_update())
    ).scalar_one_or_none()


async def _append_events(
    connection: AsyncConnection, job_id: str, lease_id: str, lease: Row[Any], outcome: str, reason: str
) -> None:
    detail: dict[str, Any] = {
        "lease_id": lease_id,
        "outcome": outcome,
        "accelerators": lease.accelerators,
        "accelerator_kind": lease.granted_kind or "",
        "accelerator_seconds": lease.accelerator_ms / 1000,
    }
    if reason:
        detail["reason"] = reason
    await append_event(connection, job_id, EventType.LEASE_ENDED, phase=lease.phase, attempt=lease.attempt, detail=detail)
    if outcome == OUTCOME_LOST and lease.attempt is not None:
        await append_event(
            connection,
            job_id,
            EventType.ATTEMPT_LOST,
            phase=lease.phase,
            attempt=lease.attempt,
            detail={"lease_id": lease_id, "reason": reason} if reason else {"lease_id": lease_id},
        )
