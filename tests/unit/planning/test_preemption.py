"""Rule 9: who yields to whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from benchmarks.preemption_world import random_world
from scheduler.core.cluster import Cluster
from scheduler.core.preemption import Eviction, Preemption
from scheduler.core.quota import QuotaTree
from scheduler.core.reservation import reserve
from scheduler.core.types import (
    Amounts,
    Brakes,
    Cell,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Pool,
    PriorityClass,
    QueueNode,
    Quota,
    Request,
    Resource,
    Shape,
    Topology,
    TopologyMode,
    class_of,
)

SECOND = 1_000_000
NOW = Micros(1_000 * SECOND)
GPUS: Cell = ("gpu", Resource.ACCELERATORS)
UNBRAKED = Brakes(preemptions_left=1_000, waste_ms_left=10**12)
LOW, NORMAL, HIGH = 200, 500, 800


def team(name: str, nominal: int | Quota = 0, *, parent: str = "root", weight: int = 1_000, demoted: bool = False) -> QueueNode:
    quota = nominal if isinstance(nominal, Quota) else Quota(nominal)
    return QueueNode(name, parent, weight, {GPUS: quota}, demoted=demoted)


def lease(
    name: str,
    queue: str,
    accelerators: int,
    on: str,
    *,
    priority: int = NORMAL,
    ran: int = 500,
    checkpointed: int | None = None,
    yields_to: str | None = None,
) -> Lease:
    """That has run for so many seconds, and was checkpointed so many seconds ago; `on` names its nodes, a member on each."""
    placement: Placement = tuple((node, 1) for node in on.split())
    return Lease(
        lease_id=name,
        job_id=f"job-{name}",
        queue=queue,
        shape=Shape("h100", (accelerators, 0, 0), len(placement)),
        priority=priority,
        submitted=Micros(0),
        run_micros=10_000 * SECOND,
        pool="gpu",
        placement=placement,
        incarnations=("1",) * len(placement),
        granted=Micros(NOW - ran * SECOND),
        expires=Micros(NOW + SECOND),
        checkpointed=None if checkpointed is None else Micros(NOW - checkpointed * SECOND),
        preempted_for=yields_to,
    )


def asks(
    queue: str,
    accelerators: int,
    members: int = 1,
    *,
    name: str = "r",
    priority: int = NORMAL,
    preempted: bool = False,
    claim: Placement = (),
    run: int = 100,
    topology: Topology | None = None,
    **labels: str,
) -> Request:
    shape = Shape("h100", (accelerators, 0, 0), members, labels=tuple(labels.items()), topology=topology)
    return Request(name, f"job-{name}", queue, shape, priority, Micros(0), run * SECOND, claim, preempted)


@dataclass
class Held:
    """A small cluster, and who holds what of it."""

    nodes: Mapping[str, int]
    tree: tuple[QueueNode, ...]
    leases: tuple[Lease, ...]
    labels: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict[str, tuple[tuple[str, str], ...]])
    claimed: tuple[Request, ...] = ()
    brakes: Brakes = UNBRAKED
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        nodes = [
            Node(name, "1", "gpu", (size, 64, 64), NOW, labels=self.labels.get(name, ())) for name, size in self.nodes.items()
        ]
        self.cluster = Cluster((Pool("gpu", "h100"),), nodes, frozenset(), NOW)
        tree = (QueueNode("root", None), *self.tree)
        self.quota = QuotaTree(tree, (), {"gpu": self.cluster.capacity("gpu")}, buckets=self.limits.cost_buckets)
        for each in self.leases:
            self.cluster.take_lease(each)
            self.quota.add(self.quota.leaf(each.queue), "gpu", each.shape.total)
        for request in self.claimed:
            self.cluster.claim(request.request_id, request.claim, request.shape.member)

    def preemption(self) -> Preemption:
        return Preemption(self.cluster, self.quota, self.leases, self.claimed, self.brakes, self.limits, NOW)

    def evict(self, request: Request) -> list[str] | None:
        """The ids of those who yield."""
        return victims(self.preemption().evict(request, ["gpu"]))


def victims(eviction: Eviction | None) -> list[str] | None:
    return None if eviction is None else [preempt.lease_id for preempt in eviction.preemptions]


# (a) In one queue


def test_in_its_own_queue_a_request_displaces_a_lower_class() -> None:
    held = Held({"a": 8}, (team("q"),), (lease("z", "q", 8, "a", priority=LOW),))
    found = held.preemption().evict(asks("q", 8), ["gpu"])
    assert found is not None
    assert found.claim.placement == (("a", 1),)
    (preempt,) = found.preemptions
    assert (preempt.lease_id, preempt.job_id, preempt.request_id) == ("z", "job-z", "r")
    assert preempt.lost_ms == 8 * 500_000


def test_in_its_own_queue_it_does_not_displace_its_own_class() -> None:
    assert Held({"a": 8}, (team("q"),), (lease("z", "q", 8, "a"),)).evict(asks("q", 8)) is None


def test_a_demoted_queue_is_of_the_lowest_class_whatever_its_priority() -> None:
    tree = (team("q", demoted=True), team("p", 8))
    held = Held({"a": 8}, tree, (lease("z", "q", 8, "a", priority=LOW),))
    assert held.evict(asks("q", 8, priority=HIGH)) is None
    assert held.evict(asks("p", 8, priority=LOW)) == ["z"]


# (b) Between queues


def test_who_is_within_nominal_reclaims_it_from_who_borrows_of_whatever_class() -> None:
    held = Held(
        {"a": 8},
        (team("q", 4), team("p", 4)),
        (lease("z1", "p", 4, "a", priority=HIGH), lease("z2", "p", 4, "a", priority=HIGH)),
    )
    assert held.evict(asks("q", 4, priority=LOW)) == ["z1"]


def test_a_large_lease_that_is_mostly_borrowed_is_reclaimed_though_its_queue_falls_below_nominal() -> None:
    held = Held({"a": 8}, (team("q", 4), team("p", 4)), (lease("z", "p", 8, "a"),))
    assert held.evict(asks("q", 1)) == ["z"]


def test_work_within_nominal_is_never_displaced_by_another_queue() -> None:
    held = Held({"a": 8}, (team("q", 4), team("p", 8)), (lease("z", "p", 8, "a", priority=LOW),))
    assert held.evict(asks("q", 4, priority=HIGH)) is None


def test_a_queue_that_borrows_in_one_pool_keeps_what_is_its_own_in_another() -> None:
    tree = (team("q"), QueueNode("p", "root", quotas={GPUS: Quota(8), ("other", Resource.ACCELERATORS): Quota(0)}))
    nodes = [Node("a", "1", "gpu", (8, 0, 0), NOW), Node("b", "1", "other", (8, 0, 0), NOW)]
    cluster = Cluster((Pool("gpu", "h100"), Pool("other", "h100")), nodes, frozenset(), NOW)
    leases = (lease("own", "p", 8, "a"), replace(lease("borrowed", "p", 8, "b"), pool="other"))
    quota = QuotaTree(
        (QueueNode("root", None), *tree), (), {pool: cluster.capacity(pool) for pool in ("gpu", "other")}, buckets=1_000
    )
    for each in leases:
        cluster.take_lease(each)
        quota.add(quota.leaf(each.queue), each.pool, each.shape.total)
    preemption = Preemption(cluster, quota, leases, (), UNBRAKED, Limits(), NOW)
    assert preemption.evict(asks("q", 1), ["gpu"]) is None
    assert victims(preemption.evict(asks("q", 1), ["other"])) is None
    assert preemption.brakes == UNBRAKED


def test_between_borrowers_the_costlier_yields_while_it_stays_so() -> None:
    eight = tuple(lease(f"z{number}", "p", 1, "a") for number in range(8))
    assert Held({"a": 8}, (team("q"), team("p")), eight).evict(asks("q", 3)) == ["z0", "z1", "z2"]
    assert Held({"a": 8}, (team("q"), team("p")), eight).evict(asks("q", 4)) is None


def test_weight_divides_the_cost() -> None:
    eight = tuple(lease(f"z{number}", "p", 1, "a") for number in range(8))
    held = Held({"a": 8}, (team("q", weight=2_000), team("p")), eight)
    assert held.evict(asks("q", 5)) == ["z0", "z1", "z2", "z3", "z4"]


def test_for_fair_share_nobody_displaces_a_higher_class() -> None:
    eight = tuple(lease(f"z{number}", "p", 1, "a", priority=HIGH) for number in range(8))
    assert Held({"a": 8}, (team("q"), team("p")), eight).evict(asks("q", 1)) is None


def test_sides_are_the_children_of_the_lowest_node_above_both() -> None:
    tree = (team("T", 4), team("U", 4), team("t1", parent="T"), team("t2", parent="T"), team("u", parent="U"))
    leases = (lease("x", "t2", 4, "a"), lease("y", "u", 4, "a"))
    # T uses its 4 and U its 4: nothing to reclaim from U; inside T t2 costs more than t1 would with 1 of its leases gone.
    assert Held({"a": 8}, tree, leases).evict(asks("t1", 1)) is None
    halves = (lease("x1", "t2", 2, "a"), lease("x2", "t2", 2, "a"), lease("y", "u", 4, "a"))
    assert Held({"a": 8}, tree, halves).evict(asks("t1", 1)) == ["x1"]


# Who of those who may


def test_the_lowest_class_goes_first_then_what_loses_least_then_the_newest() -> None:
    leases = (
        lease("high", "p", 2, "a", priority=HIGH, checkpointed=1),
        lease("long-unsafe", "p", 2, "b", ran=900, checkpointed=300),
        lease("just-safe", "p", 2, "c", ran=900, checkpointed=10),
        lease("as-safe-and-newer", "p", 2, "d", ran=800, checkpointed=10),
    )
    for members, expected in ((1, ["as-safe-and-newer"]), (4, ["as-safe-and-newer", "just-safe", "long-unsafe", "high"])):
        held = Held(dict.fromkeys("abcd", 2), (team("q", 8), team("p")), leases)
        assert held.evict(asks("q", 2, members)) == expected


def test_room_is_made_on_one_node_not_a_little_on_each() -> None:
    leases = [lease(f"{on}{number}", "p", 1, on, checkpointed=number + 1) for on in "abc" for number in range(4)]
    cheapest = [replace(each, checkpointed=Micros(NOW - SECOND)) if each.lease_id[0] == "b" else each for each in leases]
    held = Held(dict.fromkeys("abc", 4), (team("q", 4), team("p", 8)), tuple(cheapest))
    assert held.evict(asks("q", 4)) == ["b0", "b1", "b2", "b3"]


def test_who_need_not_go_keeps_its_place() -> None:
    leases = (lease("small", "p", 1, "a", checkpointed=1), lease("large", "p", 7, "a", checkpointed=2))
    assert Held({"a": 8}, (team("q", 8), team("p")), leases).evict(asks("q", 7)) == ["large"]


def test_no_more_is_reclaimed_than_was_borrowed() -> None:
    leases = (lease("z1", "p", 4, "a"), lease("z2", "p", 4, "a"))
    assert Held({"a": 8}, (team("q", 8), team("p", 4)), leases).evict(asks("q", 8)) is None


def test_who_may_go_only_with_another_stays_if_the_other_need_not_go() -> None:
    # With `own` gone the request is within nominal, and reclaims z; but `own` would not have to go, and with it
    # there the request borrows.
    leases = (lease("own", "q", 2, "a", priority=LOW), lease("z", "p", 6, "a"))
    assert Held({"a": 8}, (team("q", 5), team("p")), leases).evict(asks("q", 5, priority=HIGH)) is None


def test_a_node_where_it_comes_to_nothing_is_as_before() -> None:
    # p borrows 4: of node a no more can be reclaimed, and it takes none of the two tokens.
    cheap = [lease(f"a{number}", "p", 2, "a", checkpointed=1) for number in range(4)]
    leases = (*cheap, lease("rest", "p", 4, "c", checkpointed=300), lease("z", "t", 8, "b", checkpointed=9))
    held = Held({"a": 8, "b": 8, "c": 4}, (team("q", 8), team("p", 8), team("t")), leases, brakes=Brakes(2, 10**9))
    assert held.evict(asks("q", 8)) == ["z"]


def test_a_gang_goes_as_a_whole() -> None:
    held = Held({"a": 8, "b": 8}, (team("q", 8), team("p")), (lease("gang", "p", 8, "a b"),))
    found = held.preemption().evict(asks("q", 8), ["gpu"])
    assert found is not None
    assert (victims(found), found.claim.placement) == (["gang"], (("a", 1),))


def test_a_node_that_cannot_be_cleared_is_left_alone() -> None:
    leases = (lease("own", "q", 1, "a"), lease("z1", "p", 7, "a", checkpointed=1), lease("z2", "p", 8, "b"))
    assert Held({"a": 8, "b": 8}, (team("q", 16), team("p")), leases).evict(asks("q", 8)) == ["z2"]


def test_a_gang_that_must_share_a_domain_is_made_room_for_in_one() -> None:
    leases = tuple(
        lease(f"z{on}", "p", 8, on, checkpointed=seconds) for on, seconds in (("a", 1), ("b", 9), ("c", 2), ("d", 3))
    )
    labels = {on: (("rack", rack),) for on, rack in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "2"))}
    held = Held(dict.fromkeys("abcd", 8), (team("q", 16), team("p")), leases, labels)
    required = Topology("rack", TopologyMode.REQUIRED)
    assert held.evict(asks("q", 8, 2, topology=required)) == ["za", "zb"]


def test_only_nodes_with_its_labels_are_looked_at() -> None:
    leases = (lease("z1", "p", 8, "a", checkpointed=1), lease("z2", "p", 8, "b"))
    held = Held({"a": 8, "b": 8}, (team("q", 8), team("p")), leases, {"b": (("disk", "nvme"),)})
    assert held.evict(asks("q", 8, disk="nvme")) == ["z2"]


def test_quota_alone_is_reclaimed_too() -> None:
    tree = (team("T", Quota(4, borrowing_limit=0)), team("t1", 4, parent="T"), team("t2", parent="T"))
    leases = (lease("z1", "t2", 2, "a"), lease("z2", "t2", 2, "a", checkpointed=5), lease("z3", "t2", 4, "a"))
    held = Held({"a": 8, "b": 8}, tree, leases)
    assert held.evict(asks("t1", 3)) == ["z2", "z1"]


# Brakes


def test_nothing_is_preempted_before_it_has_run_for_the_minimum() -> None:
    young = lease("z", "p", 8, "a", ran=119)
    assert Held({"a": 8}, (team("q", 8), team("p")), (young,)).evict(asks("q", 8)) is None
    assert Held({"a": 8}, (team("q", 8), team("p")), (lease("z", "p", 8, "a", ran=120),)).evict(asks("q", 8)) == ["z"]


def test_each_victim_costs_a_token_and_what_it_loses() -> None:
    leases = (lease("z1", "p", 4, "a", checkpointed=3), lease("z2", "p", 4, "a", checkpointed=2))
    for brakes, expected in (
        (Brakes(2, 20_000), ["z2", "z1"]),
        (Brakes(1, 20_000), None),
        (Brakes(2, 19_999), None),
    ):
        held = Held({"a": 8}, (team("q", 8), team("p")), leases, brakes=brakes)
        preemption = held.preemption()
        assert victims(preemption.evict(asks("q", 8), ["gpu"])) == expected
        assert preemption.brakes == (Brakes(0, 0) if expected else brakes)


def test_a_lease_whose_loss_is_too_much_is_passed_over() -> None:
    leases = (lease("costly", "p", 4, "a", checkpointed=3, priority=LOW), lease("cheap", "p", 4, "b", checkpointed=1))
    held = Held({"a": 4, "b": 4}, (team("q", 8), team("p")), leases, brakes=Brakes(9, 5_000))
    assert held.evict(asks("q", 4)) == ["cheap"]


@pytest.mark.parametrize(("brakes", "weighed"), [(Brakes(0, 10**9), 0), (Brakes(9, 3_999), 0), (Brakes(9, 4_000), 1)])
def test_what_the_brakes_forbid_alone_is_not_weighed(brakes: Brakes, weighed: int) -> None:
    leases = (lease("z1", "p", 4, "a", checkpointed=1), lease("z2", "p", 4, "b", checkpointed=2))
    preemption = Held({"a": 4, "b": 4}, (team("q", 8), team("p")), leases, brakes=brakes).preemption()
    assert victims(preemption.evict(asks("q", 4), ["gpu"])) == (["z1"] if weighed else None)
    assert preemption.weighed == weighed


# One after the other


def test_what_is_decided_counts_for_the_next() -> None:
    leases = (lease("z1", "p", 4, "a", checkpointed=1), lease("z2", "p", 4, "a", checkpointed=2))
    preemption = Held({"a": 8}, (team("q", 4), team("p", 4)), leases).preemption()
    first = preemption.evict(asks("q", 4, name="r1"), ["gpu"])
    assert (victims(first), preemption.weighed) == (["z1"], 2)
    assert preemption.evict(asks("q", 4, name="r2"), ["gpu"]) is None, "q would borrow, and p does not any more"


def test_who_came_to_borrow_by_what_was_decided_may_be_displaced_next() -> None:
    leases = (lease("o", "q", 4, "a"), *(lease(f"z{on}", "p", 4, on) for on in "bcd"))
    labels = {"a": (("disk", "nvme"),)}
    preemption = Held(dict.fromkeys("abcd", 4), (team("q", 4), team("p"), team("s", 4)), leases, labels).preemption()
    assert preemption.evict(asks("s", 4, name="early", disk="nvme"), ["gpu"]) is None, "q is within nominal"
    assert victims(preemption.evict(asks("q", 4, name="r1"), ["gpu"])) == ["zb"]
    assert victims(preemption.evict(asks("s", 4, name="r2", disk="nvme"), ["gpu"])) == ["o"]


def test_who_yields_already_is_not_counted_as_using() -> None:
    leases = (lease("z1", "p", 4, "a", yields_to="r1"), lease("z2", "p", 4, "a"))
    claimed = asks("q", 4, name="r1", claim=(("a", 1),))
    held = Held({"a": 8}, (team("q", 8), team("p", 4)), leases, claimed=(claimed,))
    assert held.evict(asks("q", 4, name="r2")) is None, "p is within nominal once z1 has yielded"


def test_victims_yield_and_the_claim_is_kept_from_others() -> None:
    held = Held({"a": 8}, (team("q", 8), team("p")), (lease("z", "p", 8, "a"),))
    held.evict(asks("q", 5))
    assert held.cluster.free(asks("q", 1).shape, "gpu")[0] == 0
    held.cluster.give_lease(lease("z", "p", 8, "a", yields_to="r"))
    assert held.cluster.free(asks("q", 1).shape, "gpu")[0] == 3


def test_what_fits_by_itself_preempts_nobody() -> None:
    held = Held({"a": 8, "b": 8}, (team("q", 8), team("p")), (lease("z", "p", 8, "a"),))
    assert held.evict(asks("q", 8)) is None


def test_what_is_reserved_for_another_is_no_room() -> None:
    leases = (lease("x", "p", 4, "a"), lease("z", "p", 8, "b"))
    held = Held({"a": 8, "b": 8}, (team("q", 16), team("p")), leases)
    reserve(held.cluster, "other", Shape("h100", (8, 0, 0)), "gpu", leases[:1])
    assert held.evict(asks("q", 4, run=1_000_000)) == ["z"]


# (c) Who was preempted before


def test_who_was_preempted_does_not_displace_its_own_class_for_fair_share() -> None:
    eight = tuple(lease(f"z{number}", "p", 1, "a") for number in range(8))
    assert Held({"a": 8}, (team("q"), team("p")), eight).evict(asks("q", 3, preempted=True)) is None


def test_who_was_preempted_reclaims_its_nominal_quota() -> None:
    held = Held({"a": 8}, (team("q", 4), team("p", 4)), (lease("z", "p", 8, "a", priority=HIGH),))
    assert held.evict(asks("q", 4, priority=LOW, preempted=True)) == ["z"]


def test_who_was_preempted_displaces_a_lower_class_of_its_queue() -> None:
    held = Held({"a": 8}, (team("q", 4),), (lease("z", "q", 8, "a", priority=LOW),))
    assert held.evict(asks("q", 8, priority=HIGH, preempted=True)) == ["z"]


def test_who_was_preempted_and_would_borrow_does_not_displace_what_stands_on_nominal_quota() -> None:
    leases = (lease("fixed", "q", 4, "b", priority=HIGH), lease("z", "q", 2, "a", priority=LOW))
    tree = (team("q", 6), team("p", 6))
    assert Held({"a": 3, "b": 4}, tree, leases).evict(asks("q", 3, priority=HIGH)) == ["z"]
    assert Held({"a": 3, "b": 4}, tree, leases).evict(asks("q", 3, priority=HIGH, preempted=True)) is None


# Any world


@pytest.mark.parametrize("first_seed", range(0, 400, 100))
def test_victims_satisfy_the_rule_counted_anew_and_who_finds_none_changes_nothing(first_seed: int) -> None:
    decided = refused = 0
    for seed in range(first_seed, first_seed + 100):
        random = Random(seed)  # noqa: S311 - the same worlds each time.
        world = random_world(random)
        cluster = Cluster(world.pools, world.nodes, frozenset(), NOW)
        capacity = {pool.name: cluster.capacity(pool.name) for pool in world.pools}

        def counted(leases: Iterable[Lease | tuple[Request, str]], capacity: Mapping[str, Amounts] = capacity) -> QuotaTree:
            tree = QuotaTree(world.tree, (), capacity, buckets=1_000)  # noqa: B023 - called in this turn of the loop only.
            for each in leases:
                of, pool = each if isinstance(each, tuple) else (each, each.pool)
                tree.add(tree.leaf(of.queue), pool, of.shape.total)
            return tree

        leases: list[Lease] = []
        waiting: list[Request] = []
        for request in world.requests:
            for pool in cluster.pools_for(request.shape):
                placement = cluster.place(request.shape, pool.name)
                tree = counted(leases)
                if placement and tree.short(tree.leaf(request.queue), pool.name, request.shape.total) is None:
                    granted = _granted(request, pool.name, placement, random)
                    cluster.take_lease(granted)
                    leases.append(granted)
                    break
            else:
                waiting.append(request)

        for request in waiting:
            pools = [pool.name for pool in cluster.pools_for(request.shape)]
            before = [cluster.free(each.shape, pool) for each in waiting for pool in pools]
            brakes = Brakes(random.choice((0, 1, 9)), random.choice((10**5, 10**9)))
            preemption = Preemption(cluster, counted(leases), leases, (), brakes, Limits(), NOW)
            found = preemption.evict(request, pools)
            if found is None:
                refused += 1
                assert [cluster.free(each.shape, pool) for each in waiting for pool in pools] == before
                assert preemption.brakes == brakes
                continue
            decided += 1
            gone = [each for each in leases if each.lease_id in (victims(found) or [])]
            left = [each for each in leases if each not in gone]
            after = counted([*left, (request, found.pool)])
            assert all(_may(after, counted([*left, z, (request, found.pool)]), request, z, found.pool) for z in gone)
            assert len(gone) <= brakes.preemptions_left
            assert sum(preempt.lost_ms for preempt in found.preemptions) <= brakes.waste_ms_left
            empty = Cluster(world.pools, world.nodes, frozenset(), NOW)
            for each in left:
                empty.take_lease(each)
            claimed = replace(request, claim=found.claim.placement)
            assert empty.pool_of_claim(claimed) is not None
            assert counted(left).short(after.leaf(request.queue), found.pool, request.shape.total) is None
            break
    assert decided > 5
    assert refused > 5


def _granted(request: Request, pool: str, placement: Placement, random: Random) -> Lease:
    made = lease(request.request_id, request.queue, 0, "x", priority=request.priority, ran=random.choice((50, 200, 400)))
    return replace(made, shape=request.shape, pool=pool, placement=placement, incarnations=("1",) * len(placement))


def _may(after: QuotaTree, with_it: QuotaTree, request: Request, victim: Lease, pool: str) -> bool:
    """(a) and (b) as the rule says them."""
    ours, theirs = (class_of(each.priority) for each in (request, victim))
    if request.queue == victim.queue:
        return theirs < ours
    mine, its = after.sides(after.leaf(request.queue), after.leaf(victim.queue))
    if not with_it.borrows(its, pool, victim.shape.total):
        return False
    within = not after.borrows(mine, pool, request.shape.total)
    return within or (theirs <= ours and after.cost(mine) < after.cost(its))


def test_classes_have_an_order() -> None:
    assert PriorityClass.SCAVENGER < class_of(LOW) < class_of(NORMAL) < class_of(HIGH)
