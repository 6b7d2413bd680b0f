"""What the rules of deadlines promise, for any jobs at any time; and each promise catches a rule that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, find, given
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from scheduler.core import deadlines
from scheduler.core.deadlines import Deadline
from scheduler.core.types import CLASS_FLOORS, Micros, class_of

HOUR = 3_600_000_000

Case = tuple[tuple[Deadline, ...], Micros, int]
Holds = Callable[[ModuleType, Case], bool]

PRIORITIES = st.integers(0, 1_000) | st.sampled_from(
    [floor + step for floor in CLASS_FLOORS.values() for step in (0, -1) if floor]
)
MOMENTS = st.integers(0, 6 * HOUR).map(Micros)
DEADLINES = st.builds(Deadline, st.uuids().map(str), PRIORITIES, MOMENTS, PRIORITIES)
CASES = st.tuples(st.lists(DEADLINES, max_size=4).map(tuple), MOMENTS, st.integers(0, 3 * HOUR))


def those_near_and_no_others_are_raised(rules: ModuleType, case: Case) -> bool:
    given_, now, notice = case
    raised = [each.job_id for each in rules.raises(given_, now, notice)]
    return raised == [each.job_id for each in given_ if now >= each.start_by - notice]


def nobody_rises_by_more_than_a_class(rules: ModuleType, case: Case) -> bool:
    return all(class_of(new) - class_of(old.priority) in (0, 1) for old, new in _risen(rules, case))


def nobody_falls(rules: ModuleType, case: Case) -> bool:
    return all(new >= old.priority for old, new in _risen(rules, case))


def nobody_rises_above_the_ceiling(rules: ModuleType, case: Case) -> bool:
    return all(new <= max(old.ceiling, old.priority) for old, new in _risen(rules, case))


def who_may_rise_a_class_does(rules: ModuleType, case: Case) -> bool:
    return all(
        class_of(new) > class_of(old.priority)
        for old, new in _risen(rules, case)
        if class_of(old.ceiling) > class_of(old.priority)
    )


PROMISES: list[Holds] = [
    those_near_and_no_others_are_raised,
    nobody_rises_by_more_than_a_class,
    nobody_falls,
    nobody_rises_above_the_ceiling,
    who_may_rise_a_class_does,
]
MUTANTS: list[tuple[Holds, str, str]] = [
    (those_near_and_no_others_are_raised, "<= notice_micros", "< notice_micros"),
    (those_near_and_no_others_are_raised, "deadline.start_by - now", "now - deadline.start_by"),
    (nobody_rises_by_more_than_a_class, "class_of(priority) + 1", "class_of(priority) + 2"),
    (nobody_falls, "max(priority, min(CLASS_FLOORS[above], ceiling))", "min(CLASS_FLOORS[above], ceiling)"),
    (nobody_rises_above_the_ceiling, "min(CLASS_FLOORS[above], ceiling)", "CLASS_FLOORS[above]"),
    (who_may_rise_a_class_does, "class_of(priority) + 1", "class_of(priority)"),
]


def _risen(rules: ModuleType, case: Case) -> list[tuple[Deadline, int]]:
    by_job = {each.job_id: each for each in case[0]}
    return [(by_job[each.job_id], each.priority) for each in rules.raises(*case)]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@given(case=CASES)
@example(case=((Deadline("at the notice", 500, Micros(2 * HOUR), 1_000),), Micros(HOUR), HOUR))
def test_a_promise_holds(promise: Holds, case: Case) -> None:
    assert promise(deadlines, case)


@pytest.mark.parametrize(("promise", "was", "becomes"), MUTANTS)
def test_a_promise_catches_a_broken_rule(promise: Holds, was: str, becomes: str) -> None:
    source = Path(deadlines.__file__).read_text(encoding="utf-8")
    assert source.count(was) == 1, f"{was!r} stands {source.count(was)} times, expected once: rewrite the mutant"
    # With a name that can be imported, for dataclasses look their module up.
    broken = ModuleType(deadlines.__name__)
    exec(compile(source.replace(was, becomes), "broken_deadlines", "exec"), broken.__dict__)  # noqa: S102 - our own words
    edge: Case = ((Deadline("at the notice", 500, Micros(2 * HOUR), 1_000),), Micros(HOUR), HOUR)
    if not promise(broken, edge):
        return
    try:
        find(CASES, lambda case: not promise(broken, case))
    except NoSuchExample:
        pytest.fail("nothing was found that the broken rule gets wrong")


def test_every_promise_has_a_mutant() -> None:
    assert {promise for promise, *_ in MUTANTS} == set(PROMISES)
