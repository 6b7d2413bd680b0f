"""How a reservation is closed: what was used is charged, the rest returned, once.

`settle_many` belongs into the transaction that ends the lease, after its job's and its own row are locked. One statement
charges, returns and writes it down, under the locks of the ledgers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.ledgers import lock
from governance.values import Amounts

# Charges are `governance.costs.charge`: whole numbers, divided downwards. A lease that was held for longer than it had reserved
# is charged in full where every budget has room for what is beyond, as it was before this statement; else it is capped at what
# it had reserved. A ledger whose limit was lowered gives back what it has and the limit does not cover
# (`governance.budgets.funded`). A lease that had nothing to reserve has no ledger here.
# Windows, not joins: nothing is known here of how many rows there are.
_SETTLE = text(
    """
    WITH ended AS (
        SELECT given.ordinal, given.used_ms, reservations.lease_id, held_ms, entries.ledger_id,
            reservations.micros AS reserved_micros, reservations.accelerator_ms AS reserved_ms,
            CAST(div(CAST(given.used_ms AS numeric) * micros_per_hour, 3600000) AS bigint) AS full_micros,
            CAST(div(CAST(least(given.used_ms, held_ms) AS numeric) * micros_per_hour, 3600000) AS bigint) AS capped_micros,
            CASE WHEN reservations.accelerator_ms = 0 THEN 0 ELSE 1 END AS counted
        FROM unnest(CAST(:lease_ids AS uuid[]), CAST(:used_ms AS bigint[])) WITH ORDINALITY
            AS given (lease_id, used_ms, ordinal)
        JOIN reservations USING (lease_id)
        LEFT JOIN ledger_entries AS entries
            ON entries.reference = reservations.lease_id AND entries.kind = 'RESERVE' AND entries.account = 'RESERVED'
        WHERE NOT EXISTS (SELECT 1 FROM settlements WHERE settlements.lease_id = reservations.lease_id)
    ), in_turn AS (
        SELECT ended.*,
            (
                limit_micros IS NULL
                OR sum(CASE WHEN used_ms > held_ms THEN full_micros - ended.reserved_micros ELSE 0 END) OVER so_far
                    <= budget_micros
            ) AND (
                limit_ms IS NULL OR sum(greatest(0, used_ms - held_ms) * counted) OVER so_far <= budget_ms
            ) AS fits
        FROM ended LEFT JOIN ledgers USING (ledger_id) WINDOW so_far AS (PARTITION BY ledger_id ORDER BY ordinal)
    ), judged AS (
        SELECT *, used_ms > held_ms AND NOT bool_and(fits) OVER (PARTITION BY ordinal) AS capped FROM in_turn
    ), charged AS MATERIALIZED (
        SELECT ordinal, lease_id, ledger_id, used_ms, CASE WHEN used_ms = 0 THEN 'RELEASE' ELSE 'SETTLE' END AS kind,
            reserved_micros, reserved_ms, CASE WHEN capped THEN used_ms - held_ms ELSE 0 END AS uncharged_ms,
            CASE WHEN capped THEN capped_micros ELSE full_micros END AS spent_micros,
            CASE WHEN capped THEN held_ms ELSE used_ms END * counted AS spent_ms
        FROM judged
    ), settled AS (
        INSERT INTO settlements (lease_id, used_ms, uncharged_ms, micros, accelerator_ms)
        SELECT DISTINCT ON (ordinal) lease_id, used_ms, uncharged_ms, spent_micros, spent_ms FROM charged ORDER BY ordinal
    ), sunk AS MATERIALIZED (
        SELECT moved.*, gen_random_uuid() AS reference,
            CASE WHEN limit_micros IS NULL THEN 0 ELSE
                greatest(0, least(-external_micros - limit_micros, budget_micros + returned_micros - charged_micros))
            END AS back_micros,
            CASE WHEN limit_ms IS NULL THEN 0 ELSE
                greatest(0, least(-external_ms - limit_ms, budget_ms + returned_ms - charged_ms))
            END AS back_ms
        FROM (
            SELECT ledger_id,
                CAST(sum(reserved_micros) AS bigint) AS returned_micros, CAST(sum(spent_micros) AS bigint) AS charged_micros,
                CAST(sum(reserved_ms) AS bigint) AS returned_ms, CAST(sum(spent_ms) AS bigint) AS charged_ms
            FROM charged GROUP BY ledger_id
        ) AS moved JOIN ledgers USING (ledger_id)
    ), entered AS (
        INSERT INTO ledger_entries (kind, reference, ledger_id, account, micros, accelerator_ms)
        SELECT kind, reference, ledger_id, account, micros, ms FROM (
            SELECT ordinal, kind, lease_id AS reference, ledger_id, side.* FROM charged CROSS JOIN LATERAL (
                VALUES (1, 'RESERVED', -reserved_micros, -reserved_ms), (2, 'SPENT', spent_micros, spent_ms),
                    (3, 'BUDGET', reserved_micros - spent_micros, reserved_ms - spent_ms)
            ) AS side (place, account, micros, ms)
            WHERE ledger_id IS NOT NULL
            UNION ALL
            SELECT 9223372036854775807, 'FUND', reference, ledger_id, side.* FROM sunk CROSS JOIN LATERAL (
                VALUES (1, 'BUDGET', -back_micros, -back_ms), (2, 'EXTERNAL', back_micros, back_ms)
            ) AS side (place, account, micros, ms)
        ) AS lines WHERE micros <> 0 OR ms <> 0
        ORDER BY ordinal, ledger_id, place
    ), balanced AS (
        UPDATE ledgers
        SET external_micros = external_micros + back_micros, external_ms = external_ms + back_ms,
            reserved_micros = reserved_micros - returned_micros, reserved_ms = reserved_ms - returned_ms,
            spent_micros = spent_micros + charged_micros, spent_ms = spent_ms + charged_ms,
            budget_micros = budget_micros + returned_micros - charged_micros - back_micros,
            budget_ms = budget_ms + returned_ms - charged_ms - back_ms
        FROM sunk WHERE ledgers.ledger_id = sunk.ledger_id
    )
    SELECT DISTINCT ON (ordinal) CAST(lease_id AS text) AS lease_id, spent_micros, spent_ms, uncharged_ms
    FROM charged ORDER BY ordinal
    """
)


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """A lease that ended."""

    lease_id: str
    used_ms: int
    """Accelerators times milliseconds held, of whatever kind: `leases.accelerator_ms`."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What a lease was charged in the end."""

    lease_id: str
    charged: Amounts
    uncharged_ms: int
    """Of what it used, accelerator-milliseconds that were beyond its reservation and found no room in a budget."""


async def settle_many(connection: AsyncConnection, uses: Sequence[LeaseUse]) -> list[Charge]:
    """Closes the reservations of leases that ended: charges what was used and returns the rest.

    A lease that has no reservation, or whose reservation is closed, is left out; so a repeat changes nothing.

    Args:
        connection: in the transaction that ends the leases, at READ COMMITTED. If it reserves too, or settles more than once,
            it calls `ledgers.hold` first.
        uses: each lease once.

    Returns:
        What each was charged, in the order given.
    """
    if not uses:
        return []
    lease_ids = [use.lease_id for use in uses]
    await lock(connection, lease_ids=lease_ids)
    values = {"lease_ids": lease_ids, "used_ms": [use.used_ms for use in uses]}
    rows = (await connection.execute(_SETTLE, values)).all()
    return [Charge(row.lease_id, Amounts(row.spent_micros, row.spent_ms), row.uncharged_ms) for row in rows]
