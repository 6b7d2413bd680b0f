"""Runs a step again and again: when woken, when its time has come, and after servers that were away are back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from temporalio.service import RPCError

_log = structlog.get_logger()

# What calls to Temporal raise while it is away; RuntimeError is the client's word for a first connection that failed.
TEMPORAL_ERRORS = (RPCError, RuntimeError, OSError, TimeoutError)
# A database that restarts shows as any of these, depending on how far the call had come.
DATABASE_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
SERVER_ERRORS = (*DATABASE_ERRORS, *TEMPORAL_ERRORS)

_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)


async def repeat(
    name: str, step: Callable[[], Awaitable[float]], wake: asyncio.Event, *, coalesce_seconds: float = 0.0
) -> None:
    """Calls `step` for ever.

    Args:
        name: of the step, for the log.
        step: does some work and returns after how many seconds it is to be called again; 0 means at once.
        wake: calls the step earlier.
        coalesce_seconds: how long to let wake-ups gather, so that they share one call.
    """
    failures = 0
    while True:
        # Cleared before the step looks: what happens while it runs wakes it again.
        wake.clear()
        try:
            pause = await step()
            failures = 0
        except SERVER_ERRORS as error:
            failures += 1
            pause = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1]
            _log.warning(f"{name}.failed", error=repr(error), failures=failures, retry_seconds=pause)
            await asyncio.sleep(pause)
            continue
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await wake.wait()
                await asyncio.sleep(coalesce_seconds)
