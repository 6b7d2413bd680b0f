"""The background tasks that give committed events their positions, link the audit log's chain, and forget old request ids.

Any replica may run one: the lock on the log's head row lets one assign at a time, and so does that on the chain.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.audit import chain
from control_plane.db.engine import in_transaction
from control_plane.db.events import POSITIONS_PER_ROUND, assign_positions
from control_plane.db.idempotency import purge_idempotency_keys
from control_plane.db.notifications import Notifications, wait_for
from control_plane.db.tables import CHANNEL_EVENTS_WRITTEN

_log = structlog.get_logger()

_POLL_SECONDS = 1.0
_PURGE_SECONDS = 3_600.0
# Rounds begin at least this far apart: under load one serves many commits, and watchers notice nothing of it.
_ROUND_SECONDS = 0.02


class Sequencer:
    """Assigns positions whenever events were written, and once a second should a wake-up be lost."""

    def __init__(self, engine: AsyncEngine, notifications: Notifications) -> None:
        self._engine = engine
        self._notifications = notifications
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins."""
        self._tasks = [
            asyncio.create_task(self._run(), name="sequencer"),
            asyncio.create_task(self._link(), name="audit-chain"),
        ]

    async def stop(self) -> None:
        """Ends; what has no position yet gets one from the next that starts."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        purge_at = time.monotonic()
        with self._notifications.subscribed(CHANNEL_EVENTS_WRITTEN) as written:
            while True:
                began = time.monotonic()
                try:
                    while await in_transaction(self._engine, assign_positions) == POSITIONS_PER_ROUND:
                        pass
                    if time.monotonic() >= purge_at:
                        await in_transaction(self._engine, purge_idempotency_keys)
                        purge_at = time.monotonic() + _PURGE_SECONDS
                except (SQLAlchemyError, OSError, TimeoutError) as error:
                    # The log stands still and is complete again once the database answers.
                    _log.warning("sequencer.unavailable", error=str(error))
                await wait_for(written, _POLL_SECONDS)
                await asyncio.sleep(began + _ROUND_SECONDS - time.monotonic())

    async def _link(self) -> None:
        """Apart from events, whose watchers wait; nobody waits for a link."""
        while True:
            try:
                while await in_transaction(self._engine, chain.link) == chain.BATCH:
                    pass
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                _log.warning("sequencer.unavailable", error=str(error))
            await asyncio.sleep(_POLL_SECONDS)
