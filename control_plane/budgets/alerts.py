"""Alerts: a budget that reaches a level is told of, once in a period, through the webhooks.

An alert is written in the transaction that reaches its level, with its deliveries: what was committed is told, whatever
crashes. Levels are looked at when something is reserved and when the budget is set; as leases end, a budget only empties.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_WEBHOOKS
from governance.budgets import LEVEL_SOFT, Budget, Reached, ScopeKind, reached
from governance.values import Amounts

_LOOK = text(
    """
    SELECT ledger_id, period, period_start, period_end, reserved_micros, reserved_ms, spent_micros, spent_ms, now() AS now,
        (SELECT array_agg(book || ' ' || level) FROM budget_alerts WHERE budget_alerts.ledger_id = ledgers.ledger_id) AS told
    FROM ledgers WHERE ledger_id = ANY(CAST(:ledger_ids AS bigint[])) ORDER BY ledger_id
    """
)
_WRITE = text(
    """
    WITH given AS (
        SELECT * FROM unnest(
            CAST(:alert_ids AS uuid[]), CAST(:ledger_ids AS bigint[]), CAST(:books AS text[]), CAST(:levels AS text[]),
            CAST(:committed AS bigint[]), CAST(:hard_limits AS bigint[]), CAST(:projects AS text[]), CAST(:bodies AS text[])
        ) AS given (alert_id, ledger_id, book, level, committed, hard_limit, project, body)
    ), written AS (
        INSERT INTO budget_alerts (alert_id, ledger_id, book, level, committed, hard_limit)
        SELECT alert_id, ledger_id, book, level, committed, hard_limit FROM given
        ON CONFLICT (ledger_id, book, level) DO NOTHING
        RETURNING alert_id
    )
    INSERT INTO webhook_deliveries (delivery_id, webhook_id, alert_id, body, state)
    SELECT gen_random_uuid(), webhooks.webhook_id, written.alert_id, given.body, 'PENDING'
    FROM written JOIN given USING (alert_id)
    JOIN webhooks ON webhooks.project = given.project AND webhooks.deleted_at IS NULL AND webhooks.budget_alerts
    """
)


async def alert_of_reached(connection: AsyncConnection, budgets: Mapping[int, Budget]) -> int:
    """Writes the alerts of levels that budgets have reached and that were not told in this period.

    Args:
        connection: in the transaction that changed what is committed; it holds the ledgers' locks.
        budgets: by the ledger they are counted in.

    Returns:
        How many levels were reached.
    """
    if not budgets:
        return 0
    rows = (await connection.execute(_LOOK, {"ledger_ids": sorted(budgets)})).all()
    alerts = [
        (row, level)
        for row in rows
        for level in reached(budgets[row.ledger_id], _committed(row))
        if f"{level.book} {level.level}" not in (row.told or ())
    ]
    if alerts:
        await connection.execute(_WRITE, _parameters(alerts, budgets))
        await notify(connection, CHANNEL_WEBHOOKS)
    return len(alerts)


def _parameters(alerts: Sequence[tuple[Row[Any], Reached]], budgets: Mapping[int, Budget]) -> dict[str, Any]:
    return {
        "alert_ids": [str(uuid.uuid4()) for _ in alerts],
        "ledger_ids": [row.ledger_id for row, _ in alerts],
        "books": [str(level.book) for _, level in alerts],
        "levels": [level.level for _, level in alerts],
        "committed": [level.committed for _, level in alerts],
        "hard_limits": [level.hard_limit for _, level in alerts],
        "projects": [_told(budgets[row.ledger_id]) for row, _ in alerts],
        "bodies": [_body(row, budgets[row.ledger_id], level) for row, level in alerts],
    }


def _told(budget: Budget) -> str | None:
    """The project whose endpoints hear of a budget."""
    return budget.scope.name if budget.scope.kind is ScopeKind.PROJECT else budget.notified_project


def _body(row: Row[Any], budget: Budget, level: Reached) -> str:
    """The message: enough to know whether to look."""
    spent, reserved = Amounts(row.spent_micros, row.spent_ms), Amounts(row.reserved_micros, row.reserved_ms)
    return json.dumps(
        {
            "type": "budget.soft_limit_reached" if level.level == LEVEL_SOFT else "budget.level_reached",
            "timestamp": row.now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": {
                "scope_kind": str(budget.scope.kind),
                "scope": budget.scope.name,
                "period": row.period,
                "period_start": row.period_start.isoformat().replace("+00:00", "Z"),
                "period_end": row.period_end.isoformat().replace("+00:00", "Z"),
                "book": str(level.book),
                "level_percent": None if level.level == LEVEL_SOFT else int(level.level),
                "spent": spent.of(level.book),
                "reserved": reserved.of(level.book),
                "hard_limit": level.hard_limit,
                "at_hard_limit": str(budget.at_hard_limit),
            },
        }
    )


def _committed(row: Row[Any]) -> Amounts:
    return Amounts(row.spent_micros + row.reserved_micros, row.spent_ms + row.reserved_ms)
