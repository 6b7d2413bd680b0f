"""A mutation that can be asked for twice and happens once.

The request id, a hash of the request's content and the response stand in one row, written in the transaction of the
effect. Kept for 30 days (`purge_idempotency_keys`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import idempotency_keys
from control_plane.errors import Reason, RefusedError

RETENTION = timedelta(days=30)
PRIMARY_KEY = "pk_idempotency_keys"
"""Name of the constraint that a second row for one request breaks."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a repeat is recognised by: who asks, where, with which id; and what was asked, which must be the same."""

    project: str
    principal: str
    request_id: str
    method: str
    sha256: str

    def require_same(self, method: str, sha256: str) -> None:
        """Holds this request against the one that used its id first.

        Raises:
            RefusedError: it was another request.
        """
        if method != self.method or sha256 != self.sha256:
            raise RefusedError(
                Reason.REQUEST_ID_REUSED,
                f"request id {self.request_id} was used before, by {method} with another body; send a new request id with a new"
                " request",
                {"request_id": self.request_id, "method": method},
            )


async def find_response(connection: AsyncConnection, key: RequestKey) -> bytes | None:
    """The response stored for this request, or None if it is new.

    Raises:
        RefusedError: the id was used for another request.
    """
    keys = idempotency_keys.c
    row = (
        await connection.execute(
            select(keys.method, keys.request_sha256, keys.response).where(
                keys.project == key.project, keys.principal == key.principal, keys.request_id == key.request_id
            )
        )
    ).one_or_none()
    if row is None:
        return None
    key.require_same(row.method, row.request_sha256)
    return bytes(row.response)


async def store_response(connection: AsyncConnection, key: RequestKey, response: bytes) -> None:
    """Keeps the response of a request that is new; the caller holds the lock on its id."""
    await connection.execute(
        insert(idempotency_keys).values(
            project=key.project,
            principal=key.principal,
            request_id=key.request_id,
            method=key.method,
            request_sha256=key.sha256,
            response=response,
        )
    )


async def purge_idempotency_keys(connection: AsyncConnection) -> int:
    """Forgets requests older than the retention; returns how many."""
    result = await connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < func.now() - RETENTION))
    return result.rowcount
