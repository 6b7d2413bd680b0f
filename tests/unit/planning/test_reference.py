"""The planner in use answers what the reference answers: the whole plan, for anything it may be given."""

from __future__ import annotations

import pytest
from clusters import ANYTHING, BACKFILLED, CALM, CONTENDED, LARGE, SHORT_ROUNDS, WIDE, Scenario, Size, clusters, seeded
from hypothesis import given, settings

from scheduler.core import reference
from scheduler.core.planner import plan

SIZES = {"anything": ANYTHING, "contended": CONTENDED, "calm": CALM, "backfilled": BACKFILLED, "short rounds": SHORT_ROUNDS}


def assert_same(given: Scenario) -> None:
    """Field by field, so that a failure says what differs."""
    done = plan(given.snapshot, given.now, given.limits)
    expected = reference.plan(given.snapshot, given.now, given.limits)
    for name in expected.__slots__:
        assert getattr(done, name) == getattr(expected, name), f"{name} differ"


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_same_plan_for_every_cluster(size: Size) -> None:
    @settings(max_examples=60, derandomize=True, database=None, deadline=None)
    @given(clusters(size))
    def same(drawn: Scenario) -> None:
        assert_same(drawn)

    same()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_same_plan_for_seeded_clusters(size: Size) -> None:
    for seed in range(100):
        assert_same(seeded(seed, size))


@pytest.mark.parametrize("seed", range(6))
def test_same_plan_where_much_waits(seed: int) -> None:
    assert_same(seeded(seed, LARGE))


@pytest.mark.parametrize("seed", range(6))
def test_same_plan_on_many_nodes(seed: int) -> None:
    assert_same(seeded(seed, WIDE))
