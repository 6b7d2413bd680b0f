"""A token bucket: so many on average, and at most a second's worth at once after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable


class TokenBucket:
    """Tokens that come back with time; it begins full."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        per_second: how many come back in a second; above 0.
        clock: seconds that only grow.
        """
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._clock = clock
        self._tokens = self._most
        self._at = clock()

    def available(self) -> int:
        """How many whole tokens there are now."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return int(self._tokens)

    def take(self, count: int) -> None:
        """Takes so many of those available."""
        self._tokens -= count

    def seconds_until_next(self) -> float:
        """Until there is one; 0 if there is, as of the last look."""
        return max(0.0, (1.0 - self._tokens) / self._per_second)
