"""What a lease costs, in whole numbers with stated rounding.

Time held is accelerators times milliseconds. Money is time held times the price of an hour, which is seldom a whole number of
millionths: a reservation is rounded up, a charge down. So a charge is what was used, to the millisecond, without the fraction
of a millionth that no book can hold; and what was used within the reserved time never costs more than was reserved.
"""

from __future__ import annotations

from governance.prices import PRICE_MAX
from governance.values import AMOUNT_MAX, Amounts, InvalidValueError, whole

HOUR_MS = 3_600_000
KIND_CPU = "cpu"
"""The kind that a machine without GPU offers: it may cost money, and is never GPU-hours."""
ACCELERATORS_MAX = 10**6
RUN_MS_MAX = 31_622_400_000
"""366 days."""


def held_ms(accelerators: int, run_ms: int) -> int:
    """Accelerator-milliseconds, whatever the kind.

    Raises:
        InvalidValueError: there is no accelerator, no time, or more than there can be.
    """
    return whole(accelerators, "accelerators", 1, ACCELERATORS_MAX) * whole(run_ms, "run_ms", 1, RUN_MS_MAX)


def reservation(held: int, kind: str, micros_per_hour: int) -> Amounts:
    """What is set aside for time that may be held: money rounded up to a whole millionth.

    Args:
        held: accelerator-milliseconds.
        kind: of accelerator.
        micros_per_hour: the price at the grant.

    Raises:
        InvalidValueError: it is more than `AMOUNT_MAX`, or a number is not what it says.
    """
    return _priced(held, kind, -(-held * whole(micros_per_hour, "micros_per_hour", 0, PRICE_MAX) // HOUR_MS))


def charge(used: int, kind: str, micros_per_hour: int) -> Amounts:
    """What is charged for time that was held: money rounded down to a whole millionth. As `reservation` otherwise."""
    return _priced(used, kind, used * whole(micros_per_hour, "micros_per_hour", 0, PRICE_MAX) // HOUR_MS)


def _priced(held: int, kind: str, micros: int) -> Amounts:
    if micros > AMOUNT_MAX:
        raise InvalidValueError("cost", f"is {micros:,} millionths; expected at most {AMOUNT_MAX:,}")
    return Amounts(micros, 0 if kind == KIND_CPU else whole(held, "held", 0, AMOUNT_MAX))
