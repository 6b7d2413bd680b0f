"""What an accelerator-hour costs, and from when on. Prices are never changed: a new one takes over at its time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from governance.periods import in_utc
from governance.values import InvalidValueError, name, whole

PRICE_MAX = 10**9
"""Most for one accelerator-hour: a thousand of the currency."""


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one kind from a time on, until a later one takes over.

    Raises:
        InvalidValueError: a field breaks its limits.
    """

    kind: str
    """Of accelerator."""
    spot: bool
    """Whether it is that of capacity which may be taken away without notice."""
    valid_from: datetime
    micros_per_hour: int
    """Millionths of the currency for one accelerator-hour; 0: it costs nothing."""

    def __post_init__(self) -> None:
        name(self.kind, "accelerator_kind", 32)
        if self.kind == "any":
            raise InvalidValueError("accelerator_kind", 'is "any", which is no kind of its own; expected the kind of a pool')
        whole(self.micros_per_hour, "micros_per_hour", 0, PRICE_MAX)
        in_utc(self.valid_from, "start_time")


def price_at(prices: Iterable[Price], kind: str, spot: bool, at: datetime) -> Price | None:
    """The price in force: of this kind, the newest that is valid at `at`.

    Spot capacity that has no price of its own costs what the kind costs otherwise: nothing becomes free because somebody forgot
    a line.

    Returns:
        None if the kind has no price then.
    """
    valid = [price for price in prices if price.kind == kind and price.valid_from <= at and (spot or not price.spot)]
    return max(valid, key=lambda price: (price.spot, price.valid_from), default=None)
