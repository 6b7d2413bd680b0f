"""The chargeback report, read from what leases were charged and held against the ledger's entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select, text, true
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.refusals import refused_as
from control_plane.db.budget_tables import job_estimates, ledger_entries, ledgers, reservations, settlements
from control_plane.db.tables import jobs
from control_plane.errors import invalid_field
from governance.budgets import ScopeKind
from governance.chargeback import Chargeback, ChargebackRow, Dimension
from governance.estimates import Comparison, Range
from governance.ledger import Account, EntryKind
from governance.periods import one_off
from governance.values import Amounts

_SPEC = jobs.c.spec
# The model that a job is about: what `subject` is in the specs.
_MODEL = case(
    (jobs.c.type == "hpo", _SPEC["trial"]["output_model"].astext),
    (jobs.c.type == "retrain", _SPEC["fine_tune"]["output_model"].astext),
    (
        jobs.c.type == "evaluation",
        func.coalesce(func.nullif(_SPEC["base_model"].astext, ""), _SPEC["model"]["model"].astext),
    ),
    else_=_SPEC["output_model"].astext,
)
_KEYS: Mapping[Dimension, ColumnElement[str]] = {
    Dimension.PROJECT: reservations.c.project,
    Dimension.USER: func.coalesce(jobs.c.submitter, ""),
    Dimension.MODEL: func.coalesce(_MODEL, ""),
    Dimension.JOB_TYPE: func.coalesce(jobs.c.type, ""),
    Dimension.MONTH: func.to_char(func.timezone("UTC", reservations.c.created_at), "YYYY-MM"),
}


class InconsistentLedgerError(Exception):
    """The report's total is not the ledger's: `verify` says where."""


async def chargeback(
    connection: AsyncConnection,
    *,
    start: datetime,
    end: datetime,
    by: Sequence[Dimension],
    projects: frozenset[str] | None,
    currency: str,
    rows_max: int = 100_000,
) -> Chargeback:
    """What the leases granted in a stretch of time were charged, divided as asked for.

    A lease belongs to the moment it was granted, as in the ledger; so the report of a month is final when the leases granted in
    it have ended. Those that have not are counted in each row.

    Args:
        connection: in a transaction at REPEATABLE READ, so that rows and ledger are of one moment.
        start: the first moment.
        end: the first moment after it.
        by: what a row is about, in this order; not empty, each once.
        projects: those that the caller may see; None: all.
        currency: of the price list.
        rows_max: the most rows; a report that would have more is refused.

    Raises:
        RefusedError: an argument is not valid.
        InconsistentLedgerError: the rows do not sum to what the ledger says.
    """
    with refused_as(""):
        stretch = one_off(start, end)
    dimensions = tuple(by)
    if not dimensions or len(set(dimensions)) != len(dimensions):
        raise invalid_field("by", f"names {len(dimensions)} dimensions; expected at least one, each once")
    granted = [reservations.c.created_at >= stretch.start, reservations.c.created_at < stretch.end]
    if projects is not None:
        granted.append(reservations.c.project.in_(projects))
    rows = (await connection.execute(_rows(dimensions, granted).limit(rows_max + 1))).all()
    if len(rows) > rows_max:
        raise invalid_field("by", f"divides the report into more than {rows_max:,} rows; expected fewer, or a shorter time")
    compared = {
        tuple(row[: len(dimensions)]): Comparison(
            row.jobs, row.open_jobs, Range(int(row.low), int(row.high)), int(row.charged_micros)
        )
        for row in await connection.execute(_compared(dimensions, granted, stretch.start))
    }
    report = Chargeback(
        start=stretch.start,
        end=stretch.end,
        currency=currency,
        dimensions=dimensions,
        rows=tuple(
            ChargebackRow(
                keys=tuple(row[: len(dimensions)]),
                leases=row.leases,
                charged=Amounts(int(row.micros), int(row.accelerator_ms)),
                open_reservations=row.open,
                estimates=compared.get(tuple(row[: len(dimensions)]), Comparison()),
            )
            for row in rows
        ),
    )
    ledger = (await connection.execute(_entered(granted))).one()
    entered = Amounts(int(ledger.micros), int(ledger.accelerator_ms))
    if report.charged != entered:
        raise InconsistentLedgerError(f"the rows sum to {report.charged}, the ledger's entries to {entered}")
    return report


def _rows(dimensions: Sequence[Dimension], granted: Sequence[ColumnElement[bool]]) -> Select[Any]:
    numbers = [text(str(place)) for place in range(1, len(dimensions) + 1)]
    charged = reservations.outerjoin(settlements, settlements.c.lease_id == reservations.c.lease_id)
    return (
        select(
            *(_KEYS[dimension].label(f"key_{dimension}") for dimension in dimensions),
            func.count().label("leases"),
            func.count().filter(settlements.c.lease_id.is_(None)).label("open"),
            func.coalesce(func.sum(settlements.c.micros), 0).label("micros"),
            func.coalesce(func.sum(settlements.c.accelerator_ms), 0).label("accelerator_ms"),
        )
        .select_from(charged.outerjoin(jobs, jobs.c.job_id == reservations.c.job_id))
        .where(*granted)
        .group_by(*numbers)
        .order_by(*numbers)
    )


def _compared(
    dimensions: Sequence[Dimension], granted: Sequence[ColumnElement[bool]], start: datetime
) -> Select[*tuple[Any, ...]]:
    """Estimates and actuals of the jobs whose first lease is among these, divided as the leases are."""
    earlier, of_job = reservations.alias(), reservations.alias()
    began_before = select(earlier.c.job_id).where(earlier.c.job_id == reservations.c.job_id, earlier.c.created_at < start)
    firsts = (
        select(*(_KEYS[dimension].label(f"key_{dimension}") for dimension in dimensions), reservations.c.job_id)
        .ext(distinct_on(reservations.c.job_id))
        .select_from(reservations.outerjoin(jobs, jobs.c.job_id == reservations.c.job_id))
        .where(*granted, ~began_before.exists())
        .order_by(reservations.c.job_id, reservations.c.created_at)
        .subquery()
    )
    actual = (
        select(
            func.coalesce(func.sum(settlements.c.micros), 0).label("micros"),
            func.count().filter(settlements.c.lease_id.is_(None)).label("open"),
        )
        .select_from(of_job.outerjoin(settlements, settlements.c.lease_id == of_job.c.lease_id))
        .where(of_job.c.job_id == firsts.c.job_id)
        .lateral()
    )
    keys = [firsts.c[f"key_{dimension}"] for dimension in dimensions]
    return (
        select(
            *keys,
            func.count().label("jobs"),
            func.count().filter(actual.c.open > 0).label("open_jobs"),
            func.sum(job_estimates.c.micros_low).label("low"),
            func.sum(job_estimates.c.micros_high).label("high"),
            func.sum(actual.c.micros).label("charged_micros"),
        )
        .select_from(firsts.join(job_estimates, job_estimates.c.job_id == firsts.c.job_id).join(actual, true()))
        .where(job_estimates.c.micros_low.is_not(None))
        .group_by(*keys)
    )


def _entered(granted: Sequence[ColumnElement[bool]]) -> Select[Any, Any]:
    """The same leases in the ledgers of their projects, where each of them is entered once."""
    spent = (ledger_entries.c.kind == str(EntryKind.SETTLE)) & (ledger_entries.c.account == str(Account.SPENT))
    entries = ledger_entries.join(ledgers, ledgers.c.ledger_id == ledger_entries.c.ledger_id)
    return (
        select(
            func.coalesce(func.sum(ledger_entries.c.micros), 0).label("micros"),
            func.coalesce(func.sum(ledger_entries.c.accelerator_ms), 0).label("accelerator_ms"),
        )
        .select_from(reservations.join(entries, ledger_entries.c.reference == reservations.c.lease_id))
        .where(spent, ledgers.c.kind == str(ScopeKind.PROJECT), *granted)
    )
