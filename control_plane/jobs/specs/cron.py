"""Cron expressions of five fields, in UTC: minute, hour, day of month, month, day of week."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
_PART = re.compile(r"(?:\*|(?P<first>[0-9]{1,2})(?:-(?P<last>[0-9]{1,2}))?)(?:/(?P<step>[0-9]{1,2}))?")
_LONGEST_MONTH = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


@dataclass(frozen=True, slots=True)
class Schedule:
    """The values each field allows. As in cron, a day matches by either of two restricted day fields."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 to 6, Sunday first."""
    any_day: bool
    any_weekday: bool


def parse(expression: str) -> Schedule:
    """The schedule that `expression` describes.

    Raises:
        ValueError: it is not one, or never comes to pass; the message says what was expected.
    """
    texts = expression.split(" ")
    if len(texts) != len(_FIELDS):
        raise ValueError(f"is {expression!r}, which has {len(texts)} fields; expected 5 with one space between two")
    minutes, hours, days, months, weekdays = (_values(text, *field) for text, field in zip(texts, _FIELDS, strict=True))
    schedule = Schedule(
        minutes,
        hours,
        days,
        months,
        frozenset(day % 7 for day in weekdays),
        any_day=texts[2].startswith("*"),
        any_weekday=texts[4].startswith("*"),
    )
    possible = any(min(days) <= _LONGEST_MONTH.get(month, 31) for month in months)
    if not possible and schedule.any_weekday:
        raise ValueError(f"is {expression!r}, which never comes to pass: none of its months has day {min(days)}")
    return schedule


def _values(text: str, name: str, lowest: int, highest: int) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(f"has {part!r} as {name}; expected *, A, A-B, any of them with /STEP, or several with commas")
        first, last, step = (None if found[group] is None else int(found[group]) for group in ("first", "last", "step"))
        begin = lowest if first is None else first
        # As in cron: A/STEP goes on to the highest value.
        end = last if last is not None else begin if first is not None and step is None else highest
        if not lowest <= begin <= end <= highest or step == 0:
            raise ValueError(f"has {part!r} as {name}; expected values from {lowest} to {highest} in order, and a step from 1")
        values.update(range(begin, end + 1, step or 1))
    return frozenset(values)
