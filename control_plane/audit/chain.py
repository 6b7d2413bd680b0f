"""Linking the chain: each new record gets the next position and a hash over everything before it.

Records are linked in the order they were inserted, in batches, by one replica at a time, each once its transaction has
committed; one that commits late is linked late, and the chain has no hole.
"""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, LargeBinary, bindparam, select, text
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.audit.record import GENESIS, chained
from control_plane.db.tables import audit_links, audit_records

BATCH = 1_000
"""Records that are linked in one transaction."""

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('audit chain', 0))")
_LINK = text(
    """
    UPDATE audit_links SET position = link.position, hash = link.hash
    FROM unnest(:records, :positions, :hashes) AS link (record_id, position, hash)
    WHERE audit_links.record_id = link.record_id
    """
).bindparams(
    bindparam("records", type_=ARRAY(UUID(as_uuid=False))),
    bindparam("positions", type_=ARRAY(BigInteger)),
    bindparam("hashes", type_=ARRAY(LargeBinary)),
)


async def head(connection: AsyncConnection) -> tuple[int, bytes]:
    """The newest link: how many records are linked, and the chain's hash up to there."""
    query = select(audit_links.c.position, audit_links.c.hash).where(audit_links.c.position.is_not(None))
    row = (await connection.execute(query.order_by(audit_links.c.position.desc()).limit(1))).first()
    return (0, GENESIS) if row is None else (row.position, bytes(row.hash))


async def link(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Links at most `limit` records that wait; returns how many."""
    # The lock is a statement of its own, so that the next one's snapshot is taken after it is held.
    await connection.execute(_LOCK)
    waiting = (
        await connection.execute(
            select(audit_records.c.record_id, audit_records.c.leaf)
            .join(audit_links, audit_links.c.record_id == audit_records.c.record_id)
            .where(audit_links.c.position.is_(None))
            .order_by(audit_records.c.inserted)
            .limit(limit)
        )
    ).all()
    if not waiting:
        return 0
    position, previous = await head(connection)
    hashes: list[bytes] = []
    for row in waiting:
        previous = chained(previous, bytes(row.leaf))
        hashes.append(previous)
    await connection.execute(
        _LINK,
        {
            "records": [row.record_id for row in waiting],
            "positions": list(range(position + 1, position + 1 + len(waiting))),
            "hashes": hashes,
        },
    )
    return len(waiting)
