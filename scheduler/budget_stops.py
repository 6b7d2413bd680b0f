"""Asks leases to yield that a lowered budget does not cover any more, so that its limit is met.

It is the path of preemption: the workflow is told, reaches a checkpoint, gives the lease back and asks again; then it waits for
the budget. Brakes do not apply: nobody's work goes before it, there is no money for it. A lease so asked names itself as what
it yields to, which no request is: its place is nobody's. One that does not yield in time is ended as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets.standing import LeaseToStop, leases_to_stop
from control_plane.db.engine import in_transaction
from control_plane.db.events import EventType, Happening, append_events, notify
from control_plane.db.tables import CHANNEL_OUTBOX, outbox
from control_plane.jobs.states import UNDER_WAY
from scheduler import failpoints
from scheduler.failpoints import Failpoint
from scheduler.leader import Leadership
from scheduler.spans import decided
from workers.workflows.contracts import PreemptOrder

_log = structlog.get_logger()

# In order, before their leases, as everybody does who changes what a lease is.
_LOCK_JOBS = text(
    """
    SELECT job_id::text, trace_parent FROM jobs
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND state = ANY(CAST(:states AS text[])) ORDER BY job_id FOR UPDATE
    """
)
_ASK = text(
    """
    UPDATE leases SET preempted_for = lease_id, preempted_at = now(), preempted_ms = 0
    WHERE lease_id = ANY(CAST(:ids AS uuid[])) AND job_id = ANY(CAST(:job_ids AS uuid[]))
        AND state = 'GRANTED' AND preempted_at IS NULL
    RETURNING lease_id::text, job_id::text, phase
    """
)
_ASKED = text("SELECT lease_id::text FROM leases WHERE lease_id = ANY(CAST(:ids AS uuid[])) AND preempted_at IS NOT NULL")


async def stop_uncovered(engine: AsyncEngine, leadership: Leadership) -> int:
    """Asks the leases to yield that limits lowered below what is committed do not cover, the newest first; each once.

    Without such a limit it is one statement that finds nothing.

    Returns:
        How many were asked; their orders are in the outbox.

    Raises:
        DeposedError: this process does not lead.
    """
    async with engine.connect() as connection:
        found = {lease.lease_id: lease for lease in await leases_to_stop(connection)}
        asked = set((await connection.execute(_ASKED, {"ids": list(found)})).scalars()) if found else set[str]()
    uncovered = {lease_id: lease for lease_id, lease in found.items() if lease_id not in asked}
    if not uncovered:
        return 0

    async def ask(connection: AsyncConnection) -> int:
        await leadership.fence(connection)
        asked = await _ask(connection, uncovered)
        failpoints.reach(Failpoint.BEFORE_STOP)
        return asked

    count = await in_transaction(engine, ask)
    failpoints.reach(Failpoint.AFTER_STOP)
    _log.info("budget.leases_stopped", leases=count)
    return count


async def _ask(connection: AsyncConnection, uncovered: Mapping[str, LeaseToStop]) -> int:
    job_ids = [lease.job_id for lease in uncovered.values()]
    locked = await connection.execute(_LOCK_JOBS, {"ids": job_ids, "states": sorted(UNDER_WAY)})
    trace_parents: dict[str, str] = {row.job_id: row.trace_parent for row in locked}
    rows = (await connection.execute(_ASK, {"ids": list(uncovered), "job_ids": list(trace_parents)})).all()
    if not rows:
        return 0
    events: list[Happening] = []
    orders: list[dict[str, Any]] = []
    for row in rows:
        reason = f"the budget of {uncovered[row.lease_id].scope} does not cover it any more"
        detail = {"lease_id": row.lease_id, "by": "system:scheduler", "reason": reason, "lost_ms": 0}
        events.append(Happening(row.job_id, detail, phase=row.phase))
        orders.append(
            {
                "kind": "signal_preempt",
                "job_id": row.job_id,
                "dedupe_key": f"preempt/{row.lease_id}",
                "payload": PreemptOrder(lease_id=row.lease_id, reason=reason).model_dump(mode="json"),
                "trace_parent": decided("scheduler.preempt", trace_parents[row.job_id], {"headway.job_id": row.job_id}),
                "state": "ready",
            }
        )
    await append_events(connection, EventType.PREEMPTION_REQUESTED, events)
    # Somebody may have asked the job to yield already.
    await connection.execute(insert(outbox).values(orders).on_conflict_do_nothing(index_elements=["dedupe_key"]))
    await notify(connection, CHANNEL_OUTBOX)
    return len(rows)
