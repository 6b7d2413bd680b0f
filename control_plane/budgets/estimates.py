"""What a job was foretold to cost, stored when its first reservation is made, and what it did cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.budget_tables import job_estimates
from control_plane.db.tables import jobs
from control_plane.jobs import planning
from control_plane.jobs.planning import PriceList
from control_plane.jobs.spec import stored_spec
from governance.estimates import Range, Variance, variance

_SECOND_MS = 1_000
_COSTS = text(
    """
    SELECT CAST(jobs.job_id AS text) AS job_id, estimates.job_id IS NOT NULL AS estimated,
        held_ms_low, held_ms_high, micros_low, micros_high, actual.*
    FROM jobs
    LEFT JOIN job_estimates AS estimates ON estimates.job_id = jobs.job_id
    LEFT JOIN LATERAL (
        SELECT CAST(coalesce(sum(settlements.used_ms), 0) AS bigint) AS used_ms,
            CAST(coalesce(sum(settlements.micros), 0) AS bigint) AS micros,
            CAST(coalesce(sum(reservations.micros) FILTER (WHERE settlements.lease_id IS NULL), 0) AS bigint)
                AS reserved_micros,
            count(*) FILTER (WHERE settlements.lease_id IS NULL) AS open
        FROM reservations LEFT JOIN settlements USING (lease_id) WHERE reservations.job_id = jobs.job_id
    ) AS actual ON true
    WHERE jobs.job_id = ANY(CAST(:job_ids AS uuid[]))
    ORDER BY jobs.job_id
    """
)


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a job was foretold to cost, and what it cost so far."""

    job_id: str
    held_ms: Range | None
    """Foretold accelerator-milliseconds, of whatever kind; None: there is no estimate."""
    micros: Range | None
    """Foretold money; None: not known when it was submitted."""
    used_ms: int
    """Accelerator-milliseconds held by leases that have ended, of whatever kind."""
    charged_micros: int
    """Money charged for them."""
    reserved_micros: int
    """Money reserved by leases that run."""
    open_reservations: int
    """Leases that run: above 0, the rest is not final."""
    held_variance: Variance | None
    money_variance: Variance | None


async def record_estimates(connection: AsyncConnection, job_ids: Sequence[str], prices: PriceList | None) -> int:
    """Stores the estimates of jobs that have none yet: the same that a dry run of their spec answers.

    Whoever comes first decides; call it in the transaction of the first reservation, or from a task of its own soon after it.
    It reads and plans one spec for each job that is new, which is why `reserve_many` does not do it.

    Args:
        connection: a connection in a transaction.
        job_ids: the jobs.
        prices: those in force.

    Returns:
        How many were stored. A job whose stored spec is none that can be planned gets no estimate.
    """
    known = select(job_estimates.c.job_id).where(job_estimates.c.job_id == jobs.c.job_id)
    query = select(jobs.c.job_id, jobs.c.spec).where(jobs.c.job_id == func.any(list(job_ids)), ~known.exists())
    rows: list[dict[str, object]] = []
    for job_id, spec in await connection.execute(query.order_by(jobs.c.job_id)):
        try:
            plan = planning.plan(stored_spec(spec), {}, prices)
        except ValidationError:
            continue
        seconds, cost = plan.accelerator_seconds, plan.cost
        rows.append(
            {
                "job_id": job_id,
                "held_ms_low": seconds.low * _SECOND_MS,
                "held_ms_high": seconds.high * _SECOND_MS,
                "micros_low": None if cost is None else cost.micros.low,
                "micros_high": None if cost is None else cost.micros.high,
            }
        )
    if rows:
        await connection.execute(insert(job_estimates).values(rows).on_conflict_do_nothing(index_elements=["job_id"]))
    return len(rows)


async def job_costs(connection: AsyncConnection, job_ids: Sequence[str]) -> list[JobCost]:
    """Estimate, actual and variance of jobs, in order of their ids; those that are not there are left out."""
    found: list[JobCost] = []
    for row in await connection.execute(_COSTS, {"job_ids": list(job_ids)}):
        held = Range(row.held_ms_low, row.held_ms_high) if row.estimated else None
        micros = Range(row.micros_low, row.micros_high) if row.micros_low is not None else None
        found.append(
            JobCost(
                job_id=row.job_id,
                held_ms=held,
                micros=micros,
                used_ms=row.used_ms,
                charged_micros=row.micros,
                reserved_micros=row.reserved_micros,
                open_reservations=row.open,
                held_variance=None if held is None else variance(held, row.used_ms),
                money_variance=None if micros is None else variance(micros, row.micros),
            )
        )
    return found
