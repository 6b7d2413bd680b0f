"""Rule 5 to 7, 11: what fits where, and what is free for whom."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as some

from scheduler.core.cluster import Cluster
from scheduler.core.reasons import ExceedsMaximum, Fragmented, NoCapacity
from scheduler.core.reference import fitting
from scheduler.core.types import (
    Amounts,
    Micros,
    Node,
    Placement,
    Pool,
    Request,
    Reservation,
    Resource,
    Shape,
    Topology,
    TopologyMode,
)

NOW = Micros(1_000)
LATER = Micros(5_000)
GPU_POOL = Pool("gpu", "h100", price=5)


def node(name: str, accelerators: int = 8, *, pool: str = "gpu", cpu: int = 64, memory: int = 512, **more: str | bool) -> Node:
    cordoned = bool(more.pop("cordoned", False))
    labels = tuple(sorted((key, str(value)) for key, value in more.items()))
    return Node(name, f"{name}-1", pool, (accelerators, cpu, memory), NOW, cordoned=cordoned, labels=labels)


def shape(accelerators: int, members: int = 1, *, cpu: int = 0, memory: int = 0, **more: str) -> Shape:
    topology = None
    if mode := more.pop("topology", ""):
        topology = Topology("rack", TopologyMode(mode))
    return Shape(
        more.pop("kind", "h100"), (accelerators, cpu, memory), members, labels=tuple(sorted(more.items())), topology=topology
    )


def cluster(*nodes: Node, lost: frozenset[str] = frozenset(), pools: tuple[Pool, ...] = (GPU_POOL,)) -> Cluster:
    return Cluster(pools, nodes, lost, NOW)


def held(of: Cluster, **by_node: int) -> Cluster:
    """With so many accelerators held on each node."""
    for name, accelerators in by_node.items():
        of.take(((name, accelerators),), (1, 0, 0), LATER)
    return of


def test_a_member_goes_to_the_tightest_node_that_holds_it() -> None:
    three = held(cluster(node("a"), node("b"), node("c")), a=1, b=5, c=6)
    assert three.place(shape(3), "gpu") == (("b", 1),)


def test_of_equally_tight_nodes_that_with_less_cpu_then_the_first_by_name() -> None:
    assert cluster(node("a", cpu=64), node("b", cpu=32), node("c", cpu=32)).place(shape(1), "gpu") == (("b", 1),)


def test_memory_does_not_make_a_node_tighter() -> None:
    assert cluster(node("b", memory=64), node("a", memory=512)).place(shape(1, memory=8), "gpu") == (("a", 1),)


def test_cpu_and_memory_must_fit_too() -> None:
    three = cluster(node("a", 1, cpu=4, memory=512), node("b", 2, cpu=64, memory=4), node("c", 8))
    assert three.place(shape(1, cpu=8, memory=8), "gpu") == (("c", 1),)


def test_a_shape_without_accelerators_goes_by_cpu_then_memory() -> None:
    four = cluster(node("a", 0, cpu=64), node("b", 8, cpu=16, memory=64), node("c", 0, cpu=16, memory=32), node("d", 0, cpu=4))
    assert four.place(shape(0, cpu=8, memory=8), "gpu") == (("c", 1),)


def test_members_fill_one_node_up_before_the_next() -> None:
    assert held(cluster(node("a"), node("b")), b=2).place(shape(2, 5), "gpu") == (("a", 2), ("b", 3))


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    assert cluster(node("a"), node("b")).place(shape(8, 3), "gpu") is None


def test_nothing_new_goes_to_cordoned_and_lost_nodes() -> None:
    two = cluster(node("a", 4, cordoned=True), node("b", 4), node("c", 8), lost=frozenset({"b"}))
    assert two.place(shape(1), "gpu") == (("c", 1),)
    assert not two.fits(shape(1, 9), "gpu")


def test_labels_bind() -> None:
    two = cluster(node("a", disk="ssd"), node("b", disk="nvme"))
    assert two.place(shape(1, disk="nvme"), "gpu") == (("b", 1),)
    assert two.place(shape(1, disk="tape"), "gpu") is None


RACKS = (
    node("a1", rack="a"),
    node("a2", rack="a"),
    node("b1", rack="b"),
    node("b2", rack="b"),
    node("b3", rack="b"),
    node("x"),
)


def test_required_takes_the_domain_with_least_left_over() -> None:
    assert cluster(*RACKS).place(shape(8, 2, topology="required"), "gpu") == (("a1", 1), ("a2", 1))
    assert cluster(*RACKS).place(shape(8, 4, topology="required"), "gpu") is None


def test_balanced_takes_the_domain_with_most_left_over() -> None:
    assert cluster(*RACKS).place(shape(8, 2, topology="balanced"), "gpu") == (("b1", 1), ("b2", 1))


def test_preferred_spreads_over_the_roomiest_domains_first_and_nodes_without_domain_last() -> None:
    assert cluster(*RACKS).place(shape(8, 4, topology="preferred"), "gpu") == (("a1", 1), ("b1", 1), ("b2", 1), ("b3", 1))
    assert cluster(*RACKS).place(shape(8, 6, topology="preferred"), "gpu") == tuple((each.name, 1) for each in RACKS)
    assert cluster(*RACKS).place(shape(8, 7, topology="preferred"), "gpu") is None


def test_domains_are_counted_anew_as_nodes_fill() -> None:
    racks = cluster(*RACKS)
    gang = shape(8, 2, topology="required")
    placed: list[Placement] = []
    while (placement := racks.place(gang, "gpu")) is not None:
        racks.take(placement, gang.member, LATER)
        placed.append(placement)
    assert placed == [(("a1", 1), ("a2", 1)), (("b1", 1), ("b2", 1))]


def test_plainly_is_by_name() -> None:
    assert held(cluster(node("a"), node("b")), b=7).place_plainly(shape(1), "gpu") == (("a", 1),)
    assert cluster(*RACKS).place_plainly(shape(8, 3, topology="required"), "gpu") == (("b1", 1), ("b2", 1), ("b3", 1))


# What is free for whom


def test_what_is_claimed_is_kept_from_others_beyond_what_victims_hold() -> None:
    one = cluster(node("a"))
    one.take((("a", 1),), (5, 0, 0), LATER, "r")
    one.claim("r", (("a", 1),), (8, 0, 0))
    assert one.free(shape(1), "gpu")[0] == 0
    one.give((("a", 1),), (5, 0, 0), LATER, "r")
    assert one.free(shape(1), "gpu")[0] == 0
    one.unclaim("r")
    assert one.free(shape(1), "gpu")[0] == 8


def test_what_victims_hold_beyond_the_claim_becomes_free() -> None:
    one = cluster(node("a"))
    one.claim("r", (("a", 1),), (2, 0, 0))
    one.take((("a", 1),), (5, 0, 0), LATER, "r")
    assert one.free(shape(1), "gpu")[0] == 3
    one.give((("a", 1),), (5, 0, 0), LATER, "r")
    assert one.free(shape(1), "gpu")[0] == 6


def request(claim: Placement, accelerators: int) -> Request:
    return Request("r", "j", "q", shape(accelerators), 500, NOW, 100, claim)


def test_a_claim_is_ready_when_all_of_it_is_free_for_its_owner() -> None:
    one = cluster(node("a"))
    one.take((("a", 1),), (5, 0, 0), LATER, "r")
    one.claim("r", (("a", 1),), (4, 0, 0))
    assert one.pool_of_claim(request((("a", 1),), 4)) is None
    one.give((("a", 1),), (5, 0, 0), LATER, "r")
    assert one.pool_of_claim(request((("a", 1),), 4)) == GPU_POOL


def test_a_claim_on_a_node_that_is_gone_does_not_live() -> None:
    two = cluster(node("a"), node("b"), lost=frozenset({"b"}))
    assert two.claim_lives(request((("a", 1),), 4))
    assert not two.claim_lives(request((("b", 1),), 4))
    assert not two.claim_lives(request((("gone", 1),), 4))
    assert two.pool_of_claim(request((("gone", 1),), 4)) is None


def test_a_claim_is_made_once() -> None:
    one = cluster(node("a"))
    one.claim("r", (("a", 1),), (4, 0, 0))
    with pytest.raises(ValueError, match="request r has a claim already"):
        one.claim("r", (("a", 1),), (4, 0, 0))


# Why not


def test_capacity_names_the_pool_with_most_free() -> None:
    pools = (GPU_POOL, Pool("other", "h100"), Pool("cpu", "cpu"))
    both = held(cluster(node("a"), node("b", 4, pool="other"), pools=pools), a=7)
    assert both.shortage(shape(6)) == NoCapacity(requested=6, free=4, total=4, kind="h100")
    assert both.shortage(shape(1, cpu=100)) == NoCapacity(100, 64, 64, "h100", "cpu_millis")
    assert both.shortage(shape(1, kind="a100")) == NoCapacity(1, 0, 0, "a100")


def test_placement_when_enough_is_free_in_pieces() -> None:
    two = held(cluster(node("a"), node("b")), a=3, b=4)
    assert two.shortage(shape(3, 3)) == Fragmented(requested=3, placeable=2, free=9, kind="h100")
    assert two.shortage(shape(3, 2)) is None


def test_exceeds_counts_cordoned_and_lost_nodes_as_what_could_be() -> None:
    three = held(cluster(node("a", cordoned=True), node("b"), lost=frozenset({"b"})), a=8)
    assert three.exceeds(shape(8, 2)) is None
    assert three.fits_empty(shape(8, 2), "gpu")
    assert three.exceeds(shape(8, 3)) == ExceedsMaximum(requested=24, maximum=16, kind="h100")
    assert three.exceeds(shape(16)) == ExceedsMaximum(requested=16, maximum=8, kind="h100")
    assert three.exceeds(shape(1, cpu=65)) == ExceedsMaximum(65, 64, "h100", "cpu_millis")
    assert three.exceeds(shape(8, kind="a100")) is None


# Any cluster

small = some.integers(0, 4)
amounts: some.SearchStrategy[Amounts] = some.tuples(small, some.integers(0, 6), some.integers(0, 6))


@some.composite
def clusters(draw: some.DrawFn) -> list[Node]:
    count = draw(some.integers(1, 8))
    return [
        Node(
            f"n{number}",
            "1",
            "gpu",
            draw(amounts),
            NOW,
            cordoned=draw(some.integers(0, 5)) == 0,
            labels=tuple((key, value) for key in ("disk", "rack") if (value := draw(some.sampled_from(["", "a", "b", "c"])))),
        )
        for number in range(count)
    ]


@some.composite
def shapes(draw: some.DrawFn) -> Shape:
    mode = draw(some.sampled_from([None, *TopologyMode]))
    labels = draw(some.sampled_from([(), (("disk", "a"),), (("disk", "b"),)]))
    member = draw(some.tuples(some.integers(0, 3), some.integers(0, 3), some.integers(0, 3)))
    topology = None if mode is None else Topology("rack", mode)
    return Shape("h100", member, draw(some.integers(1, 6)), labels=labels, topology=topology)


@given(clusters(), some.lists(some.tuples(shapes(), some.booleans()), max_size=10))
def test_placing_is_as_a_naive_search_finds_and_nothing_is_oversubscribed(
    nodes: list[Node], steps: list[tuple[Shape, bool]]
) -> None:
    ours = cluster(*nodes)
    free = {each.name: each.total for each in nodes}
    domains = {each.name: value for each in nodes for key, value in each.labels if key == "rack"}
    taken: list[tuple[Placement, Shape]] = []
    for wanted, give_back in steps:
        room = {each.name: free[each.name] for each in nodes if not each.cordoned and set(wanted.labels) <= set(each.labels)}
        expected = fitting.place(wanted, room, domains)
        assert ours.place(wanted, "gpu") == expected
        assert ours.place_plainly(wanted, "gpu") == fitting.place_plainly(wanted, room, domains)
        assert ours.placeable(wanted, "gpu") == fitting.placeable(wanted, room, domains)
        assert ours.fits(wanted, "gpu") is (expected is not None)
        assert ours.free(wanted, "gpu") == tuple(sum(of[resource] for of in room.values()) for resource in Resource)
        if expected is not None:
            taken.append((expected, wanted))
            ours.take(expected, wanted.member, LATER)
            free |= {name: _minus(free[name], wanted.member, count) for name, count in expected}
            assert all(min(of) >= 0 for of in free.values())
        if give_back and taken:
            placement, gone = taken.pop(0)
            ours.give(placement, gone.member, LATER)
            free |= {name: _minus(free[name], gone.member, -count) for name, count in placement}


def _minus(one: Amounts, member: Amounts, count: int) -> Amounts:
    return one[0] - member[0] * count, one[1] - member[1] * count, one[2] - member[2] * count


Change = tuple[str, Mapping[str, int], Amounts, int]


@given(
    clusters(),
    some.lists(
        some.tuples(
            some.sampled_from(["take", "yield", "claim"]),
            some.dictionaries(some.sampled_from([f"n{number}" for number in range(8)]), some.integers(1, 3), max_size=3),
            some.tuples(small, small, small),
            some.integers(0, 9_000),
        ),
        max_size=8,
    ),
    some.lists(shapes(), min_size=1, max_size=3),
    some.booleans(),
)
def test_giving_back_restores_exactly(nodes: list[Node], changes: list[Change], asked: list[Shape], reserving: bool) -> None:
    ours = cluster(*nodes)
    if reserving:
        ours.reserve(Reservation("other", "gpu", LATER, ((nodes[0].name, 1),)), shape(1))

    def seen() -> list[object]:
        return [
            (ours.place(each, "gpu", lasting=lasting), ours.placeable(each, "gpu"), ours.free(each, "gpu"))
            for each in asked
            for lasting in (False, True)
        ]

    before = seen()
    for number, (what, on, member, ends) in enumerate(changes):
        placement = tuple(sorted(on.items()))
        if what == "claim":
            ours.claim(f"r{number}", placement, member)
        else:
            ours.take(placement, member, Micros(ends), f"r{number + 1}" if what == "yield" else None)
        seen()
    for number, (what, on, member, ends) in reversed([*enumerate(changes)]):
        if what == "claim":
            ours.unclaim(f"r{number}")
        else:
            ours.give(tuple(sorted(on.items())), member, Micros(ends), f"r{number + 1}" if what == "yield" else None)
    assert seen() == before
