"""How every mutating call changes the database: once per request id, and on record.

One transaction holds the effect, the idempotency row and the audit record, so that none is ever without the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.audit import writer
from control_plane.call import Call, current_call
from control_plane.db import idempotency
from control_plane.db.engine import in_transaction
from control_plane.db.idempotency import PRIMARY_KEY, RequestKey

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)

# Callers with one request id go one after the other: the second finds the first one's response.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")


async def audited(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
    """Runs `work` and writes the call's audit record in one transaction: for calls that are idempotent by what they say.

    Raises:
        RefusedError: `work` refused; nothing is changed.
    """
    call = current_call()

    async def transaction(connection: AsyncConnection) -> _T:
        result = await work(connection)
        await writer.append(connection, call)
        return result

    return await in_transaction(engine, transaction)


async def once(
    engine: AsyncEngine,
    project: str,
    request_id: str,
    sha256: str,
    response_type: type[_M],
    work: Callable[[AsyncConnection], Awaitable[_M]],
    *,
    stored: Callable[[_M], _M] = lambda response: response,
) -> _M:
    """Runs `work` once per principal, project and request id, with its audit record; a repeat gets the first response.

    Args:
        engine: the database.
        project: whose effect it is; empty: the organisation's.
        request_id: a UUID in canonical form.
        sha256: identifies the request's content, in hex.
        response_type: what `work` returns.
        work: the effect. It may run several times, but only one of them is committed.
        stored: what of the response is kept for repeats; a secret shown once is not.

    Raises:
        RefusedError: `work` refused, or the request id was used for another request; nothing is changed.
    """
    call = current_call()
    call.request_id = request_id
    call.project = call.project or project
    key = request_key(call, project, request_id, sha256)

    async def transaction(connection: AsyncConnection) -> _M:
        await connection.execute(_LOCK, {"key": f"{project}/{key.principal}/{request_id}"})
        earlier = await idempotency.find_response(connection, key)
        if earlier is not None:
            return response_type.FromString(earlier)
        response = await work(connection)
        await idempotency.store_response(connection, key, stored(response).SerializeToString())
        await writer.append(connection, call)
        return response

    try:
        return await in_transaction(engine, transaction)
    except IntegrityError as error:
        # The group writer takes no lock on ids: it committed this one between our look and our insert, and now it is found.
        if PRIMARY_KEY not in str(error.orig):
            raise
        return await in_transaction(engine, transaction)


def request_key(call: Call, project: str, request_id: str, sha256: str) -> RequestKey:
    """What a repeat of this call is recognised by."""
    return RequestKey(project, call.principal.subject, request_id, call.method.rpartition("/")[2], sha256)
