"""One leader at a time, by a row in the database.

The row names the holder, when its term ends by the database's clock, and an epoch that grows with every change of holder.
Three things keep a stale leader from writing:

* it stops trusting itself before the database stops trusting it, counted from before the renewal was sent;
* every transaction that writes decisions begins with `fence`, which locks the row and finds the epoch still its own:
  nobody can take over until that transaction ends, and after a take-over the epoch is another;
* a transaction that stalls (its process is stopped, say) is ended by the database, so that its lock does not outlive
  the term for long.
"""

from __future__ import annotations

import time

import structlog
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler import failpoints
from scheduler.failpoints import Failpoint

_log = structlog.get_logger()

_NAME = "scheduler"
_TRUSTED_SHARE = 0.8
"""Of a term, how much the leader itself relies on."""

_RENEW = text(
    """
    UPDATE leaders SET expires_at = clock_timestamp() + make_interval(secs => :seconds)
    WHERE name = :name AND holder = :holder AND epoch = :epoch AND expires_at > clock_timestamp()
    RETURNING epoch
    """
)
_TAKE_OVER = text(
    """
    INSERT INTO leaders (name, epoch, holder, expires_at)
    VALUES (:name, 1, :holder, clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (name) DO UPDATE
    SET epoch = leaders.epoch + 1, holder = excluded.holder, expires_at = excluded.expires_at
    WHERE leaders.expires_at <= clock_timestamp()
    RETURNING epoch
    """
)
_RESIGN = text("UPDATE leaders SET expires_at = clock_timestamp() WHERE name = :name AND holder = :holder AND epoch = :epoch")
_LOCK = text(
    """
    SELECT epoch FROM leaders
    WHERE name = :name AND holder = :holder AND epoch = :epoch AND expires_at > clock_timestamp()
    FOR UPDATE
    """
)
_END_IF_IDLE = text("SELECT set_config('idle_in_transaction_session_timeout', :milliseconds, true)")


class DeposedError(Exception):
    """This process is not the leader, or not any more; nothing was written."""


class Leadership:
    """This process's claim to be the leader."""

    def __init__(self, engine: AsyncEngine, holder: str, lease_seconds: float) -> None:
        self._engine = engine
        self._holder = holder
        self._seconds = lease_seconds
        self._epoch: int | None = None
        self._trusted_until = 0.0

    @property
    def epoch(self) -> int | None:
        """The epoch while this process may act as leader; None otherwise."""
        return self._epoch if time.monotonic() < self._trusted_until else None

    async def campaign(self) -> bool:
        """Renews the term, or takes over one that has ended; returns whether this process leads. To be called often."""
        started = time.monotonic()
        was = self._epoch
        async with self._engine.begin() as connection:
            epoch = await self._claim(connection, _RENEW) or await self._claim(connection, _TAKE_OVER)
            if epoch not in (None, was):
                failpoints.reach(Failpoint.BEFORE_TAKE_OVER)
        self._epoch = epoch
        # From before the request: the database's term began no earlier, so it ends no earlier than this one.
        self._trusted_until = started + self._seconds * _TRUSTED_SHARE if epoch is not None else 0.0
        if epoch != was:
            _log.info("leader.elected" if epoch is not None else "leader.deposed", epoch=epoch, holder=self._holder)
        return epoch is not None

    async def resign(self) -> None:
        """Ends the term now, so that another need not wait for its end."""
        if self._epoch is None:
            return
        async with self._engine.begin() as connection:
            await connection.execute(_RESIGN, self._parameters())
        self._epoch = None

    async def fence(self, connection: AsyncConnection) -> int:
        """Returns the epoch, and holds off any take-over until the connection's transaction ends.

        Raises:
            DeposedError: this process does not lead.
        """
        if self.epoch is None:
            raise DeposedError("this process does not lead; expected its term to be renewed in time")
        await connection.execute(_END_IF_IDLE, {"milliseconds": str(max(1, int(self._seconds * 1000)))})
        epoch = (await connection.execute(_LOCK, self._parameters())).scalar_one_or_none()
        if epoch is None:
            self._trusted_until = 0.0
            raise DeposedError(f"epoch {self._epoch} is over; expected it to be the current one")
        return int(epoch)

    async def _claim(self, connection: AsyncConnection, statement: TextClause) -> int | None:
        claimed = await connection.execute(statement, self._parameters() | {"seconds": self._seconds})
        return claimed.scalar_one_or_none()

    def _parameters(self) -> dict[str, object]:
        return {"name": _NAME, "holder": self._holder, "epoch": self._epoch}
