"""Verifies the ledger from its entries: nothing of what is cached is believed."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from governance.ledger import Account, Entry, EntryKind
from governance.ledger_check import LedgerCheck, Limited
from governance.values import Amounts, Book

_ENTRIES = text(
    """
    SELECT entry_id, kind, CAST(reference AS text), ledger_id, account, micros, accelerator_ms
    FROM ledger_entries ORDER BY entry_id
    """
)
_LEDGERS = text("SELECT * FROM ledgers ORDER BY ledger_id")
_OPEN = text(
    """
    SELECT CAST(lease_id AS text) FROM reservations
    WHERE NOT EXISTS (SELECT 1 FROM settlements WHERE settlements.lease_id = reservations.lease_id)
        AND (micros <> 0 OR accelerator_ms <> 0)
    """
)
# What the rows about leases say, against the entries; every ledger that a lease is charged to has the same amounts.
_DIFFERING = text(
    """
    SELECT 'reservation ' || lease_id || ' is not what its entries say' FROM reservations
    WHERE (micros <> 0 OR accelerator_ms <> 0) AND NOT EXISTS (
        SELECT 1 FROM ledger_entries WHERE reference = lease_id AND kind = 'RESERVE' AND account = 'RESERVED'
        HAVING count(*) > 0 AND bool_and(
            ledger_entries.micros = reservations.micros AND ledger_entries.accelerator_ms = reservations.accelerator_ms
        )
    )
    UNION ALL
    SELECT 'settlement ' || settlements.lease_id || ' is not what its entries say'
    FROM settlements JOIN reservations USING (lease_id)
    WHERE EXISTS (
        SELECT ledger_id FROM ledger_entries AS entries
        WHERE reference = settlements.lease_id AND kind IN ('RESERVE','SETTLE','RELEASE')
        GROUP BY ledger_id
        HAVING coalesce(sum(entries.micros) FILTER (WHERE account = 'SPENT'), 0) <> settlements.micros
            OR coalesce(sum(entries.accelerator_ms) FILTER (WHERE account = 'SPENT'), 0) <> settlements.accelerator_ms
            OR coalesce(sum(entries.micros) FILTER (WHERE account = 'RESERVED'), 0) <> 0
            OR coalesce(sum(entries.accelerator_ms) FILTER (WHERE account = 'RESERVED'), 0) <> 0
    )
    UNION ALL
    SELECT 'lease ' || lease_id || ' has ended, and its reservation is open' FROM reservations JOIN leases USING (lease_id)
    WHERE leases.state = 'ENDED' AND NOT EXISTS (SELECT 1 FROM settlements WHERE settlements.lease_id = reservations.lease_id)
    UNION ALL
    SELECT 'lease ' || lease_id || ' is held, and its reservation is closed' FROM settlements JOIN leases USING (lease_id)
    WHERE leases.state <> 'ENDED'
    LIMIT 100
    """
)
_BATCH = 10_000


async def verify(engine: AsyncEngine) -> list[str]:
    """What is wrong with the ledger, in words; nothing if all of it holds together.

    Recomputed from the entries, in one snapshot: every balance; that each transaction sums to zero; that no prefix overruns a
    limit, as long as it has been there; that each reservation is closed once, when its lease has ended and not before.
    """
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            await connection.execute(text("SET TRANSACTION READ ONLY"))
            return await _verify(connection)


async def _verify(connection: AsyncConnection) -> list[str]:
    ledgers = (await connection.execute(_LEDGERS)).all()
    check = LedgerCheck(
        {
            row.ledger_id: Limited(
                row.limited_after,
                frozenset(
                    book
                    for book, limit in ((Book.MONEY, row.limit_micros), (Book.ACCELERATOR_TIME, row.limit_ms))
                    if limit is not None
                ),
            )
            for row in ledgers
            if row.limited_after is not None
        }
    )
    async with connection.stream(_ENTRIES, execution_options={"yield_per": _BATCH}) as entries:
        async for entry_id, kind, reference, ledger_id, account, micros, accelerator_ms in entries:
            amounts = Amounts(micros, accelerator_ms)
            check.take(entry_id, Entry(EntryKind(kind), reference, ledger_id, Account(account), amounts))
    open_by_entries = check.finish()
    problems = check.problems
    for row in ledgers:
        cached = {
            Account.EXTERNAL: Amounts(row.external_micros, row.external_ms),
            Account.BUDGET: Amounts(row.budget_micros, row.budget_ms),
            Account.RESERVED: Amounts(row.reserved_micros, row.reserved_ms),
            Account.SPENT: Amounts(row.spent_micros, row.spent_ms),
        }
        for account, balance in cached.items():
            computed = check.balances.pop((row.ledger_id, account), Amounts())
            if computed != balance:
                problems.append(
                    f"account {account} of ledger {row.ledger_id} is kept as {balance}; its entries make {computed}"
                )
    problems += [
        f"entries name ledger {ledger}, which is not there" for ledger in sorted({ledger for ledger, _ in check.balances})
    ]
    open_by_rows = set((await connection.execute(_OPEN)).scalars())
    problems += [
        f"lease {lease} is open in its rows or its entries, not in both" for lease in sorted(open_by_rows ^ open_by_entries)
    ]
    problems += (await connection.execute(_DIFFERING)).scalars().all()
    return problems
