"""Raises jobs whose deadline is near: what the core decides, written as a change of priority that everybody sees.

A priority that rose is a stored one, so lists, explanations and the next round all go by it. Whoever may change it afterwards
has the last word: a job is raised once.
"""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.db.events import EventType, Happening, append_events
from scheduler import failpoints
from scheduler.core.deadlines import Deadline, Raise, raises
from scheduler.failpoints import Failpoint
from scheduler.leader import Leadership

_log = structlog.get_logger()

_JOBS_MAX = 1_000
"""Most jobs raised at once; the others follow."""
_WHY = "its deadline is near"

# In order of id and before their leases, as everybody does who changes both.
_NEAR = text(
    """
    SELECT job_id::text, jobs.priority, (date_part('epoch', start_by) * 1e6)::bigint AS start_by,
        projects.priority_max AS ceiling, (date_part('epoch', now()) * 1e6)::bigint AS now
    FROM jobs JOIN projects USING (project)
    WHERE job_id IN (
        SELECT job_id FROM jobs
        WHERE start_by <= now() + make_interval(secs => :notice_seconds) AND raised_at IS NULL AND ended_at IS NULL
        ORDER BY start_by LIMIT :most
    ) AND raised_at IS NULL AND ended_at IS NULL
    ORDER BY job_id FOR UPDATE OF jobs
    """
)
# The first of all, by the index that holds no others. Asked whether there is any, PostgreSQL looks through the table for
# one, since it takes it that a third of all rows would do.
_ANY = text(
    """
    SELECT coalesce((
        SELECT start_by <= now() + make_interval(secs => :notice_seconds) FROM jobs
        WHERE start_by IS NOT NULL AND raised_at IS NULL AND ended_at IS NULL ORDER BY start_by LIMIT 1
    ), false)
    """
)
_RAISE = text(
    """
    WITH given AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:priorities AS int[])) AS given (job_id, priority)
    ), requests AS (
        UPDATE leases SET priority = given.priority FROM given
        WHERE leases.job_id = given.job_id AND leases.state = 'REQUESTED'
    )
    UPDATE jobs SET priority = given.priority, raised_at = now() FROM given WHERE jobs.job_id = given.job_id
    """
)


async def raise_due(engine: AsyncEngine, leadership: Leadership, notice_seconds: float) -> int:
    """Raises the jobs whose latest start is near, each once. Without any it is one statement that finds nothing.

    Args:
        engine: the database.
        leadership: whose decision it is.
        notice_seconds: how near.

    Returns:
        How many were raised.

    Raises:
        DeposedError: this process does not lead.
    """
    near = {"notice_seconds": notice_seconds}
    async with engine.connect() as connection:
        if not (await connection.execute(_ANY, near)).scalar_one():
            return 0

    async def write(connection: AsyncConnection) -> int:
        await leadership.fence(connection)
        rows = (await connection.execute(_NEAR, {**near, "most": _JOBS_MAX})).all()
        deadlines = [Deadline(row.job_id, row.priority, row.start_by, row.ceiling) for row in rows]
        due = raises(deadlines, rows[0].now, int(notice_seconds * 1_000_000)) if rows else ()
        await _write(connection, due, {deadline.job_id: deadline.priority for deadline in deadlines})
        failpoints.reach(Failpoint.BEFORE_RAISE)
        return len(due)

    count = await in_transaction(engine, write)
    failpoints.reach(Failpoint.AFTER_RAISE)
    _log.info("deadline.jobs_raised", jobs=count)
    return count


async def _write(connection: AsyncConnection, due: tuple[Raise, ...], before: dict[str, int]) -> None:
    if not due:
        return
    parameters: dict[str, Any] = {"ids": [each.job_id for each in due], "priorities": [each.priority for each in due]}
    await connection.execute(_RAISE, parameters)
    happened = [
        Happening(each.job_id, {"priority": each.priority, "by": "system:scheduler", "reason": _WHY})
        for each in due
        if each.priority != before[each.job_id]
    ]
    await append_events(connection, EventType.UPDATED, happened)
