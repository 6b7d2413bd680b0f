"""Budgets as rows, and what setting one does to the ledger of the period that runs.

A budget takes effect in the transaction that sets it. The ledger of a project's calendar month is there whether or not it has a
budget, so what a project used since the first counts against a monthly one; any other budget counts from when it is set.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, delete, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.alerts import alert_of_reached
from control_plane.budgets.ledgers import ensure, find, read_budgets
from control_plane.db.budget_tables import budgets
from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_SCHEDULER
from control_plane.errors import Reason, RefusedError
from control_plane.projects.repository import require_open
from governance.budgets import Budget, Scope, ScopeKind, funded
from governance.periods import Period
from governance.values import UNLIMITED, Amounts, Book, Limits

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
_LOCK_LEDGER = text("SELECT * FROM ledgers WHERE ledger_id = :ledger_id FOR UPDATE")
# The newest entry of all is at or after the newest of this ledger, whose lock is held.
_LIMIT = text(
    """
    WITH entered AS (
        INSERT INTO ledger_entries (kind, reference, ledger_id, account, micros, accelerator_ms)
        SELECT 'FUND', CAST(:reference AS uuid), :ledger_id, account, sign * CAST(:micros AS bigint), sign * CAST(:ms AS bigint)
        FROM (VALUES ('EXTERNAL', -1), ('BUDGET', 1)) AS side (account, sign)
        WHERE CAST(:micros AS bigint) <> 0 OR CAST(:ms AS bigint) <> 0
        ORDER BY sign
        RETURNING entry_id
    )
    UPDATE ledgers
    SET external_micros = external_micros - :micros, budget_micros = budget_micros + :micros,
        external_ms = external_ms - :ms, budget_ms = budget_ms + :ms,
        limit_micros = CAST(:limit_micros AS bigint), limit_ms = CAST(:limit_ms AS bigint), period_end = :period_end,
        limited_after = CASE
            WHEN CAST(:limit_micros AS bigint) IS NULL AND CAST(:limit_ms AS bigint) IS NULL THEN NULL
            WHEN (limit_micros IS NOT NULL OR CAST(:limit_micros AS bigint) IS NULL)
                AND (limit_ms IS NOT NULL OR CAST(:limit_ms AS bigint) IS NULL) THEN limited_after
            ELSE greatest((SELECT max(entry_id) FROM ledger_entries), (SELECT max(entry_id) FROM entered), 0)
        END
    WHERE ledger_id = :ledger_id
    """
)


async def set_budget(connection: AsyncConnection, budget: Budget, setter: str, version: int | None = None) -> RowMapping:
    """Gives a scope its budget, instead of the one it has, from now on.

    A hard limit that stops and is lowered below what is committed sinks as leases end; nothing is granted meanwhile, and
    `standing.leases_to_stop` names those that have to stop.

    Args:
        connection: a connection in a transaction.
        budget: valid in itself, which its construction has made sure of.
        setter: the principal.
        version: the one that was read before, 0 for none; None: whatever it is.

    Returns:
        The row of `budgets`.

    Raises:
        RefusedError: there is no such project, or the version is another.
    """
    for project in sorted({name for name in (_project(budget.scope), budget.notified_project) if name is not None}):
        await require_open(connection, project)
    before = await _lock(connection, budget.scope, version)
    values = _values(budget) | {"setter": setter, "updated_at": func.now()}
    changed = await connection.execute(
        insert(budgets)
        .values(kind=str(budget.scope.kind), scope=budget.scope.name, **values)
        .on_conflict_do_update(index_elements=["kind", "scope"], set_={**values, "version": budgets.c.version + 1})
        .returning(budgets)
    )
    row = changed.mappings().one()
    now, _ = await read_budgets(connection, [budget.scope])
    period = budget.period_at(now)
    left = None if before is None else before.period_at(now)
    # The ledger of a one-off is known by its start; its end may be moved.
    if left is not None and (period is None or (left.kind, left.start) != (period.kind, period.start)):
        await _leave_ledger(connection, budget.scope, left)
    if period is not None:
        ledger_id = (await ensure(connection, {budget.scope: period}, {budget.scope: budget}))[budget.scope]
        await _limit_ledger(connection, ledger_id, budget.hard, enforced=budget.stops, period_end=period.end)
        await alert_of_reached(connection, {ledger_id: budget})
    await notify(connection, CHANNEL_SCHEDULER)
    return row


async def remove_budget(connection: AsyncConnection, scope: Scope, version: int | None = None) -> None:
    """Takes a scope's budget: from now on it is not limited. What it spent stays in its ledger.

    Raises:
        RefusedError: it has none, or the version is another.
    """
    before = await _lock(connection, scope, version)
    if before is None:
        raise no_budget(scope)
    await connection.execute(delete(budgets).where(*_is(scope)))
    now, _ = await read_budgets(connection, [scope])
    if (period := before.period_at(now)) is not None:
        await _leave_ledger(connection, scope, period)
    await notify(connection, CHANNEL_SCHEDULER)


async def get_budget(connection: AsyncConnection, scope: Scope) -> RowMapping:
    """A scope's budget as its row; `ledgers.budget_of` reads it.

    Raises:
        RefusedError: it has none.
    """
    row = (await connection.execute(select(budgets).where(*_is(scope)))).mappings().one_or_none()
    if row is None:
        raise no_budget(scope)
    return row


async def list_budgets(
    connection: AsyncConnection,
    visible_projects: frozenset[str] | None,
    visible_teams: frozenset[str] | None,
    after: tuple[str, str],
    limit: int,
) -> Sequence[RowMapping]:
    """Budgets by kind and name of their scope, those after `after`.

    Args:
        connection: a connection.
        visible_projects: budgets of other projects are left out; None: none is.
        visible_teams: those of other teams are left out; None: none is. The organisation's is not.
        after: kind and name; ("", "") from the beginning.
        limit: the most of them.
    """
    query = select(budgets).where(tuple_(budgets.c.kind, budgets.c.scope) > after)
    for kind, names in ((ScopeKind.PROJECT, visible_projects), (ScopeKind.TEAM, visible_teams)):
        if names is not None:
            query = query.where((budgets.c.kind != str(kind)) | budgets.c.scope.in_(names))
    return (await connection.execute(query.order_by(budgets.c.kind, budgets.c.scope).limit(limit))).mappings().all()


async def _lock(connection: AsyncConnection, scope: Scope, version: int | None) -> Budget | None:
    """Locks a scope against other changes of its budget, which need not be there; returns what it is.

    Raises:
        RefusedError: the version is another.
    """
    await connection.execute(_LOCK, {"key": f"budget/{scope.kind}/{scope.name}"})
    query = select(budgets.c.version).where(*_is(scope))
    found: int = (await connection.execute(query)).scalar_one_or_none() or 0
    if version is not None and version != found:
        raise RefusedError(
            Reason.ETAG_MISMATCH,
            f"the budget of {scope} changed since version {version} was read; read it again",
            {"etag": str(found)},
        )
    _, budgets_by_scope = await read_budgets(connection, [scope])
    return budgets_by_scope.get(scope)


async def _leave_ledger(connection: AsyncConnection, scope: Scope, period: Period) -> None:
    """Takes the limit from a ledger, and what it was given."""
    for ledger_id in (await find(connection, {scope: period})).values():
        await _limit_ledger(connection, ledger_id, UNLIMITED, enforced=False, period_end=period.end)


async def _limit_ledger(
    connection: AsyncConnection, ledger_id: int, hard: Limits, *, enforced: bool, period_end: datetime
) -> None:
    row = (await connection.execute(_LOCK_LEDGER, {"ledger_id": ledger_id})).one()
    given = Amounts(-row.external_micros, -row.external_ms)
    committed = Amounts(row.spent_micros + row.reserved_micros, row.spent_ms + row.reserved_ms)
    wanted = Amounts.by_book(lambda book: funded(hard.of(book), committed.of(book), enforced=enforced))
    limits = hard if enforced else UNLIMITED
    await connection.execute(
        _LIMIT,
        {
            "ledger_id": ledger_id,
            "reference": str(uuid.uuid4()),
            "micros": (wanted - given).of(Book.MONEY),
            "ms": (wanted - given).of(Book.ACCELERATOR_TIME),
            "limit_micros": limits.micros,
            "limit_ms": limits.accelerator_ms,
            "period_end": period_end,
        },
    )


def _values(budget: Budget) -> dict[str, Any]:
    return {
        "period": str(budget.period),
        "starts_at": None if budget.span is None else budget.span.start,
        "ends_at": None if budget.span is None else budget.span.end,
        "hard_micros": budget.hard.micros,
        "hard_ms": budget.hard.accelerator_ms,
        "soft_micros": budget.soft.micros,
        "soft_ms": budget.soft.accelerator_ms,
        "at_hard_limit": str(budget.at_hard_limit),
        "alert_percents": list(budget.alert_percents),
        "notified_project": budget.notified_project,
    }


def _project(scope: Scope) -> str | None:
    return scope.name if scope.kind is ScopeKind.PROJECT else None


def _is(scope: Scope) -> tuple[Any, Any]:
    return budgets.c.kind == str(scope.kind), budgets.c.scope == scope.name


def no_budget(scope: Scope) -> RefusedError:
    """The refusal of whoever asks for a budget that is not there."""
    return RefusedError(Reason.RESOURCE_NOT_FOUND, f"{scope} has no budget: it may spend what it likes", {"name": scope.name})
