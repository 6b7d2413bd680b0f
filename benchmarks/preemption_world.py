"""Small worlds in which everybody displaces everybody: nothing comes, nothing ends, and who is preempted asks again at once.

They fill and preempt with the parts the planner is made of, in any order, not only in the planner's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from scheduler.core.cluster import Cluster
from scheduler.core.potential import Alike, Potential, Standing
from scheduler.core.preemption import Preemption
from scheduler.core.quota import QuotaTree
from scheduler.core.types import (
    Brakes,
    Cell,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Pool,
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
LIMITS = Limits(run_minimum_micros=0)
UNBRAKED = Brakes(preemptions_left=10**9, waste_ms_left=10**18)
ROUNDS_MAX = 1_000
"""Far more than any of these worlds takes to come to rest."""


@dataclass(frozen=True, slots=True)
class World:
    """What there is; all requests wait at first."""

    pools: tuple[Pool, ...]
    nodes: tuple[Node, ...]
    tree: tuple[QueueNode, ...]
    requests: tuple[Request, ...]


@dataclass(slots=True)
class Outcome:
    """What became of a world."""

    rounds: int = 0
    preemptions: int = 0
    """Leases that had to yield."""
    cycle: bool = False
    """A state came back: who runs where, and who was preempted before. So it could come back for ever."""
    risen: bool = False
    """The potential did not fall with some grant."""
    returned: int = 0
    """Times that the same leases ran in the same places as before, with others preempted by then; they cannot for ever."""


def random_world(random: Random) -> World:
    """A few nodes, a tree of up to three levels, and somewhat more requests than fit."""
    pools = tuple(Pool(name, "h100") for name in ("a", "b")[: random.choice((1, 1, 1, 2))])
    cells: list[Cell] = [(pool.name, Resource.ACCELERATORS) for pool in pools]
    if random.random() < 0.2:
        cells.append((pools[0].name, Resource.CPU_MILLIS))
    nodes = tuple(_node(random, number, pools) for number in range(random.randint(1, 5)))
    tree = _tree(random, cells)
    inner = {node.parent for node in tree}
    queues = [node.name for node in tree if node.name not in inner]
    shapes = [_shape(random) for _ in range(random.randint(1, 5))]
    requests = tuple(
        Request(
            request_id=f"r{number}",
            job_id=f"r{number}",
            queue=random.choice(queues),
            shape=random.choice(shapes),
            priority=random.choice((50, 200, 500, 500, 500, 800, 950)),
            submitted=Micros(random.randint(0, 9)),
            run_micros=SECOND,
        )
        for number in range(random.randint(2, 12))
    )
    return World(pools, nodes, tree, requests)


def play(world: World, random: Random, *, forgetful: bool = False) -> Outcome:
    """Fills and preempts, in any order, until nothing changes or a state comes back.

    Args:
        world: what is played.
        random: who is asked in which order.
        forgetful: ask again as if never preempted: by (a) and (b) of rule 9 alone. To see that a cycle would be found.
    """
    playing, outcome = _Playing(world, forgetful), Outcome()
    seen, placed = {playing.state()}, {playing.placed()}
    while outcome.rounds < ROUNDS_MAX:
        outcome.rounds += 1
        playing.now = Micros(playing.now + SECOND)
        before = playing.placed()
        playing.fill(random)
        outcome.preemptions += playing.preempt(random)
        outcome.risen |= playing.risen
        if playing.placed() == before:
            return outcome
        outcome.returned += playing.placed() in placed
        if playing.state() in seen:
            break
        seen.add(playing.state())
        placed.add(playing.placed())
    outcome.cycle = True
    return outcome


class _Playing:
    """Who runs and who waits."""

    def __init__(self, world: World, forgetful: bool) -> None:
        self.now = Micros(0)
        self.risen = False
        self._forgetful = forgetful
        self._pools = [pool.name for pool in world.pools]
        self._cluster = Cluster(world.pools, world.nodes, frozenset(), self.now)
        capacity = {pool.name: self._cluster.capacity(pool.name) for pool in world.pools}
        self._tree = QuotaTree(world.tree, (request.queue for request in world.requests), capacity, buckets=LIMITS.cost_buckets)
        self._waiting = {request.request_id: request for request in world.requests}
        self._running: dict[str, Lease] = {}
        self._potential = self._potential_now()

    def placed(self) -> frozenset[tuple[str, Placement]]:
        """Who runs where."""
        return frozenset((lease.lease_id, lease.placement) for lease in self._running.values())

    def state(self) -> tuple[frozenset[tuple[str, Placement]], frozenset[str]]:
        """Who runs where, and which of the others were preempted before."""
        return self.placed(), frozenset(name for name, request in self._waiting.items() if request.preempted)

    def fill(self, random: Random) -> None:
        """Grants what fits."""
        for request in self._shuffled(random):
            for pool in self._cluster.pools_for(request.shape):
                if self._tree.short(self._tree.leaf(request.queue), pool.name, request.shape.total) is None:
                    placement = self._cluster.place(request.shape, pool.name)
                    if placement is not None:
                        self._grant(request, pool.name, placement)
                        self._look_at_potential()
                        break

    def preempt(self, random: Random) -> int:
        """Displaces who may be displaced. How many leases yielded."""
        leases = [*self._running.values()]
        preemption = Preemption(self._cluster, self._tree, leases, (), UNBRAKED, LIMITS, self.now)
        evictions = [
            (request, eviction)
            for request in self._shuffled(random)
            if (eviction := preemption.evict(request, [pool.name for pool in self._cluster.pools_for(request.shape)]))
        ]
        for request, eviction in evictions:
            for preempted in eviction.preemptions:
                self._yield(self._running.pop(preempted.lease_id), request.request_id)
        # Victims yield before anything is granted: what one gave up another may have been placed on.
        for request, eviction in evictions:
            self._cluster.unclaim(request.request_id)
            self._grant(request, eviction.pool, eviction.claim.placement)
        if evictions:
            self._look_at_potential()
        return sum(len(eviction.preemptions) for _, eviction in evictions)

    def _shuffled(self, random: Random) -> list[Request]:
        return random.sample([*self._waiting.values()], len(self._waiting))

    def _grant(self, request: Request, pool: str, placement: Placement) -> None:
        lease = Lease(
            lease_id=request.request_id,
            job_id=request.job_id,
            queue=request.queue,
            shape=request.shape,
            priority=request.priority,
            submitted=request.submitted,
            run_micros=request.run_micros,
            pool=pool,
            placement=placement,
            incarnations=self._cluster.incarnations(placement),
            granted=self.now,
            expires=Micros(self.now + SECOND),
        )
        self._cluster.take_lease(lease)
        self._tree.add(self._tree.leaf(lease.queue), pool, lease.shape.total)
        self._running[lease.lease_id] = lease
        del self._waiting[lease.lease_id]

    def _yield(self, lease: Lease, request_id: str) -> None:
        self._cluster.give_lease(replace(lease, preempted_for=request_id))
        self._tree.remove(self._tree.leaf(lease.queue), lease.pool, lease.shape.total)
        self._waiting[lease.lease_id] = Request(
            request_id=lease.lease_id,
            job_id=lease.job_id,
            queue=lease.queue,
            shape=lease.shape,
            priority=lease.priority,
            submitted=lease.submitted,
            run_micros=lease.run_micros,
            preempted=not self._forgetful,
        )

    def _look_at_potential(self) -> None:
        before, self._potential = self._potential, self._potential_now()
        self.risen |= not before.falls_to(self._potential)

    def _potential_now(self) -> Potential:
        running = (
            Alike(self._tree.leaf(of.queue), class_of(of.priority), of.pool, of.shape.total) for of in self._running.values()
        )
        fresh = sum(not request.preempted for request in self._waiting.values())
        return Standing(self._tree, running).potential(fresh, self._pools)


def _node(random: Random, number: int, pools: Iterable[Pool]) -> Node:
    labels = [("disk", random.choice("xy"))] if random.random() < 0.6 else []
    if random.random() < 0.5:
        labels.append(("rack", random.choice("12")))
    total = random.choice((2, 3, 3, 4, 6, 8)), random.choice((4, 8)), 100
    return Node(f"n{number}", "1", random.choice([*pools]).name, total, Micros(0), labels=tuple(labels))


def _shape(random: Random) -> Shape:
    labels = (("disk", random.choice("xy")),) if random.random() < 0.4 else ()
    mode = random.choice([*TopologyMode]) if random.random() < 0.15 else None
    return Shape(
        kind="h100",
        member=(random.choice((0, 1, 1, 2, 2, 3, 4)), random.choice((1, 1, 1, 2, 3)), 1),
        members=random.choice((1, 1, 1, 2, 3)),
        labels=labels,
        topology=None if mode is None else Topology("rack", mode),
    )


def _tree(random: Random, cells: list[Cell]) -> tuple[QueueNode, ...]:
    nodes = [QueueNode("root", None)]
    parents = ["root"]
    for level in range(random.randint(1, 3)):
        names = [f"{level}.{number}" for number in range(random.randint(2, 4))]
        nodes += [_queue_node(random, name, random.choice(parents), cells) for name in names]
        parents = names
    return tuple(nodes)


def _queue_node(random: Random, name: str, parent: str, cells: list[Cell]) -> QueueNode:
    quotas = {cell: _quota(random) for cell in cells if random.random() < 0.7}
    return QueueNode(name, parent, weight=random.choice((1_000, 1_000, 500, 3_000)), quotas=quotas)


def _quota(random: Random) -> Quota:
    return Quota(
        nominal=random.choice((0, 0, 1, 2, 3, 4, 6)),
        borrowing_limit=random.choice((0, 2, 4)) if random.random() < 0.2 else None,
        lending_limit=random.choice((0, 1, 2)) if random.random() < 0.2 else None,
    )
