"""The tests of the invariants can fail: each catches a rule that is broken on purpose."""

from __future__ import annotations

import pytest
from clusters import seeded
from invariants import ALWAYS, WITHOUT_RESERVATIONS, Case, Planner
from mutants import MUTANTS, UNFAIR, BrokenRule, Mutant

from benchmarks.fairness_error import WaterFilling, contest, held_in_steady_state
from scheduler.core import reference

_SEEDS = 1_500


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_catches_a_broken_rule(mutant: Mutant) -> None:
    def search() -> None:
        for seed in range(_SEEDS):
            mutant.catches(Case(seeded(seed, mutant.size), broken))

    with mutant.planner() as broken, pytest.raises(AssertionError):
        search()


def test_every_invariant_has_a_mutant() -> None:
    assert {mutant.catches for mutant in MUTANTS.values()} == {*ALWAYS, *WITHOUT_RESERVATIONS}


@pytest.mark.parametrize("mutant", UNFAIR.values(), ids=UNFAIR.keys())
def test_unfair_shares_are_told_from_exact_ones(mutant: BrokenRule) -> None:
    assert _jobs_off(reference.plan) <= 1
    with mutant.planner() as broken:
        assert _jobs_off(broken) > 1


def _jobs_off(planner: Planner) -> float:
    """The most that a queue's share is off in some small contests, in jobs."""
    contests = [contest(seed, queues=3, accelerators=30) for seed in range(3)]
    held = [held_in_steady_state(given, rounds=5, planner=planner) for given in contests]
    exact = [WaterFilling(given).shares() for given in contests]
    return float(max(abs(h[queue] - share) for h, shares in zip(held, exact, strict=True) for queue, share in shares.items()))
