"""The state of a round: what is held, used and spent, and what was decided up to now. Every step works on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from scheduler.core.budgets import Budgets, price_of
from scheduler.core.cluster import Cluster
from scheduler.core.ends import ends, living
from scheduler.core.node_use import plus, times
from scheduler.core.preemption import Eviction
from scheduler.core.quota import NodeIndex, QuotaTree
from scheduler.core.room import NOTHING
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Amounts,
    Claim,
    Grant,
    Lease,
    Limits,
    Micros,
    Placement,
    Pool,
    Preempt,
    PriorityClass,
    Refuse,
    Request,
    Shape,
    class_of,
)
from scheduler.core.usage import Usage


class Demand:
    """What requests of a shape ask for. One object for each shape that is spoken of."""

    __slots__ = ("amounts", "open_pools", "pools", "shape")

    def __init__(self, shape: Shape, pools: tuple[Pool, ...]) -> None:
        self.shape = shape
        self.amounts = shape.total
        self.pools = pools
        """Those allowed, by price and name."""
        self.open_pools = pools
        """Those that it was not yet found not to fit in, reservations apart. Capacity only shrinks: none opens again."""

    def close(self, pool: Pool) -> None:
        """It does not fit there any more, whoever asks."""
        self.open_pools = tuple(each for each in self.open_pools if each is not pool)


class State:
    """What holds at a moment of a round."""

    def __init__(self, snapshot: Snapshot, now: Micros, limits: Limits) -> None:
        """After the ends, before anything else is decided."""
        self.snapshot = snapshot
        self.now = now
        self.limits = limits
        self.brakes = snapshot.brakes
        self.operations = 0

        alive = living(snapshot.nodes, snapshot.database_started, now, limits)
        self.ends = ends(snapshot.leases, alive, now)
        ended = {end.lease_id for end in self.ends}
        self.leases = {lease.lease_id: lease for lease in snapshot.leases if lease.lease_id not in ended}
        """Held, of the snapshot; those that yield say so."""
        self.granted: dict[str, Lease] = {}
        """In this round."""
        self.yielding = Counter[str]()
        """How many leases yield to each request."""
        self.yielding_on: set[str] = set()
        """Nodes that leases which yield at the beginning are on."""
        self.pending: dict[str, Request] = {}
        """Requests with a claim that are neither granted nor dissolved."""

        self.grants: list[Grant] = []
        self.refusals: list[Refuse] = []
        self.preemptions: list[Preempt] = []
        self.claims: list[Claim] = []
        self.dissolved: list[str] = []

        lost = frozenset(node.name for node in snapshot.nodes if node.name not in alive)
        self.cluster = Cluster(snapshot.pools, snapshot.nodes, lost, now)
        self.tree, self.idle_tree = self._trees()
        """Of the quotas: with the capacity of living nodes and use of this moment; with that of all known nodes, unused."""
        self.usage = Usage(self.tree)
        self.budgets = Budgets(self.tree)
        self._demands: dict[Shape, Demand] = {}
        self._by_identity: dict[int, Demand] = {}
        self._too_much: set[tuple[NodeIndex, Demand, str]] = set()
        """What quota was found not to allow beside what is held; and that only grows in a round."""
        self._hold()

    def _trees(self) -> tuple[QuotaTree, QuotaTree]:
        snapshot, buckets = self.snapshot, self.limits.cost_buckets
        queues = {key.queue for key, _ in snapshot.requests.lines()}
        queues.update(key.queue for key, _ in snapshot.jobs.lines())
        queues.update(lease.queue for lease in self.leases.values())
        capacity = {pool.name: self.cluster.capacity(pool.name) for pool in snapshot.pools}
        known = {pool.name: self.cluster.capacity(pool.name, known=True) for pool in snapshot.pools}
        tree = QuotaTree(snapshot.tree, queues, capacity, buckets=buckets)
        return tree, tree.copy() if known == capacity else QuotaTree(snapshot.tree, queues, known, buckets=buckets)

    def _hold(self) -> None:
        """Puts the leases into the cluster and the tree: those that hold the same of the same nodes for the same queue at once.

        When each of them ends makes no difference here: that matters beside a reservation, and there is none yet.
        """
        first: dict[tuple[str, str, Placement, int, str | None], Lease] = {}
        count: dict[tuple[str, str, Placement, int, str | None], int] = {}
        for lease in self.leases.values():
            alike = lease.queue, lease.pool, lease.placement, id(lease.shape), lease.preempted_for
            if alike in count:
                count[alike] += 1
            else:
                count[alike], first[alike] = 1, lease
        used: defaultdict[tuple[str, str], Amounts] = defaultdict(lambda: NOTHING)
        for alike, lease in first.items():
            together = count[alike]
            self.cluster.take(lease.placement, times(lease.shape.member, together), self.now, lease.preempted_for)
            where = lease.queue, lease.pool
            used[where] = plus(used[where], times(lease.shape.total, together))
            if lease.preempted_for is not None:
                self.yielding[lease.preempted_for] += together
                self.yielding_on.update(name for name, _ in lease.placement)
        for (queue, pool), amounts in used.items():
            self.tree.add(self.tree.leaf(queue), pool, amounts)

    # Asked by every step

    def effective(self, leaf: NodeIndex, priority: int) -> PriorityClass:
        """The class that counts: the lowest for queues that are demoted."""
        return PriorityClass.SCAVENGER if self.tree.demoted(leaf) else class_of(priority)

    def demand(self, shape: Shape) -> Demand:
        """The one of the shape."""
        # Who asks for the same mostly has the same object, and that is much faster to find.
        found = self._by_identity.get(id(shape))
        if found is None:
            found = self._demands.get(shape)
            if found is None:
                found = self._demands[shape] = Demand(shape, self.cluster.pools_for(shape))
            self._by_identity[id(shape)] = found
        return found

    def demands(self) -> Iterable[Demand]:
        """All that were spoken of."""
        return self._demands.values()

    def in_order(self, leaf: NodeIndex, demand: Demand, pools: Sequence[Pool]) -> Sequence[Pool]:
        """Of allowed pools, by price and name, those first in which the queue would not borrow."""
        if len(pools) < 2:
            return pools
        amounts, tree = demand.amounts, self.usage.settled
        borrowing = [pool for pool in pools if tree.would_borrow(leaf, pool.name, amounts)]
        if not borrowing or len(borrowing) == len(pools):
            return pools
        return [*(pool for pool in pools if pool not in borrowing), *borrowing]

    def held(self) -> Iterable[Lease]:
        """All leases of this moment."""
        return chain(self.leases.values(), self.granted.values())

    def affords(self, leaf: NodeIndex, demand: Demand, run_micros: int, pool: Pool) -> bool:
        """Whether quota and budget allow it."""
        asked = leaf, demand, pool.name
        if asked in self._too_much:
            return False
        short = self.usage.short(leaf, pool.name, demand.amounts)
        if short is None:
            return self.budgets.short(leaf, demand.shape, run_micros, pool) is None
        if short.tree is self.usage.held:
            self._too_much.add(asked)
        return False

    # Decided by some step

    def grant(self, request: Request, pool: Pool, placement: Placement) -> None:
        """The request becomes a lease."""
        leaf, price = self.tree.leaf(request.queue), price_of(request.shape, request.run_micros, pool)
        incarnations = self.cluster.incarnations(placement)
        lease = Lease(
            lease_id=request.request_id,
            job_id=request.job_id,
            queue=request.queue,
            shape=request.shape,
            priority=request.priority,
            submitted=request.submitted,
            run_micros=request.run_micros,
            pool=pool.name,
            placement=placement,
            incarnations=incarnations,
            granted=self.now,
            expires=self.now,
        )
        self.cluster.take_lease(lease)
        self.granted[lease.lease_id] = lease
        self.usage.grant(leaf, pool.name, request.shape.total)
        self.budgets.spend(leaf, price)
        self.grants.append(Grant(request, pool.name, placement, incarnations, price.money))

    def preempt(self, request: Request, eviction: Eviction) -> None:
        """Victims yield to the request, which gets a claim; the cluster knows of both already."""
        for preemption in eviction.preemptions:
            victim = replace(self.leases[preemption.lease_id], preempted_for=request.request_id)
            self.leases[victim.lease_id] = victim
            self._release(victim)
        self.yielding[request.request_id] += len(eviction.preemptions)
        self.preemptions.extend(eviction.preemptions)
        self.claims.append(eviction.claim)
        self._await(replace(request, claim=eviction.claim.placement))

    def settle(self, claimants: Iterable[Request]) -> None:
        """These wait on their claims: that quota is theirs from now on, and no longer that of those who yield."""
        for lease in self.leases.values():
            if lease.preempted_for is not None:
                self._release(lease)
        for claimant in claimants:
            self._await(claimant)

    def _release(self, lease: Lease) -> None:
        self.usage.release(self.tree.leaf(lease.queue), lease.pool, lease.shape.total)

    def _await(self, claimant: Request) -> None:
        self.pending[claimant.request_id] = claimant
        pool = self.cluster.node(claimant.claim[0][0]).pool
        self.usage.claim(self.tree.leaf(claimant.queue), pool, claimant.shape.total)

    @property
    def decided(self) -> int:
        """How many decisions there are of those that another pass could follow."""
        return len(self.grants) + len(self.refusals) + len(self.preemptions)
