"""The ledger's entries, to look at."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from governance.budgets import Scope

# Of each ledger the newest, and of those the newest: a scope has a ledger for each period.
_ENTRIES = text(
    """
    SELECT newest.*, CAST(reservations.job_id AS text) AS job_id
    FROM (
        SELECT entry_id, entries.kind, CAST(reference AS text) AS reference, reference AS lease_id, account, micros,
            accelerator_ms, created_at, period, period_start
        FROM ledgers CROSS JOIN LATERAL (
            SELECT * FROM ledger_entries
            WHERE ledger_entries.ledger_id = ledgers.ledger_id AND entry_id < :before ORDER BY entry_id DESC LIMIT :most
        ) AS entries
        WHERE ledgers.kind = :kind AND ledgers.scope = :scope
        ORDER BY entry_id DESC LIMIT :most
    ) AS newest
    LEFT JOIN reservations USING (lease_id)
    ORDER BY entry_id DESC
    """
)


async def list_entries(connection: AsyncConnection, scope: Scope, before: int, limit: int) -> Sequence[RowMapping]:
    """The entries of all ledgers of a scope, newest first, with the period of each and the job of its lease.

    Args:
        connection: a connection.
        scope: whose.
        before: only entries whose id is below.
        limit: the most of them.
    """
    values = {"kind": str(scope.kind), "scope": scope.name, "before": before, "most": limit}
    return (await connection.execute(_ENTRIES, values)).mappings().all()
