"""That preemption comes to an end although victims ask again at once: the potential falls, and no state comes back.

`python -m benchmarks preemption_cycles` plays a million such worlds.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.preemption_world import LIMITS, SECOND, UNBRAKED, World, play, random_world
from scheduler.core import plan
from scheduler.core.apply import apply
from scheduler.core.backlog import Backlog
from scheduler.core.cluster import Cluster
from scheduler.core.potential import Alike, Potential, Standing
from scheduler.core.quota import QuotaTree
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Brakes,
    Lease,
    Micros,
    Node,
    Pool,
    PriorityClass,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Resource,
    Shape,
    class_of,
)

GPUS = ("gpu", Resource.ACCELERATORS)


@pytest.mark.parametrize("first_seed", range(0, 4_000, 1_000))
def test_in_random_worlds_no_state_comes_back_and_the_potential_falls_with_every_grant(first_seed: int) -> None:
    preempted = 0
    for seed in range(first_seed, first_seed + 1_000):
        outcome = play(random_world(_random(seed)), _random(seed))
        assert not outcome.cycle, seed
        assert not outcome.risen, seed
        preempted += outcome.preemptions
    assert preempted > 100, "these worlds are contended"


@given(some.randoms(use_true_random=False))
def test_whatever_the_order_it_ends(random: Random) -> None:
    outcome = play(random_world(random), random)
    assert (outcome.cycle, outcome.risen) == (False, False)


def chase() -> World:
    """The example of potential.py: each of four takes the place of the one before, and the first that of the last."""
    tree = (QueueNode("root", None), *(QueueNode(name, "root", quotas={GPUS: Quota(6)}) for name in "pq"))
    nodes = (
        Node("contended", "1", "gpu", (3, 64, 64), Micros(0), labels=(("here", "yes"),)),
        Node("elsewhere", "1", "gpu", (9, 64, 64), Micros(0)),
    )

    def asks(queue: str, accelerators: int, priority: int, **labels: str) -> Request:
        shape = Shape("h100", (accelerators, 1, 1), labels=tuple(labels.items()))
        name = f"{queue}-{priority}-{accelerators}"
        return Request(name, name, queue, shape, priority, Micros(0), SECOND)

    requests = [
        request
        for queue in "pq"
        for request in (asks(queue, 4, 950), asks(queue, 2, 200, here="yes"), asks(queue, 3, 800, here="yes"))
    ]
    return World((Pool("gpu", "h100"),), nodes, tree, tuple(requests))


def test_by_a_and_b_alone_four_jobs_chase_each_other_for_ever() -> None:
    assert play(chase(), _random(1), forgetful=True).cycle
    outcome = play(chase(), _random(1))
    assert (outcome.cycle, outcome.risen) == (False, False)


def test_by_a_and_b_alone_the_potential_would_rise() -> None:
    assert any(play(random_world(_random(seed)), _random(seed), forgetful=True).risen for seed in range(300))


# With the planner, through claims


def test_the_planner_comes_to_rest_too() -> None:
    preempted = 0
    for seed in range(600):
        preempted += _plan_to_rest(random_world(_random(seed)))
    assert preempted > 50
    assert _plan_to_rest(chase()) > 0


def _plan_to_rest(world: World) -> int:
    """Plans until nothing changes; victims yield after the round, and ask again. How many there were."""
    nobody: list[QueuedJob] = []
    jobs = Backlog(nobody, aging_micros=LIMITS.aging_micros)
    requests = Backlog(world.requests, aging_micros=LIMITS.aging_micros)
    snapshot = Snapshot(requests=requests, jobs=jobs, pools=world.pools, nodes=world.nodes, tree=world.tree, brakes=UNBRAKED)
    now, preempted, potential = Micros(SECOND), 0, _potential(world, snapshot)
    for _ in range(200):
        now = Micros(now + SECOND)
        planned = plan(replace(snapshot, database_started=now), now, LIMITS)
        if not planned.changes and not any(lease.preempted_for for lease in snapshot.leases):
            return preempted
        preempted += len(planned.preemptions)
        snapshot = _yielded(apply(snapshot, planned, now, lease_micros=1_000 * SECOND))
        before, potential = potential, _potential(world, snapshot)
        if planned.preemptions or any(not grant.request.claim for grant in planned.grants):
            assert before.falls_to(potential)
    raise AssertionError("200 rounds, and no end; expected a few")


def _yielded(snapshot: Snapshot) -> Snapshot:
    """Once all who were asked to have yielded, and asked again."""
    again = [
        Request(of.lease_id, of.job_id, of.queue, of.shape, of.priority, of.submitted, of.run_micros, preempted=True)
        for of in snapshot.leases
        if of.preempted_for is not None
    ]
    return replace(
        snapshot,
        leases=tuple(lease for lease in snapshot.leases if lease.preempted_for is None),
        requests=Backlog((*snapshot.requests, *again), aging_micros=LIMITS.aging_micros),
        brakes=Brakes(UNBRAKED.preemptions_left, UNBRAKED.waste_ms_left),
    )


def _potential(world: World, snapshot: Snapshot) -> Potential:
    cluster = Cluster(world.pools, world.nodes, frozenset(), Micros(0))
    capacity = {pool.name: cluster.capacity(pool.name) for pool in world.pools}
    tree = QuotaTree(world.tree, (), capacity, buckets=LIMITS.cost_buckets)

    def alike(of: Lease | Request, pool: str) -> Alike:
        return Alike(tree.leaf(of.queue), class_of(of.priority), pool, of.shape.total)

    claims = [request for request in snapshot.requests if request.claim]
    running = [
        *(alike(lease, lease.pool) for lease in snapshot.leases),
        *(alike(request, cluster.node(request.claim[0][0]).pool) for request in claims),
    ]
    fresh = sum(not request.preempted and not request.claim for request in snapshot.requests)
    return Standing(tree, running).potential(fresh, [pool.name for pool in world.pools])


# The potential itself


def potential(fresh: int, *standing: int, classes: int = 0) -> Potential:
    """Of one node a depth."""
    vectors = tuple((((PriorityClass.LOW, (1, 0, 0), count),),) for count in standing)
    return Potential(fresh, vectors, (classes,))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (potential(2, 5, 5, classes=5), potential(1, 0, 0)),
        (potential(1, 5, 5, classes=5), potential(1, 6, 0)),
        (potential(1, 5, 5, classes=5), potential(1, 5, 6)),
        (potential(1, 5, 5, classes=5), potential(1, 5, 5, classes=6)),
    ],
)
def test_what_comes_first_decides(before: Potential, after: Potential) -> None:
    assert before.falls_to(after)
    assert not after.falls_to(before)
    assert not before.falls_to(before)


def test_of_one_depth_no_node_may_lose() -> None:
    few, many = ((PriorityClass.LOW, (1, 0, 0), 1),), ((PriorityClass.LOW, (1, 0, 0), 2),)
    before, after = Potential(0, ((few, many),), (0,)), Potential(0, ((many, few),), (9,))
    assert not before.falls_to(after)
    assert not after.falls_to(before)


def test_what_stands_is_the_highest_class_first_then_the_largest_that_fits() -> None:
    tree = QuotaTree(
        (QueueNode("root", None), QueueNode("q", "root", quotas={GPUS: Quota(6)})), (), {"gpu": (8, 8, 8)}, buckets=1
    )
    leaf = tree.leaf("q")

    def running(priority_class: PriorityClass, accelerators: int) -> Alike:
        return Alike(leaf, priority_class, "gpu", (accelerators, 1, 1))

    low, high = PriorityClass.LOW, PriorityClass.HIGH
    standing = Standing(tree, [running(low, 1), running(low, 1), running(low, 3), running(high, 4), running(high, 4)])
    assert standing.vector(leaf, "gpu") == ((high, (4, 1, 1), 1), (low, (1, 1, 1), 2))
    standing.change(running(high, 4), -1)
    assert not standing.falls(), "one HIGH lease less runs, though as much stands"
    standing.begin()
    standing.change(running(low, 1), -1)
    standing.change(running(high, 2), 1)
    assert standing.vector(leaf, "gpu") == ((high, (4, 1, 1), 1), (high, (2, 1, 1), 1))
    assert standing.falls()


def _random(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - the same worlds each time.
