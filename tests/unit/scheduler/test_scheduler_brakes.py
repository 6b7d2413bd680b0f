"""Brakes of preemption, and how past use fades."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.brakes import HOUR_MICROS, BrakeLimits, PreemptionBrakes
from scheduler.core.types import Brakes, Micros
from scheduler.decay import decayed

DAY = 24 * HOUR_MICROS
LIMITS = BrakeLimits(burst=4, per_hour=2, waste_ms_per_hour=1_000)


def at(hours: float) -> Micros:
    return Micros(1_000 * DAY + int(hours * HOUR_MICROS))


def test_a_bucket_holds_a_burst_and_drips() -> None:
    brakes = PreemptionBrakes(LIMITS)
    assert brakes.left(at(0)) == Brakes(4, 1_000)
    for _ in range(4):
        brakes.spend(at(0), 100)
    assert brakes.left(at(0)) == Brakes(0, 600)
    assert brakes.left(at(0.4)).preemptions_left == 0
    assert brakes.left(at(0.5)).preemptions_left == 1
    assert brakes.left(at(1.5)) == Brakes(3, 1_000), "what was wasted is more than an hour ago"
    assert brakes.left(at(90)).preemptions_left == 4


@given(st.lists(st.tuples(st.integers(0, HOUR_MICROS), st.integers(0, 500)), max_size=12), st.integers(0, HOUR_MICROS))
def test_a_successor_rebuilds_them_from_what_was_spent(spent: list[tuple[int, int]], later: int) -> None:
    ordered = sorted((Micros(at(0) + offset), lost) for offset, lost in spent)
    kept = PreemptionBrakes(LIMITS)
    for moment, lost in ordered:
        kept.left(moment)
        kept.spend(moment, lost)
    now = Micros(at(1) + later)
    assert PreemptionBrakes(LIMITS, ordered).left(now) == kept.left(now)


@given(st.integers(0, 10**15), st.integers(1, 60 * DAY), st.integers(0, 10))
def test_half_is_left_after_each_half_life(amount: int, half_life: int, halvings: int) -> None:
    assert decayed(amount, halvings * half_life, half_life) == amount >> halvings


@given(st.integers(0, 10**15), st.integers(0, 90 * DAY), st.integers(0, 90 * DAY))
def test_it_fades_as_an_exponential_in_any_number_of_steps(amount: int, first: int, then: int) -> None:
    week = 7 * DAY
    exact = amount * 2 ** (-(first + then) / week)
    once = decayed(amount, first + then, week)
    twice = decayed(decayed(amount, first, week), then, week)
    for found in (once, twice):
        assert exact * 0.9999 - 40 <= found <= exact * 1.0001 + 1
    assert decayed(amount, first, week) >= once
