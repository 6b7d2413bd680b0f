"""Where budgets stand: what the scheduler goes by, and what people look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.ledgers import budget_of
from control_plane.quotas.tree import teams_above
from governance.budgets import Budget, HeldReservation, Scope, ScopeKind, Standing, standing, uncovered
from governance.periods import Period
from governance.values import Amounts

# Of a scope's ledgers, the one of the budget's own kind of period that runs now.
_BALANCES = text(
    """
    SELECT budgets.*, now() AS now, ledgers.ledger_id, reserved_micros, reserved_ms, spent_micros, spent_ms
    FROM budgets LEFT JOIN ledgers
        ON ledgers.kind = budgets.kind AND ledgers.scope = budgets.scope AND ledgers.period = budgets.period
        AND period_start <= now() AND now() < period_end AND (starts_at IS NULL OR period_start = starts_at)
    WHERE CAST(:kinds AS text[]) IS NULL
        OR (budgets.kind, budgets.scope) IN (SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:scopes AS text[])))
    ORDER BY budgets.kind, budgets.scope
    """
)
# Most of the time no limit is below what is committed, and this looks at no lease.
_UNCOVERED = text(
    """
    WITH sinking AS MATERIALIZED (
        SELECT ledger_id, kind, scope,
            coalesce(greatest(0, -external_micros - limit_micros), 0) AS over_micros,
            coalesce(greatest(0, -external_ms - limit_ms), 0) AS over_ms
        FROM ledgers WHERE (- external_micros) > limit_micros OR (- external_ms) > limit_ms
    )
    SELECT sinking.*, leases.lease_id::text AS lease_id, leases.job_id::text AS job_id, leases.granted_at,
        entries.micros, entries.accelerator_ms
    FROM sinking
    JOIN leases ON leases.state = 'GRANTED'
    JOIN ledger_entries AS entries ON entries.reference = leases.lease_id AND entries.kind = 'RESERVE'
        AND entries.account = 'RESERVED' AND entries.ledger_id = sinking.ledger_id
    WHERE (SELECT count(*) FROM sinking) > 0
    ORDER BY sinking.ledger_id, leases.lease_id
    """
)


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget and where it stands in the period that runs."""

    budget: Budget
    version: int
    spent: Amounts
    reserved: Amounts
    standing: Standing
    period: Period | None
    """That which runs; None: outside a one-off's span."""


@dataclass(frozen=True, slots=True)
class LeaseToStop:
    """A running lease that its budget does not cover any more: it stops at a checkpoint, and its job is held."""

    lease_id: str
    job_id: str
    scope: Scope
    """Whose limit was lowered."""


async def read_states(connection: AsyncConnection, scopes: Sequence[Scope] | None = None) -> list[BudgetState]:
    """The budgets of scopes, or of all, with what is spent and reserved now. Takes no lock; one statement.

    For the scheduler's snapshot: `state.standing.left` is what may still be reserved (None: not limited), and
    `state.standing.demoted` whether all of the scope's work is of class scavenger. A scope without budget is not limited.
    """
    values = {
        "kinds": None if scopes is None else [str(scope.kind) for scope in scopes],
        "scopes": None if scopes is None else [scope.name for scope in scopes],
    }
    states: list[BudgetState] = []
    for row in (await connection.execute(_BALANCES, values)).mappings():
        budget, now = budget_of(row), row["now"]
        opened = row["ledger_id"] is not None
        spent = Amounts(row["spent_micros"], row["spent_ms"]) if opened else Amounts()
        reserved = Amounts(row["reserved_micros"], row["reserved_ms"]) if opened else Amounts()
        stands = standing(budget, spent + reserved, now)
        states.append(BudgetState(budget, row["version"], spent, reserved, stands, budget.period_at(now)))
    return states


async def demoting_scope(connection: AsyncConnection, project: str) -> Scope | None:
    """Whose budget demotes the work of a project to class scavenger: its own, a team's, the organisation's; None: nobody's."""
    demoting = {state.budget.scope for state in await read_states(connection) if state.standing.demoted}
    if not demoting:
        return None
    teams = sorted(await teams_above(connection, {project}))
    path = [
        Scope(ScopeKind.PROJECT, project),
        *(Scope(ScopeKind.TEAM, team) for team in teams),
        Scope(ScopeKind.ORGANISATION, ""),
    ]
    return next((scope for scope in path if scope in demoting), None)


async def leases_to_stop(connection: AsyncConnection) -> list[LeaseToStop]:
    """The leases to preempt so that limits which were lowered below what is committed are met, newest first in each scope.

    Call it with the snapshot of a round: it names the same leases until they have ended, and nobody as long as no limit was
    lowered so far. What is held back is that nothing is granted while there are any.
    """
    ledgers: dict[int, tuple[Scope, Amounts, list[HeldReservation]]] = {}
    for row in await connection.execute(_UNCOVERED):
        scope = Scope(ScopeKind(row.kind), row.scope)
        _, _, held = ledgers.setdefault(row.ledger_id, (scope, Amounts(row.over_micros, row.over_ms), []))
        granted: datetime = row.granted_at
        held.append(HeldReservation(row.lease_id, row.job_id, granted, Amounts(row.micros, row.accelerator_ms)))
    return [
        LeaseToStop(lease.lease_id, lease.job_id, scope)
        for scope, over, held in ledgers.values()
        for lease in uncovered(over, held)
    ]
