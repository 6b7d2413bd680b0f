"""The way into the audit log for what has no transaction of its own: refusals, and what is counted rather than told one by one.

Records are written in groups, so that many callers share one commit. Whoever is refused waits for it, and so cannot act faster
than the log. Strangers do not wait, and their calls are counted together: an attacker must not buy a commit per call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.audit.record import Entry
from control_plane.audit.writer import insert_entries
from control_plane.db.engine import in_transaction

_log = structlog.get_logger()

_GROUP_MAX = 500
_WAITING_MAX = 10_000
_KINDS_MAX = 1_000
_WAIT_SECONDS = 5.0
_RETRY_SECONDS = 1.0


class AuditTrail:
    """Writes records in the background."""

    def __init__(self, engine: AsyncEngine, *, window_seconds: float = 10.0, group_seconds: float = 0.01) -> None:
        """Args:
        engine: the database.
        window_seconds: like calls within this time are counted in one record.
        group_seconds: how long the first of a group waits for others; far below what a caller would notice.
        """
        self._engine = engine
        self._window_seconds = window_seconds
        self._group_seconds = group_seconds
        self._waiting: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        self._counted: dict[Entry, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins."""
        self._tasks = [
            asyncio.create_task(self._write_groups(), name="audit-records"),
            asyncio.create_task(self._write_counts(), name="audit-counts"),
        ]

    async def stop(self) -> None:
        """Writes what waits, and ends."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        while self._waiting and await self._write_group():
            pass
        await self.flush()

    async def record(self, entry: Entry) -> None:
        """Writes a record and returns when it is committed.

        A refusal stays one when the database does not answer: this returns after some seconds, and the process's log tells.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            if len(self._waiting) >= _WAITING_MAX:
                raise TimeoutError
            self._waiting.append((entry, written))
            self._wake.set()
            async with asyncio.timeout(_WAIT_SECONDS):
                await written
        except TimeoutError:
            _log.error("audit.late_or_lost", principal=entry.principal, method=entry.method, reason=entry.reason)

    def count(self, entry: Entry) -> None:
        """Adds a call to the like ones of this window."""
        # What varies from call to call is not told apart; callers are, unless they are too many.
        entry = replace(entry, object="", request_id="", trace_id="")
        if entry not in self._counted and len(self._counted) >= _KINDS_MAX:
            entry = replace(entry, principal="", project="", peer="")
        self._counted[entry] = self._counted.get(entry, 0) + entry.count

    async def flush(self) -> None:
        """Writes what was counted so far; what cannot be written is counted on."""
        counted, self._counted = self._counted, {}
        if counted and not await self._insert([replace(entry, count=number) for entry, number in counted.items()]):
            for entry, number in counted.items():
                self._counted[entry] = self._counted.get(entry, 0) + number

    async def _write_groups(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._group_seconds)
            while self._waiting:
                if not await self._write_group():
                    await asyncio.sleep(_RETRY_SECONDS)
            self._wake.clear()

    async def _write_group(self) -> bool:
        """Writes the oldest that wait; says whether it could."""
        group = list(islice(self._waiting, _GROUP_MAX))
        if not await self._insert([entry for entry, _ in group]):
            return False
        for _, written in group:
            self._waiting.popleft()
            # Whoever gave up waiting was told so.
            if not written.done():
                written.set_result(None)
        return True

    async def _write_counts(self) -> None:
        while True:
            await asyncio.sleep(self._window_seconds)
            await self.flush()

    async def _insert(self, entries: Sequence[Entry]) -> bool:
        try:
            await in_transaction(self._engine, lambda connection: insert_entries(connection, entries))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("audit.unavailable", error=str(error))
            return False
        return True
