"""Checkpoints are let go by three numbers, and never the last one that is known to be good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from control_plane.attempts.retention import Retained, RetentionPolicy, released

policies = some.builds(
    RetentionPolicy,
    keep_latest=some.integers(2, 5),
    keep_best=some.integers(0, 3),
    keep_every_steps=some.sampled_from((0, 1, 5, 10)),
)
retained = some.lists(
    some.builds(
        Retained,
        step=some.integers(1, 60),
        metric=some.none() | some.floats(allow_nan=True, allow_infinity=True) | some.sampled_from((0.5, 1.0)),
        proven=some.booleans(),
        referenced=some.sampled_from((False, False, False, True)),
    ),
    unique_by=lambda one: one.step,
    max_size=30,
)


def test_each_number_keeps_its_own() -> None:
    checkpoints = [
        Retained(step, metric) for step, metric in ((5, 3.0), (10, 1.0), (15, 2.0), (20, 1.0), (25, 4.0), (30, None))
    ]
    assert released(checkpoints, RetentionPolicy(2, 0)) == [5, 10, 15, 20]
    assert released(checkpoints, RetentionPolicy(2, 1)) == [5, 15, 20]
    assert released(checkpoints, RetentionPolicy(2, 2)) == [5, 15]
    assert released(checkpoints, RetentionPolicy(2, 0, 10)) == [5, 15]
    assert released([*checkpoints, Retained(7, proven=True), Retained(8, referenced=True)], RetentionPolicy(2, 0, 5)) == []


def test_of_what_attempts_went_on_from_the_newest_stays() -> None:
    checkpoints = [Retained(1, proven=True), Retained(2, proven=True), Retained(3), Retained(4)]
    assert released(checkpoints, RetentionPolicy(2, 0)) == [1]


@pytest.mark.parametrize("numbers", [(1, 0, 0), (2, -1, 0), (2, 0, -1)])
def test_numbers_that_would_lose_a_run_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected keep_latest to be at least 2"):
        RetentionPolicy(*numbers)


@given(retained, policies)
def test_what_must_stay_stays(checkpoints: list[Retained], policy: RetentionPolicy) -> None:
    gone = set(released(checkpoints, policy))
    by_step = sorted(checkpoints, key=lambda one: one.step)
    assert gone <= {one.step for one in checkpoints}
    assert not gone & {one.step for one in by_step[-policy.keep_latest :]}
    assert not gone & {one.step for one in checkpoints if one.referenced}
    assert not gone & {one.step for one in [one for one in by_step if one.proven][-1:]}


@given(retained, policies)
def test_what_is_released_has_no_reason_to_stay(checkpoints: list[Retained], policy: RetentionPolicy) -> None:
    gone = set(released(checkpoints, policy))
    for one in checkpoints:
        if one.step in gone:
            assert not one.referenced
            assert not (policy.keep_every_steps and one.step % policy.keep_every_steps == 0)
            assert sum(other.step > one.step for other in checkpoints) >= policy.keep_latest


@given(retained, policies)
def test_the_best_is_never_worse_for_letting_others_go(checkpoints: list[Retained], policy: RetentionPolicy) -> None:
    gone = set(released(checkpoints, policy))
    measured = [one.metric for one in checkpoints if one.metric is not None and abs(one.metric) < float("inf")]
    kept = [one.metric for one in checkpoints if one.metric in measured and one.step not in gone]
    if policy.keep_best and measured:
        assert min(metric for metric in kept if metric is not None) == min(measured)


@given(retained, policies)
def test_applying_it_again_changes_nothing(checkpoints: list[Retained], policy: RetentionPolicy) -> None:
    gone = set(released(checkpoints, policy))
    assert released([one for one in checkpoints if one.step not in gone], policy) == []
