"""Budgets, prices and ledgers between the contract's messages and the rules' values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import RowMapping

from control_plane.budgets.ledgers import budget_of
from control_plane.budgets.refusals import refused_as
from control_plane.budgets.standing import BudgetState
from control_plane.errors import invalid_field
from control_plane.jobs.spec import ProjectName
from control_plane.quotas.tree import TreeNode
from control_plane.rpc.convert import timestamp, validated_value
from governance.budgets import AtHardLimit, Budget, Scope, ScopeKind, span
from governance.chargeback import ChargebackRow, Dimension
from governance.periods import PeriodKind
from governance.values import Amounts, Limits
from headway.quotas.v1 import budget_pb2, ledger_pb2, price_pb2

PERIODS: Mapping[int, PeriodKind] = {
    int(budget_pb2.BUDGET_PERIOD_MONTH): PeriodKind.MONTH,
    int(budget_pb2.BUDGET_PERIOD_QUARTER): PeriodKind.QUARTER,
    int(budget_pb2.BUDGET_PERIOD_ONE_OFF): PeriodKind.ONE_OFF,
}
"""The kind of period of each number on the wire."""

_AT_HARD_LIMIT: Mapping[int, AtHardLimit] = {
    int(budget_pb2.AT_HARD_LIMIT_UNSPECIFIED): AtHardLimit.STOP,
    int(budget_pb2.AT_HARD_LIMIT_STOP): AtHardLimit.STOP,
    int(budget_pb2.AT_HARD_LIMIT_DEMOTE): AtHardLimit.DEMOTE,
    int(budget_pb2.AT_HARD_LIMIT_WARN): AtHardLimit.WARN,
}
_DIMENSIONS: Mapping[int, Dimension] = {
    number: Dimension[name.removeprefix("REPORT_DIMENSION_")] for name, number in ledger_pb2.ReportDimension.items() if number
}


def scope_of(node: TreeNode) -> Scope:
    """Whose money a node's is."""
    return Scope(ScopeKind(str(node.kind)), node.name)


def moment_of(message: Message, field: str, path: str) -> datetime | None:
    """A time of a message; None if it is absent.

    Raises:
        RefusedError: it is no moment of the calendar.
    """
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid_field(path, "is no time; expected a moment between the years 1 and 9999") from None


def required_moment(message: Message, field: str, path: str) -> datetime:
    """A time of a message.

    Raises:
        RefusedError: it is absent, or no moment of the calendar.
    """
    found = moment_of(message, field, path)
    if found is None:
        raise invalid_field(path, "is missing; expected a time")
    return found


def budget_from(message: budget_pb2.Budget, node: TreeNode) -> Budget:
    """The budget that a message asks for.

    Raises:
        RefusedError: a field breaks its limits.
    """
    period = PERIODS.get(message.period)
    if period is None:
        raise invalid_field("budget.period", f"is {message.period}; expected a BudgetPeriod")
    at_hard_limit = _AT_HARD_LIMIT.get(message.at_hard_limit)
    if at_hard_limit is None:
        raise invalid_field("budget.at_hard_limit", f"is {message.at_hard_limit}; expected an AtHardLimit")
    starts_at, ends_at = (moment_of(message, field, f"budget.{field}") for field in ("start_time", "end_time"))
    told = validated_value(ProjectName, message.alert_project, "budget.alert_project") if message.alert_project else None
    with refused_as("budget"):
        return Budget(
            scope=scope_of(node),
            period=period,
            hard=_limits(message.hard_limit),
            at_hard_limit=at_hard_limit,
            soft=_limits(message.soft_limit),
            span=span(starts_at, ends_at),
            alert_percents=tuple(message.alert_percents),
            notified_project=told,
        )


def budget_message(row: RowMapping, state: BudgetState | None = None) -> budget_pb2.Budget:
    """A row of `budgets` as a message, with where it stands if that is known."""
    budget = budget_of(row)
    periods = {kind: number for number, kind in PERIODS.items()}
    return budget_pb2.Budget(
        **_naming(budget.scope),
        period=budget_pb2.BudgetPeriod.ValueType(periods[budget.period]),
        start_time=timestamp(row["starts_at"]),
        end_time=timestamp(row["ends_at"]),
        hard_limit=_limit(budget.hard),
        soft_limit=_limit(budget.soft) if budget.soft else None,
        at_hard_limit=budget_pb2.AtHardLimit.Value(f"AT_HARD_LIMIT_{budget.at_hard_limit}"),
        alert_percents=budget.alert_percents,
        alert_project=budget.notified_project or "",
        etag=str(row["version"]),
        setter=row["setter"],
        update_time=timestamp(row["updated_at"]),
        standing=None if state is None else _standing(state),
    )


