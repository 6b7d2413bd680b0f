"""Amounts, costs, prices, periods, variance: whole numbers with stated rounding, and nothing else let in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.costs import ACCELERATORS_MAX, HOUR_MS, KIND_CPU, RUN_MS_MAX, charge, held_ms, reservation
from governance.estimates import Range, variance
from governance.periods import PeriodKind, calendar_period, in_utc, one_off
from governance.prices import PRICE_MAX, Price, price_at
from governance.values import AMOUNT_MAX, LIMIT_MAX, Amounts, Book, InvalidValueError, total, whole

ACCELERATORS = st.integers(1, 4_096)
RUN_MS = st.integers(1, 2_592_000_000)
PRICES = st.integers(0, PRICE_MAX)
KINDS = st.sampled_from(["h200", KIND_CPU])
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9_000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  bounds without zone


@given(ACCELERATORS, RUN_MS, PRICES, KINDS)
def test_a_reservation_is_the_exact_cost_rounded_up(accelerators: int, run_ms: int, price: int, kind: str) -> None:
    held = held_ms(accelerators, run_ms)
    exact = Fraction(accelerators * run_ms * price, HOUR_MS)
    reserved = reservation(held, kind, price)
    assert 0 <= reserved.micros - exact < 1
    assert reserved.accelerator_ms == (0 if kind == KIND_CPU else accelerators * run_ms)


@given(ACCELERATORS, RUN_MS, PRICES, KINDS, st.data())
def test_a_charge_is_the_exact_cost_rounded_down_and_within_the_reservation(
    accelerators: int, run_ms: int, price: int, kind: str, data: st.DataObject
) -> None:
    held = held_ms(accelerators, run_ms)
    used = data.draw(st.integers(0, held))
    charged = charge(used, kind, price)
    assert 0 <= Fraction(used * price, HOUR_MS) - charged.micros < 1
    reserved = reservation(held, kind, price)
    assert charged.micros <= reserved.micros
    assert charged.accelerator_ms <= reserved.accelerator_ms


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), PRICES)
def test_charges_in_parts_are_never_more_than_in_one(parts: list[int], price: int) -> None:
    together = charge(sum(parts), "h200", price).micros
    apart = sum(charge(part, "h200", price).micros for part in parts)
    assert apart <= together < apart + len(parts)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), -0.0, 1.0, 1e308, True, None, "7", -1, 0, LIMIT_MAX + 1, 2**63, 10**400],
)
def test_what_is_no_amount_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^hard\.micros ") as caught:
        whole(value, "hard.micros", 1, LIMIT_MAX)
    assert caught.value.field == "hard.micros"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("accelerators", "run_ms", "field"),
    [
        (0, 1, "accelerators"),
        (-1, 1, "accelerators"),
        (ACCELERATORS_MAX + 1, 1, "accelerators"),
        (1, 0, "run_ms"),
        (1, -5, "run_ms"),
        (1, RUN_MS_MAX + 1, "run_ms"),
    ],
)
def test_a_lease_of_nothing_or_too_much_is_refused(accelerators: int, run_ms: int, field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        held_ms(accelerators, run_ms)
    assert caught.value.field == field


def test_a_cost_beyond_what_a_ledger_holds_is_refused() -> None:
    assert reservation(AMOUNT_MAX * HOUR_MS // PRICE_MAX, KIND_CPU, PRICE_MAX).micros == AMOUNT_MAX
    with pytest.raises(InvalidValueError, match="cost"):
        reservation(AMOUNT_MAX * HOUR_MS // PRICE_MAX + HOUR_MS, KIND_CPU, PRICE_MAX)


@given(st.lists(st.builds(Amounts, st.integers(), st.integers())))
def test_amounts_add_up_book_by_book(amounts: list[Amounts]) -> None:
    summed = total(amounts)
    for book in Book:
        assert summed.of(book) == sum(one.of(book) for one in amounts)
    assert not summed - summed
    assert summed + -summed == Amounts()


@given(MOMENTS, st.sampled_from([PeriodKind.MONTH, PeriodKind.QUARTER]))
def test_every_moment_is_in_one_period_of_the_calendar(at: datetime, kind: PeriodKind) -> None:
    period = calendar_period(kind, at)
    assert at in period
    assert (period.start.day, period.start.hour, period.end.day) == (1, 0, 1)
    months = (period.end.year - period.start.year) * 12 + period.end.month - period.start.month
    assert months == (1 if kind is PeriodKind.MONTH else 3)
    # The next begins where it ends, and each moment of it finds the same one.
    assert period.end not in period
    assert calendar_period(kind, period.end).start == period.end
    assert calendar_period(kind, period.end - timedelta(microseconds=1)) == period


def test_periods_are_those_of_utc_whatever_the_caller_s_zone() -> None:
    new_year_in_tokyo = datetime(2027, 1, 1, 8, 59, tzinfo=timezone(timedelta(hours=9)))
    assert calendar_period(PeriodKind.QUARTER, new_year_in_tokyo).start == datetime(2026, 10, 1, tzinfo=UTC)


def test_moments_that_are_none_are_refused() -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  the very case
    with pytest.raises(InvalidValueError, match="time zone"):
        in_utc(naive, "at")
    with pytest.raises(InvalidValueError, match="year"):
        calendar_period(PeriodKind.MONTH, datetime.max.replace(tzinfo=UTC))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(InvalidValueError, match="end_time"):
        one_off(at, at)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 50), PRICES), unique_by=lambda row: row[:2]),
    st.integers(0, 60),
    st.booleans(),
)
def test_the_price_in_force_is_the_newest_that_has_begun(rows: list[tuple[bool, int, int]], hour: int, spot: bool) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    prices = [Price("h200", is_spot, start + timedelta(hours=begins), micros) for is_spot, begins, micros in rows]
    begun = {
        of_spot: max(
            ((begins, micros) for is_spot, begins, micros in rows if is_spot == of_spot and begins <= hour), default=None
        )
        for of_spot in (True, False)
    }
    expected = (begun[True] if spot else None) or begun[False]
    found = price_at([*prices, Price("a100", False, start, 7)], "h200", spot, start + timedelta(hours=hour))
    assert (None if found is None else found.micros_per_hour) == (None if expected is None else expected[1])


@pytest.mark.parametrize("micros", [-1, PRICE_MAX + 1, float("nan"), True])
def test_a_price_is_a_whole_number_within_bounds(micros: Any) -> None:
    with pytest.raises(InvalidValueError, match="micros_per_hour"):
        Price("h200", False, datetime(2026, 1, 1, tzinfo=UTC), micros)
    with pytest.raises(InvalidValueError, match="kind"):
        Price("any", False, datetime(2026, 1, 1, tzinfo=UTC), 1)


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**16))
def test_variance_is_the_distance_to_the_estimate(low: int, more: int, actual: int) -> None:
    estimate = Range(low, low + more)
    found = variance(estimate, actual)
    assert low <= actual - found.difference <= low + more
    assert (found.difference == 0) == (low <= actual <= low + more)
    if estimate.high:
        assert found.percent_of_high is not None
        assert abs(Fraction(100 * actual, estimate.high) - found.percent_of_high) <= Fraction(1, 2)
    else:
        assert found.percent_of_high is None


def test_an_estimate_has_its_ends_in_order() -> None:
    for low, high in ((-1, 2), (3, 2)):
        with pytest.raises(InvalidValueError, match="estimate"):
            Range(low, high)
