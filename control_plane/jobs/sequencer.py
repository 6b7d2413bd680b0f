"""The background task that gives committed events their positions, and forgets old request ids.

Any replica may run one: the lock on the log's head row lets one assign at a time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.db.events import assign_positions
from control_plane.db.idempotency import purge_idempotency_keys
from control_plane.db.notifications import Notifications, wait_for
from control_plane.db.tables import CHANNEL_EVENTS_WRITTEN

_log = structlog.get_logger()

_POLL_SECONDS = 1.0
_PURGE_SECONDS = 3_600.0


class Sequencer:
    """Assigns positions whenever events were written, and once a second should a wake-up be lost."""

    def __init__(self, engine: AsyncEngine, notifications: Notifications) -> None:
        self._engine = engine
        self._notifications = notifications
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="sequencer")

    async def stop(self) -> None:
        """Ends; what has no position yet gets one from the next that starts."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        purge_at = time.monotonic()
        with self._notifications.subscribed(CHANNEL_EVENTS_WRITTEN) as written:
            while True:
                try:
                    while await in_transaction(self._engine, assign_positions):
                        pass
                    if time.monotonic() >= purge_at:
                        await in_transaction(self._engine, purge_idempotency_keys)
                        purge_at = time.monotonic() + _PURGE_SECONDS
                except (SQLAlchemyError, OSError, TimeoutError) as error:
                    # The log stands still and is complete again once the database answers.
                    _log.warning("sequencer.unavailable", error=str(error))
                await wait_for(written, _POLL_SECONDS)
