"""A mutation that can be asked for twice and happens once.

The request id, a hash of the request's content and the response stand in one row, written in the transaction of the
effect. Kept for 30 days (`purge_idempotency_keys`).
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import idempotency_keys
from control_plane.errors import Reason, RefusedError

RETENTION = timedelta(days=30)


async def find_response(connection: AsyncConnection, project: str, request_id: str, method: str, sha256: str) -> bytes | None:
    """The response stored for this request, or None if it is new.

    Raises:
        RefusedError: the id was used for another request.
    """
    keys = idempotency_keys.c
    row = (
        await connection.execute(
            select(keys.method, keys.request_sha256, keys.response).where(
                keys.project == project, keys.request_id == request_id
            )
        )
    ).one_or_none()
    if row is None:
        return None
    if row.method != method or row.request_sha256 != sha256:
        raise RefusedError(
            Reason.REQUEST_ID_REUSED,
            f"request id {request_id} was used before, by {row.method} with another body; send a new request id with a new"
            " request",
            {"request_id": request_id, "method": row.method},
        )
    return bytes(row.response)


async def store_response(
    connection: AsyncConnection, project: str, request_id: str, method: str, sha256: str, response: bytes
) -> bytes | None:
    """Claims the request id for this request; returns None, or the response of whoever claimed it first.

    Of callers at the same time the later wait for the first one's transaction, and then find its row.

    Raises:
        RefusedError: the id was claimed for another request.
    """
    claimed = await connection.execute(
        insert(idempotency_keys)
        .values(project=project, request_id=request_id, method=method, request_sha256=sha256, response=response)
        .on_conflict_do_nothing(index_elements=["project", "request_id"])
    )
    if claimed.rowcount == 1:
        return None
    return await find_response(connection, project, request_id, method, sha256)


async def purge_idempotency_keys(connection: AsyncConnection) -> int:
    """Forgets requests older than the retention; returns how many."""
    result = await connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < func.now() - RETENTION))
    return result.rowcount
