"""Connections to PostgreSQL: the pool, and transactions that are run again when the database asks for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic_core import from_json
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from control_plane.settings import PostgresSettings

_T = TypeVar("_T")

# serialization_failure, deadlock_detected, lock_not_available: the transaction changed nothing and may be run again.
_RETRYABLE_SQLSTATES = frozenset({"40001", "40P01", "55P03"})
_TRIES = 5


def create_engine(settings: PostgresSettings) -> AsyncEngine:
    """The process's connection pool."""
    return create_async_engine(
        asyncpg_url(settings.dsn.get_secret_value()),
        pool_size=settings.pool_size,
        max_overflow=0,
        # What a statement carried may be a secret, and the texts of errors go into logs.
        hide_parameters=True,
        # A pooled connection may have died with the server it belonged to; a ping is cheaper than a failed call.
        pool_pre_ping=True,
        # Pydantic's parser: specs are read by the page, and Python's own takes four times as long.
        json_deserializer=from_json,
        connect_args={
            "timeout": 10,
            "command_timeout": 60,
            # A holder of a lock that is stuck must not make callers wait for ever.
            # Compiling a statement takes longer than any of ours runs.
            "server_settings": {"lock_timeout": "10000", "idle_in_transaction_session_timeout": "60000", "jit": "off"},
        },
    )


def asyncpg_url(dsn: str) -> str:
    """The SQLAlchemy URL of a libpq-style one."""
    return "postgresql+asyncpg://" + dsn.split("://", 1)[1]


def sqlstate(error: DBAPIError) -> str:
    """The five characters with which PostgreSQL named the error; empty if it named none."""
    return str(getattr(error.orig, "sqlstate", "") or "")


async def in_transaction(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
    """Runs `work` in one transaction and commits it; a deadlock or lock time-out runs the whole of it again, 5 times at most.

    `work` must have no effect outside the connection it is given.

    Raises:
        DBAPIError: the database refused for another reason, or too often.
    """
    for remaining in range(_TRIES - 1, -1, -1):
        try:
            async with engine.begin() as connection:
                return await work(connection)
        except DBAPIError as error:
            if remaining == 0 or sqlstate(error) not in _RETRYABLE_SQLSTATES:
                raise
            await asyncio.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - jitter, not a secret
    raise AssertionError("unreachable: the last try returns or raises")
