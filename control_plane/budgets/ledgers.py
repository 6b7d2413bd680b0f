"""Which ledgers a project's leases are charged to, made when they are first needed.

A lease is charged to the ledger of its project, always, and to that of every team and organisation above it that has a budget.
The ledger is that of the period in which the lease is granted: of the budget's, or of the calendar month where there is none.

Lock order, for everything that locks ledgers: jobs, then leases, then ledgers by id, each call taking all that it needs at
once. A transaction that settles and reserves calls `hold` before either.

The locks are taken by a statement of their own, before the one that looks and enters. What a statement reads at READ COMMITTED
is as of its start: one that waited for a lock itself would compute a new balance from the old one first, hold that against the
checks of the table, and only then look at what it had waited for.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from governance.budgets import AtHardLimit, Budget, Scope, ScopeKind, funded, in_order
from governance.periods import Period, PeriodKind, calendar_period
from governance.values import UNLIMITED, Limits

_BUDGETS = text(
    """
    SELECT now() AS now, budgets.*
    FROM (SELECT 1) AS always LEFT JOIN budgets
        ON (budgets.kind, budgets.scope) IN (SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:scopes AS text[])))
    """
)
_FIND = text(
    """
    SELECT ledger_id, kind, scope
    FROM unnest(CAST(:kinds AS text[]), CAST(:scopes AS text[]), CAST(:periods AS text[]), CAST(:starts AS timestamptz[]))
        AS wanted (kind, scope, period, period_start)
    JOIN ledgers USING (kind, scope, period, period_start)
    """
)
# Of two transactions that open the same ledger the second waits for the first, and finds it made.
_OPEN = text(
    """
    WITH opened AS (
        INSERT INTO ledgers (
            kind, scope, period, period_start, period_end, limit_micros, limit_ms, limited_after,
            external_micros, budget_micros, external_ms, budget_ms
        )
        SELECT kind, scope, period, period_start, period_end, limit_micros, limit_ms,
            CASE WHEN limit_micros IS NOT NULL OR limit_ms IS NOT NULL THEN 0 END, -micros, micros, -ms, ms
        FROM unnest(
            CAST(:kinds AS text[]), CAST(:scopes AS text[]), CAST(:periods AS text[]), CAST(:starts AS timestamptz[]),
            CAST(:ends AS timestamptz[]), CAST(:limits_micros AS bigint[]), CAST(:limits_ms AS bigint[]),
            CAST(:micros AS bigint[]), CAST(:ms AS bigint[])
        ) AS given (kind, scope, period, period_start, period_end, limit_micros, limit_ms, micros, ms)
        ORDER BY kind, scope
        ON CONFLICT (kind, scope, period, period_start) DO NOTHING
        RETURNING ledger_id, kind, scope, budget_micros, budget_ms
    )
    INSERT INTO ledger_entries (kind, reference, ledger_id, account, micros, accelerator_ms)
    SELECT 'FUND', given.reference, ledger_id, account, sign * budget_micros, sign * budget_ms
    FROM opened
    JOIN unnest(CAST(:kinds AS text[]), CAST(:scopes AS text[]), CAST(:references AS uuid[])) AS given (kind, scope, reference)
        USING (kind, scope)
    CROSS JOIN (VALUES ('EXTERNAL', -1), ('BUDGET', 1)) AS side (account, sign)
    WHERE budget_micros <> 0 OR budget_ms <> 0
    ORDER BY ledger_id, sign
    """
)
_LOCK = text(
    """
    SELECT 1 FROM ledgers
    WHERE ledger_id IN (
        SELECT unnest(CAST(:ledger_ids AS bigint[]))
        UNION SELECT entries.ledger_id FROM ledger_entries AS entries
        WHERE entries.reference = ANY(CAST(:lease_ids AS uuid[])) AND entries.kind = 'RESERVE'
    )
    ORDER BY ledger_id FOR UPDATE
    """
)


@dataclass(frozen=True, slots=True)
class ChargedTo:
    """The ledgers that the leases of one project are charged to."""

    ledgers: Mapping[Scope, int]
    """Ids by scope, the project's first."""
    budgets: tuple[Budget, ...]
    """Those in force on the way to the root."""
    closed: Scope | None = None
    """The scope whose one-off budget does not run now, and stops what it does not cover."""

    @property
    def money_limited(self) -> bool:
        """Whether a lease without price could not be paid for."""
        return any(budget.enforced.micros is not None for budget in self.budgets)


async def open_ledgers(
    connection: AsyncConnection, above: Mapping[str, Sequence[Scope]]
) -> tuple[datetime, dict[str, ChargedTo]]:
    """The ledgers of projects for leases that are granted in this transaction, made where they are not there yet.

    Args:
        connection: a connection in a transaction.
        above: of each project, the teams and the organisation on the way to the root.

    Returns:
        When the transaction began, and the ledgers by project.
    """
    paths = {project: (Scope(ScopeKind.PROJECT, project), *scopes) for project, scopes in above.items()}
    scopes = in_order([scope for path in paths.values() for scope in path])
    now, budgets = await read_budgets(connection, scopes)
    periods = {scope: period for scope in scopes if (period := _period(scope, budgets.get(scope), now)) is not None}
    ids = await ensure(connection, periods, budgets)
    return now, {project: _charged_to(path, ids, budgets, now) for project, path in paths.items()}


