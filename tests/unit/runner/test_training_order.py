"""Data order and learning rate are functions of place and step alone."""

from __future__ import annotations

import pytest

from control_plane.jobs.spec import TrainingSpec
from workers.runner.training.order import DataOrder, learning_rate


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    places = DataOrder(10, seed=3).take(0, 30)
    epochs = [places[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len(set(map(tuple, epochs))) == 3


def test_taking_up_anywhere_gives_the_same_rows() -> None:
    whole = DataOrder(7, seed=1).take(0, 40)
    assert [DataOrder(7, seed=1).take(place, 3) for place in range(0, 39, 3)] == [
        whole[place : place + 3] for place in range(0, 39, 3)
    ]


def test_seeds_give_orders_that_do_not_meet_in_another_epoch() -> None:
    first, second = DataOrder(10, seed=0).take(0, 40), DataOrder(10, seed=1).take(0, 40)
    assert not {tuple(first[at : at + 10]) for at in (0, 10, 20, 30)} & {tuple(second[at : at + 10]) for at in (0, 10, 20, 30)}


def test_the_rate_rises_to_its_peak_and_falls_but_never_to_zero() -> None:
    spec = TrainingSpec(steps=10, warmup_steps=2, learning_rate=0.3)
    rates = [learning_rate(spec, step) for step in range(10)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.2625, 0.225, 0.1875, 0.15, 0.1125, 0.075, 0.0375])


@pytest.mark.parametrize(
    "spec",
    [TrainingSpec(steps=1), TrainingSpec(steps=3, warmup_steps=3), TrainingSpec(steps=3, warmup_steps=0)],
)
def test_short_runs_have_a_rate_at_every_step(spec: TrainingSpec) -> None:
    rates = [learning_rate(spec, step) for step in range(spec.steps)]
    assert all(0 < rate <= spec.learning_rate for rate in rates)
