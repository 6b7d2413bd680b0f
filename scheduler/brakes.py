"""How much preemption there may still be: a token bucket, and the work thrown away within an hour."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.core.types import Brakes, Micros

HOUR_MICROS = 3_600_000_000


@dataclass(frozen=True, slots=True)
class BrakeLimits:
    """The settings of the brakes."""

    burst: int
    """Tokens in a full bucket: most preemptions at once."""
    per_hour: int
    """Tokens that drip into it in an hour, at least 1."""
    waste_ms_per_hour: int
    """Most accelerator-milliseconds not checkpointed that may be thrown away within any hour."""


class PreemptionBrakes:
    """What was spent lately. Rebuilt by a new leader from what the leases say."""

    def __init__(self, limits: BrakeLimits, spent: Iterable[tuple[Micros, int]] = ()) -> None:
        """Begins with a full bucket, an hour or more ago.

        Args:
            limits: the settings.
            spent: when a lease was preempted and the accelerator-milliseconds it lost, in order of time.
        """
        self._limits = limits
        self._full = limits.burst * HOUR_MICROS
        # In parts of a token that drip in a microsecond, so that nothing is ever rounded.
        self._level = self._full
        self._at = 0
        self._wasted: deque[tuple[int, int]] = deque()
        self._waste_ms = 0
        for at, lost_ms in spent:
            self.spend(at, lost_ms)

    def spend(self, at: Micros, lost_ms: int) -> None:
        """Counts a preemption."""
        self._advance(at)
        self._level = max(0, self._level - HOUR_MICROS)
        self._wasted.append((at, lost_ms))
        self._waste_ms += lost_ms

    def left(self, now: Micros) -> Brakes:
        """What there may still be, now."""
        self._advance(now)
        return Brakes(self._level // HOUR_MICROS, max(0, self._limits.waste_ms_per_hour - self._waste_ms))

    def _advance(self, now: int) -> None:
        if now > self._at:
            self._level = min(self._full, self._level + (now - self._at) * self._limits.per_hour)
            self._at = now
        while self._wasted and self._wasted[0][0] <= now - HOUR_MICROS:
            self._waste_ms -= self._wasted.popleft()[1]
