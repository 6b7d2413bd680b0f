"""Empties the nodes that are drained: as long as one drains, every lease on it is asked to yield, and asked once.

DrainNode asks those that it finds; those that are found later are asked here: one that was being granted as the drain
began, say. A round takes the lease from whoever did not yield in time, as from any that was asked to.
"""

from __future__ import annotations

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.db.events import EventType, Happening, append_events, notify
from control_plane.db.tables import CHANNEL_OUTBOX, CHANNEL_SCHEDULER
from control_plane.jobs.states import UNDER_WAY
from scheduler import failpoints
from scheduler.failpoints import Failpoint
from scheduler.leader import DeposedError, Leadership
from scheduler.spans import decided
from workers.workflows.contracts import PreemptOrder

_log = structlog.get_logger()

_BATCH = 500
"""Most leases that are asked in one transaction."""

# Most of the time no node drains, and this looks at no lease.
_TO_ASK = text(
    """
    WITH leaving AS (SELECT name, drain_reason FROM workers WHERE draining)
    SELECT lease_id::text, job_id::text, min(leaving.name) AS node,
        (array_agg(drain_reason ORDER BY leaving.name))[1] AS reason
    FROM leases
    CROSS JOIN LATERAL jsonb_array_elements(coalesce(placement, jsonb_build_array(jsonb_build_array(worker, 1)))) AS part
    JOIN leaving ON leaving.name = part ->> 0
    WHERE EXISTS (SELECT 1 FROM leaving) AND state = 'GRANTED' AND preempted_at IS NULL
    GROUP BY lease_id ORDER BY job_id LIMIT :most
    """
)
_LOCK_JOBS = text("SELECT job_id::text FROM jobs WHERE job_id = ANY(CAST(:ids AS uuid[])) ORDER BY job_id FOR UPDATE")
_ASK = text(
    """
    UPDATE leases SET preempted_at = now() FROM jobs
    WHERE lease_id = ANY(CAST(:ids AS uuid[])) AND leases.state = 'GRANTED' AND preempted_at IS NULL
        AND jobs.job_id = leases.job_id
    RETURNING lease_id::text, jobs.job_id::text, leases.phase, jobs.state, jobs.trace_parent
    """
)
_SEND = text(
    """
    INSERT INTO outbox (kind, job_id, dedupe_key, payload, trace_parent, state)
    VALUES ('signal_preempt', :job_id, :dedupe_key, CAST(:payload AS jsonb), :trace_parent, 'ready')
    ON CONFLICT (dedupe_key) DO NOTHING
    """
)


class Drain:
    """The leader's look at what is on draining nodes. On a standby it does nothing."""

    def __init__(self, engine: AsyncEngine, leadership: Leadership, period_seconds: float) -> None:
        self._engine = engine
        self._leadership = leadership
        self._period_seconds = period_seconds

    async def ask(self) -> float:
        """Asks whoever was not asked; returns after how many seconds to look again, 0 if there may be more.

        Raises:
            SQLAlchemyError: the database failed; nobody was asked.
        """
        if self._leadership.epoch is None:
            return self._period_seconds
        async with self._engine.connect() as connection:
            found = (await connection.execute(_TO_ASK, {"most": _BATCH})).all()
        if not found:
            return self._period_seconds
        reasons = {row.lease_id: row.reason or f"node {row.node} is being drained" for row in found}
        job_ids = sorted({row.job_id for row in found})

        async def ask(connection: AsyncConnection) -> int:
            await self._leadership.fence(connection)
            await connection.execute(_LOCK_JOBS, {"ids": job_ids})
            asked = await _ask(connection, reasons)
            failpoints.reach(Failpoint.BEFORE_DRAIN)
            return asked

        try:
            asked = await in_transaction(self._engine, ask)
            failpoints.reach(Failpoint.AFTER_DRAIN)
        except DeposedError as error:
            _log.warning("drain.refused", reason=str(error))
            return self._period_seconds
        _log.info("drain.asked", leases=asked, nodes=sorted({row.node for row in found})[:10])
        return 0.0 if len(found) == _BATCH else self._period_seconds


async def _ask(connection: AsyncConnection, reasons: dict[str, str]) -> int:
    """Asks the holders of leases, given with a reason each, to yield; returns how many still held theirs."""
    asked = (await connection.execute(_ASK, {"ids": list(reasons)})).all()
    happened: list[Happening] = []
    for lease in asked:
        # A job that is being stopped or paused gives its lease back without being asked, or loses it as well.
        if lease.state not in UNDER_WAY:
            continue
        reason = reasons[lease.lease_id]
        message = PreemptOrder(lease_id=lease.lease_id, reason=reason)
        sent = await connection.execute(
            _SEND,
            {
                "job_id": lease.job_id,
                "dedupe_key": f"preempt/{lease.lease_id}",
                "payload": message.model_dump_json(),
                "trace_parent": decided("scheduler.drain", lease.trace_parent, {"headway.job_id": lease.job_id}),
            },
        )
        # Somebody else may have asked for it back before, and then its time begins now all the same.
        if sent.rowcount:
            detail = {"lease_id": lease.lease_id, "by": "system:scheduler", "reason": reason}
            happened.append(Happening(lease.job_id, detail, phase=lease.phase))
    await append_events(connection, EventType.PREEMPTION_REQUESTED, happened)
    if happened:
        await notify(connection, CHANNEL_OUTBOX)
    await notify(connection, CHANNEL_SCHEDULER)
    return len(asked)
