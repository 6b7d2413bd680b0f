"""Budgets: what a project, a team or the organisation may spend in a period, and what happens as it is spent.

What counts against a budget is *committed*: spent, and reserved by leases that run. A budget that stops at its hard limit is
never overrun, because a lease is granted only if all it may cost is still there. Other budgets count, warn or demote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from governance.periods import Period, PeriodKind, calendar_period, one_off
from governance.values import LIMIT_MAX, UNLIMITED, Amounts, Book, InvalidValueError, Limits, name, whole

PERCENT_MAX = 1_000
LEVELS_MAX = 16
LEVEL_SOFT = "soft"
"""The level of an alert that the soft limit is reached; the others are percent of the hard limit."""


class ScopeKind(StrEnum):
    """What a node of the quota tree is."""

    ORGANISATION = "ORGANISATION"
    TEAM = "TEAM"
    PROJECT = "PROJECT"


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Whose money it is: a node of the quota tree. Projects and teams have names of their own."""

    kind: ScopeKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()} {self.name}".rstrip()


class AtHardLimit(StrEnum):
    """What happens when the hard limit is reached."""

    STOP = "STOP"
    """Nothing more is granted, and what is not covered any more stops at a checkpoint and is held."""
    DEMOTE = "DEMOTE"
    """Everything of the scope runs in class scavenger: on what nobody else wants."""
    WARN = "WARN"
    """Alerts are sent, and that is all."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a scope may spend in each period.

    Raises:
        InvalidValueError: a field breaks its limits; the first that does is named.
    """

    scope: Scope
    period: PeriodKind
    hard: Limits
    at_hard_limit: AtHardLimit = AtHardLimit.STOP
    soft: Limits = UNLIMITED
    """Below the hard limit; a book that the hard limit leaves out has none."""
    span: Period | None = None
    """Of a one-off."""
    alert_percents: tuple[int, ...] = (50, 80, 100)
    """Of the hard limit; each is told once in a period."""
    notified_project: str | None = None
    """Whose endpoints hear of a team's or the organisation's budget; a project's are its own."""

    def __post_init__(self) -> None:
        # There is one organisation, which need not have a name.
        if self.scope.kind is not ScopeKind.ORGANISATION or self.scope.name:
            name(self.scope.name, "scope", 64)
        if (self.span is not None) != (self.period is PeriodKind.ONE_OFF):
            raise InvalidValueError(
                "period", f"is {self.period}; expected start_time and end_time with ONE_OFF, and only with it"
            )
        if not self.hard:
            raise InvalidValueError("hard_limit", "limits nothing; expected money, accelerator time or both")
        for book, field in ((Book.MONEY, "micros"), (Book.ACCELERATOR_TIME, "accelerator_ms")):
            hard, soft = self.hard.of(book), self.soft.of(book)
            if hard is not None:
                whole(hard, f"hard_limit.{field}", 1, LIMIT_MAX)
            if soft is not None:
                if hard is None:
                    raise InvalidValueError(
                        f"soft_limit.{field}", f"is set and hard_limit.{field} is not; expected both or neither"
                    )
                whole(soft, f"soft_limit.{field}", 1, hard)
        if len(self.alert_percents) > LEVELS_MAX:
            raise InvalidValueError("alert_percents", f"has {len(self.alert_percents)}; expected at most {LEVELS_MAX}")
        for index, percent in enumerate(self.alert_percents):
            whole(percent, f"alert_percents[{index}]", 1, PERCENT_MAX)
            if percent in self.alert_percents[:index]:
                raise InvalidValueError(f"alert_percents[{index}]", f"is {percent} again; expected each once")
        if self.scope.kind is ScopeKind.PROJECT and self.notified_project not in (None, self.scope.name):
            raise InvalidValueError("alert_project", "is another project; expected none: a project hears of its own budget")

    def period_at(self, at: datetime) -> Period | None:
        """The period that a moment lies in; None: outside a one-off's span."""
        if self.span is not None:
            return self.span if at in self.span else None
        return calendar_period(self.period, at)

    @property
    def stops(self) -> bool:
        """Whether it is never overrun."""
        return self.at_hard_limit is AtHardLimit.STOP

    @property
    def enforced(self) -> Limits:
        """What may be committed at most; no bounds for a budget that only counts."""
        return self.hard if self.stops else UNLIMITED


