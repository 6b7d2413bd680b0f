"""Why what waits does, as it is stored: by group, a row when it changes. Earlier rows stay, as the group's history.

Where only the numbers differ (how many are free may change with every round), the row follows a while later: a busy cluster
would write one for each group and round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, TypeAlias

from pydantic_core import from_json, to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.types import Plan, Waiting
from scheduler.core.words import words
from scheduler.shapes import text_of

Key: TypeAlias = tuple[str, str, int, str]
"""Kind ("job" or "lease"), project, class and text of the shape: the key of `waiting_reasons`."""

_NEWEST = text(
    """
    SELECT DISTINCT ON (kind, project, priority_class, shape) kind, project, priority_class, shape, reasons::text
    FROM waiting_reasons ORDER BY kind, project, priority_class, shape, since DESC
    """
)
_WRITE = text(
    """
    INSERT INTO waiting_reasons (kind, project, priority_class, shape, reasons)
    SELECT kind, project, priority_class, shape, reasons::jsonb
    FROM unnest(
        CAST(:kinds AS text[]), CAST(:projects AS text[]), CAST(:classes AS int[]), CAST(:shapes AS text[]),
        CAST(:reasons AS text[])
    ) AS given (kind, project, priority_class, shape, reasons)
    """
)
_NOTHING = "[]"
_NUMBERS_SECONDS = 10.0
"""How old a group's row is at least when one follows that differs in numbers only."""


@dataclass(frozen=True, slots=True)
class ReasonChanges:
    """What is to be written: reasons as JSON by key, and what led to them."""

    rows: Mapping[Key, str] = field(default_factory=dict[Key, str])
    reasons: Mapping[Key, tuple[Reason, ...]] = field(default_factory=dict[Key, tuple[Reason, ...]])


class ReasonBook:
    """What was last written, by group, so that only news is."""

    def __init__(self, stored: Mapping[Key, str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins with what is stored.

        Args:
            stored: reasons as JSON, of the groups that have any.
            clock: seconds, which never go back.
        """
        self._clock = clock
        self._stored = dict(stored or {})
        self._written: dict[Key, float] = {}
        self._reasons: dict[Key, tuple[Reason, ...]] = {}

    @classmethod
    async def read(cls, connection: AsyncConnection) -> ReasonBook:
        """What the database holds."""
        rows = (await connection.execute(_NEWEST)).all()
        return cls(
            {
                (row.kind, row.project, row.priority_class, row.shape): _canonical(from_json(row.reasons))
                for row in rows
                if row.reasons != _NOTHING
            }
        )

    def changes(self, plan: Plan) -> ReasonChanges:
        """What a plan says that is not stored. A group that nothing waits in any more gets an empty list."""
        rows: dict[Key, str] = {}
        reasons: dict[Key, tuple[Reason, ...]] = {}
        waiting = {**_by_key("job", plan.waiting_jobs), **_by_key("lease", plan.waiting_requests)}
        lately = self._clock() - _NUMBERS_SECONDS
        for key, given in waiting.items():
            known = self._reasons.get(key)
            if known == given:
                continue
            if known is not None and self._written.get(key, lately) > lately and _subjects(known) == _subjects(given):
                continue
            # What it had says more than that this round did not get to it.
            if given[0].code is ReasonCode.NOT_EVALUATED and key in self._stored:
                continue
            told = _canonical([_told(reason) for reason in given])
            if told != self._stored.get(key):
                rows[key] = told
            reasons[key] = given
        rows |= {key: _NOTHING for key in self._stored if key not in waiting}
        return ReasonChanges(rows, reasons)

    def committed(self, changes: ReasonChanges) -> None:
        """The changes are stored."""
        self._reasons |= changes.reasons
        now = self._clock()
        for key, told in changes.rows.items():
            if told == _NOTHING:
                del self._stored[key]
                self._reasons.pop(key, None)
                self._written.pop(key, None)
            else:
                self._stored[key] = told
                self._written[key] = now


async def write(connection: AsyncConnection, changes: ReasonChanges) -> None:
    """Writes what changed."""
    if not changes.rows:
        return
    parameters: dict[str, Sequence[Any]] = {
        "kinds": [kind for kind, _, _, _ in changes.rows],
        "projects": [project for _, project, _, _ in changes.rows],
        "classes": [number for _, _, number, _ in changes.rows],
        "shapes": [shape for _, _, _, shape in changes.rows],
        "reasons": list(changes.rows.values()),
    }
    await connection.execute(_WRITE, parameters)


def _by_key(kind: str, groups: Iterable[Waiting]) -> dict[Key, tuple[Reason, ...]]:
    return {
        (kind, waiting.group.queue, int(waiting.group.priority_class), text_of(waiting.group.shape)): waiting.reasons
        for waiting in groups
    }


def _subjects(reasons: Sequence[Reason]) -> list[tuple[Any, ...]]:
    """What reasons are and whom they are about, without the numbers."""
    return [(reason.code, *(getattr(reason, name) for name in _subject_fields(type(reason)))) for reason in reasons]


@cache
def _subject_fields(kind: type[Reason]) -> tuple[str, ...]:
    # Who is ahead changes as often as numbers do, and is not told.
    return tuple(each.name for each in fields(kind) if each.type != "int" and each.name != "ahead_queue")


def _told(reason: Reason) -> dict[str, Any]:
    return {"code": str(reason.code), "words": words(reason), **asdict(reason)}


def _canonical(reasons: list[dict[str, Any]]) -> str:
    return to_json([dict(sorted(reason.items())) for reason in reasons]).decode()
