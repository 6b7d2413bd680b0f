"""How much one caller, and all together, may ask: of calls in time (`Rates`), and of calls at once (`Concurrency`)."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

from control_plane.errors import Reason, RefusedError
from control_plane.rpc.exchange import Exchange, Proceed
from control_plane.settings import LimitsSettings

_CALLERS_KEPT = 10_000


class Rates:
    """A token bucket for each principal (see Wikipedia, "Token bucket"): calls on average, and calls at once after a pause."""

    name: ClassVar[str] = "rates"
    after: ClassVar[frozenset[str]] = frozenset({"authentication", "auditing"})

    def __init__(self, limits: LimitsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = limits.calls_per_second
        self._burst = float(limits.calls_burst)
        self._clock = clock
        # Tokens left, and when that was so. Whoever is dropped begins anew with a full bucket, as after a pause.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, if the caller has a call left.

        Raises:
            RefusedError: they have none; it says when they will.
        """
        self.take(caller_of(exchange))
        return await proceed(exchange)

    def take(self, caller: str) -> None:
        """Takes a token from a caller's bucket.

        Raises:
            RefusedError: it is empty.
        """
        now = self._clock()
        tokens, then = self._buckets.get(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._per_second)
        if tokens < 1.0:
            wait = (1.0 - tokens) / self._per_second
            raise RefusedError(
                Reason.RATE_LIMITED,
                f"{caller} made more than {self._per_second:g} calls per second; try again in {wait:.3f} s",
                {"limit": "calls_per_second", "value": f"{self._per_second:g}", "subject": caller},
                retry_after_seconds=wait,
            )
        self._buckets[caller] = (tokens - 1.0, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _CALLERS_KEPT:
            self._buckets.popitem(last=False)


class Concurrency:
    """Caps on calls under way; streams have caps of their own, so that they cannot starve the others."""

    name: ClassVar[str] = "concurrency"
    after: ClassVar[frozenset[str]] = frozenset({"authentication", "auditing"})

    def __init__(self, limits: LimitsSettings) -> None:
        self._unary = _Cap("unary_calls", limits.unary_calls_max, limits.unary_calls_per_principal)
        self._streams = _Cap("streams", limits.streams_max, limits.streams_per_principal)

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, if there is room.

        Raises:
            RefusedError: there is none, for this caller or for anybody.
        """
        cap = self._streams if exchange.method.streams else self._unary
        caller = caller_of(exchange)
        cap.enter(caller)
        try:
            return await proceed(exchange)
        finally:
            cap.leave(caller)


class _Cap:
    def __init__(self, what: str, total_max: int, caller_max: int) -> None:
        self._what = what
        self._total_max = total_max
        self._caller_max = caller_max
        self._total = 0
        self._of_caller: defaultdict[str, int] = defaultdict(int)

    def enter(self, caller: str) -> None:
        if self._of_caller.get(caller, 0) >= self._caller_max:
            raise self._refusal(f"{self._what}_per_principal", self._caller_max, caller)
        if self._total >= self._total_max:
            raise self._refusal(f"{self._what}_max", self._total_max, "all callers together")
        self._total += 1
        self._of_caller[caller] += 1

    def leave(self, caller: str) -> None:
        self._total -= 1
        self._of_caller[caller] -= 1
        if not self._of_caller[caller]:
            del self._of_caller[caller]

    def _refusal(self, limit: str, value: int, subject: str) -> RefusedError:
        words = self._what.replace("_", " ")
        return RefusedError(
            Reason.TOO_MANY_CALLS,
            f"{subject} may have {value:,} {words} open at once; end some, or wait until some have ended",
            {"limit": limit, "value": str(value), "subject": subject},
            retry_after_seconds=1.0,
        )


def caller_of(exchange: Exchange) -> str:
    """Whose limits count: the principal's; a stranger's, where strangers may call, are those of the address."""
    return exchange.call.principal.subject if exchange.call is not None else f"address:{exchange.peer}"
