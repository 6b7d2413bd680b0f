"""What waits, in lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rounds import HIGH, LOW, SECOND, job, request, shape

from scheduler.core import Backlog, GroupKey, PriorityClass, Request, Topology, TopologyMode

AGING = 60 * SECOND


def lines(backlog: Backlog[Request]) -> dict[GroupKey, list[str]]:
    return {key: [item.request_id for item in line] for key, line in backlog.lines()}


def test_a_line_is_first_in_first_out_but_a_point_of_priority_is_worth_a_minute() -> None:
    early, late, better = request("early", waited=120), request("late"), request("better", priority=501, waited=61)
    best = request("best", priority=502, waited=1)
    backlog = Backlog([late, early, better, best], aging_micros=AGING)
    assert [item.request_id for item in backlog] == ["better", "best", "early", "late"]


def test_lines_are_by_queue_class_shape_and_type_in_order() -> None:
    near = shape(1, topology=Topology("rack", TopologyMode.REQUIRED))
    requests = [
        request("b", queue="b"),
        request("gang", shape(1, 2)),
        request("near", near),
        request("high", priority=HIGH),
        request("low", priority=LOW),
    ]
    assert [*lines(Backlog(requests, aging_micros=AGING)).items()] == [
        (GroupKey("b", PriorityClass.NORMAL, shape()), ["b"]),
        (GroupKey("q", PriorityClass.LOW, shape()), ["low"]),
        (GroupKey("q", PriorityClass.NORMAL, near), ["near"]),
        (GroupKey("q", PriorityClass.NORMAL, shape(1, 2)), ["gang"]),
        (GroupKey("q", PriorityClass.HIGH, shape()), ["high"]),
    ]
    jobs = Backlog([job("x", job_type="x"), job("y", job_type="y")], aging_micros=AGING)
    assert [key.job_type for key, _ in jobs.lines()] == ["x", "y"]


def test_what_is_removed_is_gone_and_so_is_a_line_that_is_empty() -> None:
    backlog = Backlog([request("a"), request("b", 2)], aging_micros=AGING)
    assert backlog.remove("a").request_id == "a"
    assert (len(backlog), backlog.get("a"), backlog.get("b")) == (1, None, request("b", 2))
    assert lines(backlog) == {GroupKey("q", PriorityClass.NORMAL, shape(2)): ["b"]}


def test_those_with_a_claim_are_known() -> None:
    claiming = request("c", claim=(("n1", 1),))
    backlog = Backlog([request("a"), claiming], aging_micros=AGING)
    assert [*backlog.claimed()] == [claiming]
    backlog.remove("c")
    assert not [*backlog.claimed()]


def test_an_id_waits_once() -> None:
    backlog = Backlog([request("a")], aging_micros=AGING)
    with pytest.raises(ValueError, match="a waits already; expected an id that the backlog does not hold"):
        backlog.add(request("a", 2))
    with pytest.raises(KeyError, match="b does not wait; expected one of the 1"):
        backlog.remove("b")
    assert [*backlog] == [request("a")]


@given(some.lists(some.tuples(some.integers(0, 9), some.sampled_from((100, 101, 500)), some.integers(0, 5)), max_size=30))
def test_added_one_by_one_is_as_built_at_once(drawn: list[tuple[int, int, int]]) -> None:
    requests = [
        request(str(number), 1 + waited % 2, waited=waited, priority=priority)
        for number, (waited, priority, _) in enumerate(drawn)
    ]
    backlog = Backlog[Request](aging_micros=SECOND)
    for each in requests:
        backlog.add(each)
    gone = {each.request_id for each, (_, _, fate) in zip(requests, drawn, strict=True) if fate == 0}
    for name in gone:
        backlog.remove(name)
    built = Backlog((each for each in reversed(requests) if each.request_id not in gone), aging_micros=SECOND)
    assert [*backlog] == [*built]
    assert lines(backlog) == lines(built)
