"""No unary call takes longer than the server allows, whatever its caller asks for: nothing, a moment, or ten years."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from control_plane.rpc.exchange import Exchange, Proceed


class Deadlines:
    """Ends unary calls in time. A stream's deadline is its caller's; how long it may live is its service's affair."""

    name: ClassVar[str] = "deadlines"
    # Audited outside: what ran out of time is on record, and recording it takes time too.
    after: ClassVar[frozenset[str]] = frozenset({"refusing", "auditing"})

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, as long as it may take.

        Raises:
            TimeoutError: it took longer.
        """
        if exchange.method.streams:
            return await proceed(exchange)
        # None when the caller set no deadline, whatever the type stubs say.
        remaining = cast("float | None", exchange.context.time_remaining())
        limit = self._seconds_max if remaining is None else min(remaining, self._seconds_max)
        async with asyncio.timeout(max(limit, 0.0)):
            return await proceed(exchange)
