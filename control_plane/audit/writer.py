"""Writing audit records in the transaction of what they tell of: no record, no effect.

A record's place in the chain is found afterwards (`audit/chain.py`), so that no transaction waits for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.audit.record import AuditRecord, Entry
from control_plane.call import Call
from control_plane.db.tables import audit_records


async def append(connection: AsyncConnection, call: Call, *, code: str = "OK", reason: str = "") -> None:
    """Writes the record of a call.

    Args:
        connection: a connection in a transaction.
        call: the call, with project and object filled in.
        code: name of the gRPC status code it ends with.
        reason: why it was refused, if it was.
    """
    await insert_entries(connection, [entry_of(call, code, reason)])
    call.audited = True


async def insert_entries(connection: AsyncConnection, entries: Sequence[Entry]) -> None:
    """Writes records of what happens in this transaction, by the database's clock."""
    now = (await connection.execute(select(func.now()))).scalar_one()
    await connection.execute(insert(audit_records), [row_of(entry.at(now)) for entry in entries])


def entry_of(call: Call, code: str, reason: str) -> Entry:
    """What a record of a call tells."""
    return Entry(
        principal=call.principal.subject,
        method=call.method,
        project=call.project,
        object=call.object,
        code=code,
        reason=reason,
        request_id=call.request_id,
        trace_id=call.trace_id,
        peer=call.peer,
    )


def row_of(record: AuditRecord) -> dict[str, Any]:
    """A record as a row of `audit_records`."""
    return {name: getattr(record, name) for name in AuditRecord.__slots__} | {"leaf": record.leaf()}
