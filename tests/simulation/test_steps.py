"""Levels that change in steps."""

from __future__ import annotations

import pytest

from scheduler.simulation.steps import differences, integral, means, quantile

# 2 from 0, 5 from 10, 1 from 20, 0 from 40.
CHANGES = [(0, 2), (10, 3), (20, -4), (40, -1)]


def test_a_level_comes_from_its_changes() -> None:
    assert differences([(0, 2), (10, 5), (20, 1), (40, 0)]) == CHANGES


@pytest.mark.parametrize(
    ("start", "end", "area"),
    [(0, 40, 20 + 50 + 20), (0, 10, 20), (5, 15, 10 + 25), (20, 30, 10), (0, 99, 90), (41, 99, 0)],
)
def test_an_integral_is_of_what_lies_between(start: int, end: int, area: int) -> None:
    assert integral(CHANGES, start, end) == area


def test_means_are_of_each_stretch() -> None:
    assert means(CHANGES, 0, 10, 5) == [2, 5, 1, 1, 0]
    assert means(CHANGES, 5, 10, 4) == [3.5, 3, 1, 0.5]
    assert sum(means(CHANGES, 0, 7, 6)) * 7 == pytest.approx(integral(CHANGES, 0, 42))


def test_quantiles_are_of_what_was_measured() -> None:
    assert [quantile([3, 1, 2, 4], share) for share in (0.5, 0.99, 0.01)] == [2, 4, 1]
    assert quantile([], 0.5) == 0
