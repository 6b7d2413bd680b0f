"""When tokens were last used, to the minute, written behind the calls' backs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from sqlalchemy import func, or_, update
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.tables import tokens

_log = structlog.get_logger()

_EVERY_SECONDS = 60.0


class TokenUse:
    """Notes the tokens used, and writes them down once a minute and at the end."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._used: set[str] = set()
        self._writing: asyncio.Task[None] | None = None

    def note(self, token_id: str) -> None:
        """A valid token was used. Only ids of tokens that exist come here, so the set is no larger than their number."""
        self._used.add(token_id)

    def start(self) -> None:
        """Begins to write."""
        self._writing = asyncio.create_task(self._run(), name="use of tokens")

    async def stop(self) -> None:
        """Writes what is left, and ends."""
        if self._writing is not None:
            self._writing.cancel()
            with suppress(asyncio.CancelledError):
                await self._writing
        await self._write()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self._write()

    async def _write(self) -> None:
        used, self._used = self._used, set()
        if not used:
            return
        # Replicas see the same tokens: whoever is second within the minute changes nothing.
        older = or_(tokens.c.last_used_at.is_(None), tokens.c.last_used_at < func.date_trunc("minute", func.now()))
        change = (
            update(tokens).where(tokens.c.token_id.in_(used), older).values(last_used_at=func.date_trunc("minute", func.now()))
        )
        try:
            async with self._engine.begin() as connection:
                await connection.execute(change)
        except Exception as error:  # It is a convenience: no call may suffer from it, and the next minute tries again.
            _log.warning("identity.use_not_recorded", tokens=len(used), error=str(error))
            self._used |= used