def version_of(etag: str) -> int | None:
    """The version that an etag stands for; None: whatever it is.

    Raises:
        RefusedError: it was made by nobody.
    """
    if not etag:
        return None
    if not (etag.isascii() and etag.isdigit() and len(etag) <= 18):
        raise invalid_field("etag", f'is {etag[:40]!r}; expected one that a budget was read with, "0" or nothing')
    return int(etag)


def price_message(row: RowMapping, currency: str, *, in_force: bool) -> price_pb2.Price:
    """A row of `prices` as a message."""
    return price_pb2.Price(
        accelerator_kind=row["kind"],
        spot=row["spot"],
        micros_per_hour=row["micros_per_hour"],
        start_time=timestamp(row["valid_from"]),
        currency=currency,
        in_force=in_force,
        setter=row["setter"],
        create_time=timestamp(row["created_at"]),
    )


def entry_message(row: RowMapping) -> ledger_pb2.LedgerEntry:
    """An entry, with the period of its ledger and the job of its lease, as a message."""
    return ledger_pb2.LedgerEntry(
        entry_id=row["entry_id"],
        kind=ledger_pb2.LedgerEntryKind.Value(f"LEDGER_ENTRY_KIND_{row['kind']}"),
        reference=row["reference"],
        account=ledger_pb2.LedgerAccount.Value(f"LEDGER_ACCOUNT_{row['account']}"),
        amount=budget_pb2.Spending(micros=row["micros"], accelerator_ms=row["accelerator_ms"]),
        period=budget_pb2.BudgetPeriod.Value(f"BUDGET_PERIOD_{row['period']}"),
        period_start_time=timestamp(row["period_start"]),
        job_id=row["job_id"] or "",
        create_time=timestamp(row["created_at"]),
    )


def dimensions_of(request: ledger_pb2.GetReportRequest) -> tuple[Dimension, ...]:
    """By what a report is to be divided.

    Raises:
        RefusedError: one is unknown.
    """
    found: list[Dimension] = []
    for index, number in enumerate(request.by):
        if number not in _DIMENSIONS:
            raise invalid_field(f"by[{index}]", f"is {number}; expected a ReportDimension")
        found.append(_DIMENSIONS[number])
    return tuple(found) or (Dimension.PROJECT,)


def report_row(row: ChargebackRow, *, with_keys: bool = True) -> ledger_pb2.ReportRow:
    """A row of a report as a message."""
    compared = row.estimates
    return ledger_pb2.ReportRow(
        keys=row.keys if with_keys else (),
        leases=row.leases,
        open_leases=row.open_reservations,
        charged=_spending(row.charged),
        estimates=ledger_pb2.EstimateComparison(
            jobs=compared.jobs,
            open_jobs=compared.open_jobs,
            estimated_micros_low=compared.estimate.low,
            estimated_micros_high=compared.estimate.high,
            charged_micros=compared.charged_micros,
            variance_micros=compared.variance_micros,
        ),
    )


def _standing(state: BudgetState) -> budget_pb2.BudgetStanding:
    return budget_pb2.BudgetStanding(
        period_start_time=timestamp(None if state.period is None else state.period.start),
        period_end_time=timestamp(None if state.period is None else state.period.end),
        reserved=_spending(state.reserved),
        spent=_spending(state.spent),
        left=_limit(state.standing.left),
        demoted=state.standing.demoted,
        soft_limit_reached=state.standing.soft_reached,
    )


def _limits(message: budget_pb2.SpendingLimit) -> Limits:
    return Limits(
        message.micros if message.HasField("micros") else None,
        message.accelerator_ms if message.HasField("accelerator_ms") else None,
    )


def _limit(limits: Limits) -> budget_pb2.SpendingLimit:
    return budget_pb2.SpendingLimit(micros=limits.micros, accelerator_ms=limits.accelerator_ms)


def _spending(amounts: Amounts) -> budget_pb2.Spending:
    return budget_pb2.Spending(micros=amounts.micros, accelerator_ms=amounts.accelerator_ms)


def _naming(scope: Scope) -> dict[str, Any]:
    return {"organisation": True} if scope.kind is ScopeKind.ORGANISATION else {scope.kind.lower(): scope.name}
