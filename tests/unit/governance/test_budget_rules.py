"""Budgets: what they allow, when they warn, what a lowered one stops; and what a job's type does to its priority."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.budgets import (
    AtHardLimit,
    Budget,
    HeldReservation,
    Scope,
    ScopeKind,
    funded,
    reached,
    soft_of,
    span,
    standing,
    uncovered,
)
from governance.chargeback import Chargeback, ChargebackRow, Dimension, hours, money, to_csv, to_json
from governance.periods import PeriodKind, one_off
from governance.values import LIMIT_MAX, UNLIMITED, Amounts, InvalidValueError, Limits

RED = Scope(ScopeKind.PROJECT, "red")
NOW = datetime(2026, 5, 17, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def budget(hard: Limits = Limits(1_000, None), **fields: Any) -> Budget:  # noqa: B008  a value that nobody changes
    given_fields: dict[str, Any] = {"scope": RED, "period": PeriodKind.MONTH} | fields
    return Budget(hard=hard, **given_fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hard": UNLIMITED}, "hard_limit"),
        ({"hard": Limits(0, None)}, "hard_limit.micros"),
        ({"hard": Limits(None, -1)}, "hard_limit.accelerator_ms"),
        ({"hard": Limits(LIMIT_MAX + 1, None)}, "hard_limit.micros"),
        ({"hard": Limits(float("nan"), None)}, "hard_limit.micros"),  # pyright: ignore[reportArgumentType] - what a caller may send
        ({"soft": Limits(1_001, None)}, "soft_limit.micros"),
        ({"soft": Limits(None, 1)}, "soft_limit.accelerator_ms"),
        ({"alert_percents": (50, 0)}, "alert_percents[1]"),
        ({"alert_percents": (50, 50)}, "alert_percents[1]"),
        ({"alert_percents": tuple(range(1, 18))}, "alert_percents"),
        ({"period": PeriodKind.ONE_OFF}, "period"),
        ({"span": one_off(NOW, NOW + DAY)}, "period"),
        ({"scope": Scope(ScopeKind.TEAM, "Vision\n")}, "scope"),
        ({"scope": Scope(ScopeKind.PROJECT, "")}, "scope"),
        ({"notified_project": "blue"}, "alert_project"),
    ],
)
def test_a_budget_that_breaks_its_limits_is_refused_by_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        budget(**fields)
    assert caught.value.field == field


def test_a_span_has_two_ends() -> None:
    assert span(None, None) is None
    for ends in ((NOW, None), (None, NOW)):
        with pytest.raises(InvalidValueError, match="is missing"):
            span(*ends)


@given(st.integers(1, LIMIT_MAX), st.integers(1, 100))
def test_a_soft_limit_by_percent_is_valid_for_every_hard_one(hard: int, percent: int) -> None:
    soft = soft_of(Limits(hard, None), percent)
    assert soft.accelerator_ms is None
    assert soft.micros is not None
    assert soft.micros == max(1, int(Fraction(hard * percent, 100)))
    budget(Limits(hard, None), soft=soft)


@given(st.integers(1, 10**6), st.integers(0, 2 * 10**6), st.integers(0, 2 * 10**6))
def test_levels_are_reached_exactly_and_never_left_out_as_more_is_committed(hard: int, less: int, more: int) -> None:
    one = budget(Limits(hard, hard), soft=soft_of(Limits(hard, hard), 70), alert_percents=(100, 1, 80))
    found = reached(one, Amounts(less, 0))
    for percent in (1, 80, 100):
        assert (str(percent) in {level.level for level in found}) == (Fraction(less, hard) >= Fraction(percent, 100))
    assert {level.level for level in found} <= {level.level for level in reached(one, Amounts(less + more, 0))}
    assert len(reached(one, Amounts(hard, hard))) == 8


@given(st.sampled_from(AtHardLimit), st.integers(0, 3_000), st.integers(0, 3_000))
def test_where_a_budget_stands_follows_its_policy(policy: AtHardLimit, micros: int, ms: int) -> None:
    one = budget(Limits(1_000, 2_000), at_hard_limit=policy, soft=Limits(500, None))
    found = standing(one, Amounts(micros, ms), NOW)
    exhausted = micros >= 1_000 or ms >= 2_000
    assert found.left == (Limits(max(0, 1_000 - micros), max(0, 2_000 - ms)) if policy is AtHardLimit.STOP else UNLIMITED)
    assert found.demoted == (exhausted and policy is AtHardLimit.DEMOTE)
    assert found.soft_reached == (micros >= 500)


@pytest.mark.parametrize("at", [NOW - DAY, NOW + DAY])
def test_nothing_is_left_outside_of_a_one_off(at: datetime) -> None:
    one = budget(period=PeriodKind.ONE_OFF, span=one_off(NOW - timedelta(hours=1), NOW + timedelta(hours=1)))
    assert standing(one, Amounts(), at).left == Limits(0, None)
    assert standing(one, Amounts(), NOW).left == Limits(1_000, None)


@given(st.none() | st.integers(1, 10**6), st.integers(0, 10**6), st.booleans())
def test_a_ledger_keeps_what_it_promised(limit: int | None, committed: int, enforced: bool) -> None:
    given_to_it = funded(limit, committed, enforced=enforced)
    if limit is None:
        assert given_to_it == 0
    else:
        assert given_to_it >= limit
        assert given_to_it == limit or (enforced and given_to_it == committed)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50), st.integers(0, 50))),
    st.integers(-10, 300),
    st.integers(-10, 300),
)
def test_a_lowered_limit_stops_the_newest_and_no_more_than_it_must(
    rows: list[tuple[int, int, int]], micros: int, ms: int
) -> None:
    held = [
        HeldReservation(f"{index:02}", "job", NOW + timedelta(hours=hour), Amounts(*amounts))
        for index, (hour, *amounts) in enumerate(rows)
    ]
    chosen = uncovered(Amounts(micros, ms), held)
    freed = sum((lease.amounts for lease in chosen), start=Amounts())
    everything = sum((lease.amounts for lease in held), start=Amounts())
    assert freed.micros >= min(micros, everything.micros)
    assert freed.accelerator_ms >= min(ms, everything.accelerator_ms)
    if chosen:  # without the last of them it is not enough
        before = freed - chosen[-1].amounts
        assert before.micros < micros or before.accelerator_ms < ms
    assert [lease.granted for lease in chosen] == sorted((lease.granted for lease in chosen), reverse=True)


def _report(*rows: ChargebackRow) -> Chargeback:
    return Chargeback(NOW - DAY, NOW, "EUR", (Dimension.PROJECT, Dimension.USER), rows)


@given(
    st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8), st.integers(0, 10**15), st.integers(0, 10**15)), max_size=8)
)
def test_the_report_s_files_say_the_same_and_their_totals_are_the_sum(rows: list[tuple[str, str, int, int]]) -> None:
    report = _report(*(ChargebackRow((one, two), 1, Amounts(micros, ms), 0) for one, two, micros, ms in rows))
    lines = list(csv.DictReader(io.StringIO(to_csv(report), newline="")))
    told = json.loads(to_json(report))
    assert len(lines) == len(told["rows"]) + 1 == len(rows) + 1
    assert int(lines[-1]["micros"]) == told["total"]["micros"] == sum(micros for *_, micros, _ in rows)
    assert int(lines[-1]["accelerator_ms"]) == told["total"]["accelerator_ms"] == sum(ms for *_, ms in rows)
    for line, row in zip(lines, told["rows"], strict=False):
        assert line["project"] in (row["project"], f"'{row['project']}")
        assert line["money"] == row["money"]
        assert Fraction(line["money"]) * 1_000_000 == int(line["micros"])
        assert abs(Fraction(line["gpu_hours"]) - Fraction(int(line["accelerator_ms"]), 3_600_000)) <= Fraction(1, 2_000_000)


def test_a_cell_is_no_formula() -> None:
    text = to_csv(_report(ChargebackRow(("=HYPERLINK(1)", "+1"), 1, Amounts(), 0)))
    assert "'=HYPERLINK(1),'+1," in text


def test_numbers_for_people() -> None:
    assert (money(0), money(1), money(-1_500_000), hours(3_600_000), hours(1)) == (
        "0.000000",
        "0.000001",
        "-1.500000",
        "1.000000",
        "0.000000",
    )