def span(starts_at: datetime | None, ends_at: datetime | None) -> Period | None:
    """The span of a one-off from what was asked for; None: neither was given.

    Raises:
        InvalidValueError: one is missing, has no time zone, or they are in the wrong order.
    """
    if starts_at is None and ends_at is None:
        return None
    if starts_at is None or ends_at is None:
        missing = "start_time" if starts_at is None else "end_time"
        raise InvalidValueError(missing, "is missing; expected start_time and end_time, or neither")
    return one_off(starts_at, ends_at)


def soft_of(hard: Limits, percent: int) -> Limits:
    """The soft limit that is a part of the hard one, rounded down to a whole number, at least 1.

    Raises:
        InvalidValueError: the part is not 1 to 100 percent.
    """
    whole(percent, "soft_percent", 1, 100)
    return Limits(*(None if limit is None else max(1, limit * percent // 100) for limit in (hard.micros, hard.accelerator_ms)))


def funded(limit: int | None, committed: int, *, enforced: bool) -> int:
    """What a ledger's account "budget" is given in one book.

    A limit lowered below what is committed already takes effect as leases end: the ledger keeps what it has promised, and takes
    back what they release until it is down at the limit.
    """
    if limit is None:
        return 0
    return max(limit, committed) if enforced else limit


@dataclass(frozen=True, slots=True)
class Reached:
    """A level that a budget has come to in one book."""

    book: Book
    level: str
    """`LEVEL_SOFT`, or percent of the hard limit."""
    committed: int
    hard_limit: int


def reached(budget: Budget, committed: Amounts) -> list[Reached]:
    """The levels of a budget that are reached, in both books, lowest first."""
    found: list[Reached] = []
    for book in Book:
        hard, soft, now = budget.hard.of(book), budget.soft.of(book), committed.of(book)
        if hard is None:
            continue
        if soft is not None and now >= soft:
            found.append(Reached(book, LEVEL_SOFT, now, hard))
        found += [
            Reached(book, str(percent), now, hard) for percent in sorted(budget.alert_percents) if now * 100 >= hard * percent
        ]
    return found


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a scope stands in the period that runs: what the scheduler goes by."""

    scope: Scope
    left: Limits
    """What may still be reserved; None: not limited."""
    demoted: bool = False
    """Whether all of its work is of class scavenger."""
    soft_reached: bool = False
    """Whether its soft limit is reached in a book; for people."""


def standing(budget: Budget, committed: Amounts, now: datetime) -> Standing:
    """Where a budget stands.

    Outside the span of a one-off nothing is left: a grant that is over must not become one without limit.

    Args:
        budget: the budget.
        committed: spent and reserved in the period that runs; nothing outside of a span.
        now: the time.
    """
    over = budget.period_at(now) is None
    levels = reached(budget, committed)
    bounds = {book: hard for book in Book if (hard := budget.hard.of(book)) is not None}
    left = {book: 0 if over else max(0, hard - committed.of(book)) for book, hard in bounds.items() if budget.stops}
    exhausted = over or any(committed.of(book) >= hard for book, hard in bounds.items())
    return Standing(
        scope=budget.scope,
        left=Limits(left.get(Book.MONEY), left.get(Book.ACCELERATOR_TIME)),
        demoted=budget.at_hard_limit is AtHardLimit.DEMOTE and exhausted,
        soft_reached=any(level.level == LEVEL_SOFT for level in levels),
    )


@dataclass(frozen=True, slots=True)
class HeldReservation:
    """What a running lease has set aside in a ledger."""

    lease_id: str
    job_id: str
    granted: datetime
    amounts: Amounts


def uncovered(over: Amounts, held: Iterable[HeldReservation]) -> list[HeldReservation]:
    """The leases to stop at a checkpoint so that a lowered limit is met: the newest first, until what they set aside is enough.

    Args:
        over: by how much what is committed exceeds the limit, in each book; 0 or less: not at all.
        held: what runs.
    """
    chosen: list[HeldReservation] = []
    for lease in sorted(held, key=lambda lease: (lease.granted, lease.lease_id), reverse=True):
        if over.micros <= 0 and over.accelerator_ms <= 0:
            break
        helps = (over.micros > 0 and lease.amounts.micros > 0) or (over.accelerator_ms > 0 and lease.amounts.accelerator_ms > 0)
        if helps:
            chosen.append(lease)
            over -= lease.amounts
    return chosen


def in_order(scopes: Sequence[Scope]) -> list[Scope]:
    """Each scope once, in the order in which their ledgers are made and locked."""
    return sorted(set(scopes))
