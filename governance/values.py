"""Amounts of the two books, and what a number must be to become one.

The books are money, in millionths of the currency, and accelerator time, in accelerator-milliseconds. Both are whole numbers:
no floating point ever holds what somebody pays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

LIMIT_MAX = 10**15
"""Most that a limit may be: a milliard of the currency, or 278 million accelerator-hours."""
AMOUNT_MAX = 10**18
"""Most that one lease may cost. Nine of them fit 64 bits; what would not fit is refused before it is added."""


# ASCII only, and all of it: look-alike letters and a trailing newline are no names.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")


class InvalidValueError(ValueError):
    """A value that breaks its limits: which field, what it is, what was expected."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field} {description}")
        self.field = field
        self.description = description


class Book(StrEnum):
    """What is counted; entries of one book are never weighed against those of the other."""

    MONEY = "MONEY"
    """Millionths of the currency."""
    ACCELERATOR_TIME = "ACCELERATOR_TIME"
    """Accelerator-milliseconds, those of kind "cpu" left out."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """A whole number in each book."""

    micros: int = 0
    """Millionths of the currency."""
    accelerator_ms: int = 0
    """Accelerator-milliseconds."""

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(self.micros + other.micros, self.accelerator_ms + other.accelerator_ms)

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(self.micros - other.micros, self.accelerator_ms - other.accelerator_ms)

    def __neg__(self) -> Amounts:
        return Amounts(-self.micros, -self.accelerator_ms)

    def __bool__(self) -> bool:
        """Whether anything moves in either book."""
        return self.micros != 0 or self.accelerator_ms != 0

    @classmethod
    def by_book(cls, number: Callable[[Book], int]) -> Amounts:
        """What a function says of each book."""
        return cls(number(Book.MONEY), number(Book.ACCELERATOR_TIME))

    def of(self, book: Book) -> int:
        """The number in one book."""
        return self.micros if book is Book.MONEY else self.accelerator_ms


@dataclass(frozen=True, slots=True)
class Limits:
    """A bound in each book; None: no bound."""

    micros: int | None = None
    """Millionths of the currency."""
    accelerator_ms: int | None = None
    """Accelerator-milliseconds."""

    def of(self, book: Book) -> int | None:
        """The bound in one book."""
        return self.micros if book is Book.MONEY else self.accelerator_ms

    def __bool__(self) -> bool:
        """Whether anything is bounded."""
        return self.micros is not None or self.accelerator_ms is not None


UNLIMITED = Limits()


def total(amounts: Iterable[Amounts]) -> Amounts:
    """The sum, book by book."""
    return sum(amounts, start=Amounts())


def whole(value: object, field: str, least: int, most: int) -> int:
    """The value, if it is a whole number within bounds.

    Anything else that Python calls a number is refused: NaN passes every comparison with a limit, and true is 1.

    Raises:
        InvalidValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError(field, f"is {str(value)[:64]!r}; expected a whole number from {least:,} to {most:,}")
    if not least <= value <= most:
        shown = f"{value:,}" if abs(value) < 10**30 else "a number of more than 30 digits"
        raise InvalidValueError(field, f"is {shown}; expected {least:,} to {most:,}")
    return value


def name(value: str, field: str, longest: int) -> str:
    """The value, if it is a name: [a-z0-9.-], a letter or digit at both ends.

    Raises:
        InvalidValueError: it is not.
    """
    if len(value) > longest or not _NAME.fullmatch(value):
        expected = f"expected 1 to {longest} characters of [a-z0-9.-], a letter or digit at both ends"
        raise InvalidValueError(field, f"is {value[:80]!r}; {expected}")
    return value
