"""Amounts and times as people write them at the command line, and as they are shown."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from headway_client.cli.failures import InputError

_PARTS_MAX = 2**63 - 1
MICROS = 1_000_000
"""Millionths of the currency in one of it."""


def whole(text: str, unit: int, option: str) -> int:
    """A decimal number as a whole number of parts of its unit.

    Raises:
        InputError: it is no number, finer than the parts, or more than can be sent.
    """
    try:
        parts = Decimal(text) * unit
        if abs(parts) > _PARTS_MAX:
            raise InputError(f"{option}: {text} is too much; expected at most {_PARTS_MAX // unit:,}")
        if parts == parts.to_integral_value():
            return int(parts)
    except (InvalidOperation, OverflowError, ValueError):
        pass
    raise InputError(f"{option}: {text} is no amount; expected a number such as 1000.50, in steps of 1/{unit}")


def moment(text: str, option: str) -> datetime | None:
    """A time, in UTC if it says nothing else; None for none.

    Raises:
        InputError: it is no time.
    """
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{option}: {text} is no time; expected such as 2030-01-01 or 2030-01-01T12:00:00Z") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def exact(micros: int) -> str:
    """Millionths of the currency as a decimal number, to the last one."""
    return f"{Decimal(micros) / MICROS:f}"