def _charged_to(path: Sequence[Scope], ids: Mapping[Scope, int], budgets: Mapping[Scope, Budget], now: datetime) -> ChargedTo:
    running = {scope: budget for scope in path if (budget := budgets.get(scope)) is not None}
    closed = (scope for scope, budget in running.items() if budget.stops and budget.period_at(now) is None)
    return ChargedTo(
        ledgers={scope: ids[scope] for scope in path if scope in ids},
        budgets=tuple(budget for budget in running.values() if budget.period_at(now) is not None),
        closed=next(closed, None),
    )


def _period(scope: Scope, budget: Budget | None, now: datetime) -> Period | None:
    """The period of the ledger that a scope has now; None: it has none."""
    period = None if budget is None else budget.period_at(now)
    if period is None and scope.kind is ScopeKind.PROJECT:
        return calendar_period(PeriodKind.MONTH, now)
    return period


async def read_budgets(connection: AsyncConnection, scopes: Sequence[Scope]) -> tuple[datetime, dict[Scope, Budget]]:
    """When the transaction began, and the budgets of those scopes that have one."""
    values = {"kinds": [str(scope.kind) for scope in scopes], "scopes": [scope.name for scope in scopes]}
    rows = (await connection.execute(_BUDGETS, values)).mappings().all()
    found = [budget_of(row) for row in rows if row["kind"] is not None]
    return rows[0]["now"], {budget.scope: budget for budget in found}


def budget_of(row: RowMapping) -> Budget:
    """The budget in a row of `budgets`."""
    starts, ends = row["starts_at"], row["ends_at"]
    return Budget(
        scope=Scope(ScopeKind(row["kind"]), row["scope"]),
        period=PeriodKind(row["period"]),
        hard=Limits(row["hard_micros"], row["hard_ms"]),
        at_hard_limit=AtHardLimit(row["at_hard_limit"]),
        soft=Limits(row["soft_micros"], row["soft_ms"]),
        span=None if starts is None else Period(PeriodKind.ONE_OFF, starts, ends),
        alert_percents=tuple(row["alert_percents"]),
        notified_project=row["notified_project"],
    )


async def ensure(
    connection: AsyncConnection, periods: Mapping[Scope, Period], budgets: Mapping[Scope, Budget]
) -> dict[Scope, int]:
    """The ids of the ledgers of these periods; those not there yet are opened with what their budgets give."""
    if not periods:
        return {}
    found = await find(connection, periods)
    missing = {scope: period for scope, period in periods.items() if scope not in found}
    if missing:
        await connection.execute(_OPEN, _opening(missing, budgets))
        found |= await find(connection, missing)
    return found


async def find(connection: AsyncConnection, periods: Mapping[Scope, Period]) -> dict[Scope, int]:
    """The ids of the ledgers of these periods that are there."""
    rows = await connection.execute(_FIND, _keys(periods))
    return {Scope(ScopeKind(row.kind), row.scope): row.ledger_id for row in rows}


def _keys(periods: Mapping[Scope, Period]) -> dict[str, Any]:
    return {
        "kinds": [str(scope.kind) for scope in periods],
        "scopes": [scope.name for scope in periods],
        "periods": [str(period.kind) for period in periods.values()],
        "starts": [period.start for period in periods.values()],
    }


def _opening(periods: Mapping[Scope, Period], budgets: Mapping[Scope, Budget]) -> dict[str, Any]:
    # A budget gives to its own period only: beside a one-off's span its project is charged by the month.
    own = {
        scope: budget
        for scope, period in periods.items()
        if (budget := budgets.get(scope)) is not None and budget.period is period.kind
    }
    enforced = [own[scope].enforced if scope in own else UNLIMITED for scope in periods]
    hard = [own[scope].hard if scope in own else UNLIMITED for scope in periods]
    return _keys(periods) | {
        "ends": [period.end for period in periods.values()],
        "limits_micros": [limits.micros for limits in enforced],
        "limits_ms": [limits.accelerator_ms for limits in enforced],
        "micros": [funded(limits.micros, 0, enforced=True) for limits in hard],
        "ms": [funded(limits.accelerator_ms, 0, enforced=True) for limits in hard],
        "references": [str(uuid.uuid4()) for _ in periods],
    }


async def lock(connection: AsyncConnection, ledger_ids: Iterable[int] = (), lease_ids: Iterable[str] = ()) -> None:
    """Locks ledgers, and those in which leases have reserved, in their order."""
    await connection.execute(_LOCK, {"ledger_ids": sorted(set(ledger_ids)), "lease_ids": list(lease_ids)})


async def hold(
    connection: AsyncConnection, ending: Iterable[str] = (), granting: Mapping[str, Sequence[Scope]] | None = None
) -> None:
    """Locks, in their order, all ledgers that this transaction is going to change.

    For a transaction that calls `settle_many` or `reserve_many` more than once, or both: each of them locks in order, and two
    of them one after the other need not.

    Args:
        connection: a connection in a transaction.
        ending: leases that are going to be settled.
        granting: of each project that is going to reserve, the scopes above it, as `reserve_many` has them.
    """
    _, charged_to = await open_ledgers(connection, granting or {})
    await lock(connection, (ledger for path in charged_to.values() for ledger in path.ledgers.values()), ending)
