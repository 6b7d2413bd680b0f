"""Who holds what of one node, and what of it is free for whom."""

from __future__ import annotations

from typing import NamedTuple

from scheduler.core.room import NOTHING
from scheduler.core.types import Amounts


class _Claimed(NamedTuple):
    """What is kept for one request on a node."""

    claimed: Amounts
    yielding: Amounts
    """Held by the leases that yield to it: they become part of what is claimed as they end."""

    @property
    def kept(self) -> Amounts:
        """What nobody else may take, beyond what is held."""
        (a, b, c), (x, y, z) = self
        return (a - x if a > x else 0, b - y if b > y else 0, c - z if c > z else 0)


class NodeUse:
    """What is held and claimed of a node."""

    __slots__ = ("_claims", "_held", "_total")

    def __init__(self, total: Amounts) -> None:
        self._total = total
        self._held = NOTHING
        self._claims: dict[str, _Claimed] | None = None

    def copy(self) -> NodeUse:
        """One of its own."""
        twin = NodeUse(self._total)
        twin._held = self._held
        twin._claims = dict(self._claims) if self._claims else None
        return twin

    def hold(self, amounts: Amounts, yields_to: str | None) -> None:
        """So much more is held (or less, where amounts are below 0), by what yields to that request."""
        self._held = plus(self._held, amounts)
        if yields_to is not None:
            self._claim(yields_to, NOTHING, amounts)

    def claim(self, request_id: str, amounts: Amounts) -> None:
        """So much more is kept for the request; less, where amounts are below 0."""
        self._claim(request_id, amounts, NOTHING)

    def _claim(self, request_id: str, claimed: Amounts, yielding: Amounts) -> None:
        claims = self._claims = self._claims or {}
        before = claims.get(request_id, _NONE)
        now = _Claimed(plus(before.claimed, claimed), plus(before.yielding, yielding))
        if now == _NONE:
            claims.pop(request_id, None)
        else:
            claims[request_id] = now

    def free(self, asking: str | None = None, less: Amounts = NOTHING) -> Amounts:
        """What is neither held nor kept for a request other than the one that asks; were so much less held."""
        (a, b, c), (x, y, z), (u, v, w) = self._total, self._held, less
        a, b, c = a - x + u, b - y + v, c - z + w
        if self._claims:
            for request_id, claim in self._claims.items():
                if request_id != asking:
                    x, y, z = claim.kept
                    a, b, c = a - x, b - y, c - z
        return (a if a > 0 else 0, b if b > 0 else 0, c if c > 0 else 0)


_NONE = _Claimed(NOTHING, NOTHING)


def plus(one: Amounts, other: Amounts) -> Amounts:
    """The sum."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def times(amounts: Amounts, count: int) -> Amounts:
    """So much for each of `count`."""
    return amounts[0] * count, amounts[1] * count, amounts[2] * count
