"""The background task that sends notifications, tries again with growing pauses, and gives up in the end.

At least once: a message whose answer is lost, or whose deliverer dies, is sent again with the same `webhook-id`. Any number of
replicas may run one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress

import aiohttp
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.db.notifications import Notifications, wait_for
from control_plane.db.tables import CHANNEL_WEBHOOKS
from control_plane.errors import RefusedError
from control_plane.settings import WebhookSettings
from control_plane.webhooks import outbox
from control_plane.webhooks.endpoints import CheckedResolver, ForbiddenAddressError, endpoint, is_public
from control_plane.webhooks.outbox import Delivery
from control_plane.webhooks.signing import Signer

_AT_ONCE = 64
_AT_ONCE_EACH = 4
_TRY_SECONDS = 15.0
_CLAIM_SECONDS = 60.0
_POLL_SECONDS = 5.0
_PURGE_SECONDS = 3_600.0
_RESULT_MAX = 200
_PAUSE_SECONDS, _PAUSE_FACTOR, _PAUSE_SECONDS_MAX = 5.0, 4.0, 6 * 3_600.0
# The answer's status is all that counts; nothing of its body is read.
_HEAD_BYTES_MAX = 8_190

_log = structlog.get_logger()


def pause_seconds(tries: int) -> float:
    """How long to wait after so many tries, without jitter: 5 s, 20 s, 80 s, … up to 6 hours."""
    return min(_PAUSE_SECONDS * _PAUSE_FACTOR ** min(tries - 1, 16), _PAUSE_SECONDS_MAX)


class Deliverer:
    """Sends between `start` and `stop`."""

    def __init__(
        self,
        engine: AsyncEngine,
        notifications: Notifications,
        settings: WebhookSettings,
        signer: Signer,
        *,
        pause_unit: float = 1.0,
    ) -> None:
        """Args:
        engine: the database.
        notifications: tells of new messages.
        settings: where they may go, and how often they are tried.
        signer: signs them.
        pause_unit: what the pauses between tries are multiplied by.
        """
        self._engine = engine
        self._notifications = notifications
        self._settings = settings
        self._signer = signer
        self._pause_unit = pause_unit
        self._private = {name.lower() for name in settings.private_hosts}
        self._sending: dict[asyncio.Task[None], str] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """Ends; what is under way is tried again by the next that starts."""
        running = [*self._sending, *([self._task] if self._task is not None else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self) -> None:
        purge_at = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=_TRY_SECONDS)
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._settings), limit=_AT_ONCE, use_dns_cache=False)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=_HEAD_BYTES_MAX,
            max_field_size=_HEAD_BYTES_MAX,
        ) as session:
            with self._notifications.subscribed(CHANNEL_WEBHOOKS) as due:
                while True:
                    pause = _POLL_SECONDS
                    try:
                        await self._claim(session, due)
                        async with self._engine.connect() as connection:
                            soonest = await outbox.next_due_seconds(connection)
                        # What is due and not claimed waits for a place, and is claimed when one becomes free.
                        pause = min(_POLL_SECONDS, max(0.05, soonest)) if soonest is not None and soonest > 0 else _POLL_SECONDS
                        if time.monotonic() >= purge_at:
                            await in_transaction(self._engine, outbox.purge)
                            purge_at = time.monotonic() + _PURGE_SECONDS
                    except (SQLAlchemyError, OSError, TimeoutError) as error:
                        _log.warning("webhooks.unavailable", error=str(error))
                    await wait_for(due, pause)

    async def _claim(self, session: aiohttp.ClientSession, due: asyncio.Event) -> None:
        """Takes what is due as long as there is a place for it, and begins to send it."""
        while (free := _AT_ONCE - len(self._sending)) > 0:
            under_way = Counter(self._sending.values())
            busy = [webhook for webhook, count in under_way.items() if count >= _AT_ONCE_EACH]

            async def take(connection: AsyncConnection, most: int = free, busy: list[str] = busy) -> list[Delivery]:
                return await outbox.claim(connection, most=most, each=_AT_ONCE_EACH, busy=busy, claim_seconds=_CLAIM_SECONDS)

            claimed = await in_transaction(self._engine, take)
            if not claimed:
                return
            for delivery in claimed:
                task = asyncio.create_task(self._deliver(session, delivery))
                self._sending[task] = delivery.webhook_id
                task.add_done_callback(lambda done: (self._sending.pop(done, None), due.set()))

    async def _deliver(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        """One try, and what came of it on record."""
        delivered, result = await self._try(session, delivery)
        if delivered:
            state, retry_seconds = "DELIVERED", None
        elif delivery.tries >= self._settings.tries_max:
            state, retry_seconds = "FAILED", None
        else:
            # Jitter spreads what failed together; it protects nothing.
            jitter = random.uniform(0.8, 1.2)  # noqa: S311  see above
            state, retry_seconds = "PENDING", pause_seconds(delivery.tries) * jitter * self._pause_unit

        async def write(connection: AsyncConnection) -> None:
            await outbox.record(connection, delivery.delivery_id, state, result[:_RESULT_MAX], retry_seconds)

        try:
            await in_transaction(self._engine, write)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            # Its claim ends by itself, and it is sent once more.
            _log.warning("webhooks.not_recorded", delivery_id=delivery.delivery_id, error=str(error))

    async def _try(self, session: aiohttp.ClientSession, delivery: Delivery) -> tuple[bool, str]:
        """Whether the endpoint took the message, and what it answered."""
        try:
            # Looked at again: what is allowed may have changed since the endpoint was added.
            found = endpoint(delivery.url, self._settings, "url")
            self._refuse_literal(found.host)
            headers = self._signer.headers(delivery.webhook_id, delivery.delivery_id, delivery.body, int(time.time()))
            headers |= {"content-type": "application/json", "user-agent": "Headway-Webhooks/1"}
            async with session.post(
                delivery.url, data=delivery.body.encode(), headers=headers, allow_redirects=False
            ) as response:
                response.close()
                return 200 <= response.status < 300, str(response.status)
        except RefusedError as error:
            return False, error.message
        except TimeoutError:
            return False, f"no answer within {_TRY_SECONDS:.0f} s"
        except aiohttp.ClientConnectorError as error:
            return False, f"no connection: {error.os_error}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return False, str(error) or type(error).__name__

    def _refuse_literal(self, host: str) -> None:
        """What is an address already, no resolver is asked for."""
        if host in self._private:
            return
        with suppress(ValueError):
            if not is_public(host):
                raise ForbiddenAddressError(host)
