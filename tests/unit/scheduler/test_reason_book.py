"""When reasons are news: at once where they are others, after a while where only their numbers are."""

from __future__ import annotations

from pydantic_core import from_json

from scheduler.core.reasons import FairShare, NoCapacity, QuotaReached, Reason
from scheduler.core.types import GroupKey, Plan, PriorityClass, Shape, Waiting
from scheduler.waiting import ReasonBook

GROUP = GroupKey("red", PriorityClass.NORMAL, Shape("h100", (8, 0, 0)))


class Time:
    """A clock that stands until it is put on."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def waits(*reasons: Reason) -> Plan:
    """A plan in which requests of the group wait."""
    return Plan(waiting_requests=(Waiting(GROUP, reasons),))


def free(number: int) -> NoCapacity:
    return NoCapacity(8, number, 64, "h100")


def told(book: ReasonBook, plan: Plan) -> list[int | None]:
    """How many are free by each row that is written now; None for a row that says something else."""
    changes = book.changes(plan)
    book.committed(changes)
    return [next(iter(from_json(row)), {}).get("free") for row in changes.rows.values()]


def test_other_numbers_are_written_after_a_while_and_then_the_newest() -> None:
    now = Time()
    book = ReasonBook(clock=now)
    assert told(book, waits(free(1))) == [1]
    for number in (2, 3, 4):
        now.seconds += 3
        assert told(book, waits(free(number))) == []
    now.seconds += 3
    assert told(book, waits(free(5))) == [5]
    assert told(book, waits(free(5))) == []
    assert told(book, waits(free(1))) == []


def test_numbers_that_return_to_what_is_stored_are_no_news() -> None:
    now = Time()
    book = ReasonBook(clock=now)
    told(book, waits(free(1)))
    told(book, waits(free(2)))
    now.seconds += 60
    assert told(book, waits(free(1))) == []


def test_other_reasons_or_subjects_are_written_at_once() -> None:
    book = ReasonBook(clock=Time())
    quota = QuotaReached("red", "h100", "accelerators", 8, 1, 8, 8)
    of_team = QuotaReached("team:a", "h100", "accelerators", 8, 1, 8, 8)
    for reasons in ((free(1),), (quota, free(1)), (of_team, free(1)), (free(1), of_team)):
        assert len(told(book, waits(*reasons))) == 1
    assert told(book, Plan()) == [None], "nothing waits any more"
    assert told(book, waits(free(7))) == [7], "and what waits then is news"


def test_who_was_ahead_is_a_number_among_others() -> None:
    book = ReasonBook(clock=Time())
    assert len(told(book, waits(FairShare("red", 5, "blue", 3)))) == 1
    assert told(book, waits(FairShare("red", 6, "green", 4))) == []
    assert len(told(book, waits(FairShare("team:a", 6, "green", 4)))) == 1
