"""The periods of budgets: calendar months and quarters in UTC, and spans that come once.

What is granted in a period is charged to it, however long it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from governance.values import InvalidValueError

# The last of Python's calendar is 9999, and a period needs an end.
_YEAR_MAX = 9_998


class PeriodKind(StrEnum):
    """How a budget's time is divided."""

    MONTH = "MONTH"
    QUARTER = "QUARTER"
    ONE_OFF = "ONE_OFF"


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of time, in UTC: its start belongs to it, its end to the next."""

    kind: PeriodKind
    start: datetime
    end: datetime

    def __contains__(self, at: datetime) -> bool:
        return self.start <= at < self.end


def calendar_period(kind: PeriodKind, at: datetime) -> Period:
    """The calendar month or quarter that a moment lies in.

    Raises:
        ValueError: the moment has no time zone, or the kind is ONE_OFF, which no calendar knows.
    """
    if kind is PeriodKind.ONE_OFF:
        raise ValueError("a one-off is in no calendar; expected MONTH or QUARTER")
    moment = in_utc(at, "at")
    months = 1 if kind is PeriodKind.MONTH else 3
    first = (moment.month - 1) // months * months + 1
    start = datetime(moment.year, first, 1, tzinfo=UTC)
    later = first + months
    return Period(kind, start, datetime(moment.year + (later > 12), (later - 1) % 12 + 1, 1, tzinfo=UTC))


def one_off(start: datetime, end: datetime) -> Period:
    """The span of a one-off.

    Raises:
        InvalidValueError: a moment has no time zone, or the end is not after the start.
    """
    begins, ends = in_utc(start, "start_time"), in_utc(end, "end_time")
    if ends <= begins:
        raise InvalidValueError("end_time", f"is {ends.isoformat()}; expected later than start_time, {begins.isoformat()}")
    return Period(PeriodKind.ONE_OFF, begins, ends)


def in_utc(at: datetime, field: str) -> datetime:
    """The same moment in UTC.

    Raises:
        InvalidValueError: it has no time zone, so nobody knows which moment it is, or it is at the end of all calendars.
    """
    offset = at.utcoffset()
    if offset is None:
        raise InvalidValueError(field, f"is {at.isoformat()}, without a time zone; expected one")
    if not 2 <= at.year <= _YEAR_MAX:
        raise InvalidValueError(field, f"is {at.isoformat()}; expected a year within 2 to {_YEAR_MAX}")
    return at.astimezone(UTC)
