"""What holds at a moment of a round, and every question that the rules ask of it: each counted anew from the leases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from scheduler.core.reference.fitting import Domains, Room, lesser, minus, place, plus, times
from scheduler.core.reference.tree import Tree, Used, add, capacity_of, cells_of
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    ANY_KIND,
    Amounts,
    Budget,
    Cell,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Pool,
    PriorityClass,
    QueuedJob,
    Request,
    Reservation,
    Shape,
    class_of,
)

NOBODY: frozenset[str] = frozenset()
MICROS_AN_HOUR = 3_600_000_000


@dataclass(frozen=True)
class State:
    """The snapshot and what the round has decided up to now."""

    snapshot: Snapshot
    now: Micros
    limits: Limits
    leases: tuple[Lease, ...]
    """Held; those that were granted in this round too, those that ended not."""
    requests: tuple[Request, ...]
    """Neither granted nor refused. A claim in one of them is pending."""
    reservations: tuple[Reservation, ...] = ()

    # Who is who

    @cached_property
    def tree(self) -> Tree:
        """With the capacity of the living nodes."""
        return self._tree(node for node in self.snapshot.nodes if self.lives(node))

    @cached_property
    def whole_tree(self) -> Tree:
        """With the capacity of all known nodes."""
        return self._tree(self.snapshot.nodes)

    def _tree(self, nodes: Iterable[Node]) -> Tree:
        queues = {item.queue for item in (*self.snapshot.requests, *self.snapshot.jobs, *self.snapshot.leases)}
        capacity = capacity_of(self.snapshot.pools, ((node.pool, node.total) for node in nodes))
        return Tree.of(self.snapshot.tree, queues, capacity, self.limits)

    def lives(self, node: Node) -> bool:
        """Whether the node was heard of lately."""
        return self.now - max(node.heartbeat, self.snapshot.database_started) <= self.limits.node_lost_micros

    def effective(self, item: Request | QueuedJob | Lease) -> PriorityClass:
        """The class that counts: the lowest for queues that are demoted."""
        demoted = any(self.tree.nodes[name].demoted for name in self.tree.path(item.queue))
        return PriorityClass.SCAVENGER if demoted else class_of(item.priority)

    # Quota

    @cached_property
    def held(self) -> Used:
        """What every queue's leases hold."""
        return self.used_by(self.leases)

    @cached_property
    def promised(self) -> Used:
        """What every queue will hold when all preemptions under way are done: what fair share looks at."""
        return self.settled()

    def used_by(self, leases: Collection[Lease]) -> Used:
        """What every queue's leases hold, if these were all."""
        used: Used = Counter()
        for lease in leases:
            used = add(used, lease.queue, lease.pool, amounts_of(lease.shape))
        return used

    def settled(self, without: Collection[str] = NOBODY) -> Used:
        """What every queue will hold when all preemptions under way are done, and these leases are gone."""
        used = self.used_by([lease for lease in self.leases if lease.preempted_for is None and lease.lease_id not in without])
        for request in self.requests:
            if request.claim:
                used = add(used, request.queue, self.node(request.claim[0][0]).pool, amounts_of(request.shape))
        return used

    def quota_short(self, request: Request, pool: Pool, *, rootless: bool = False) -> tuple[Cell, Used] | None:
        """The first cell of the pool of which the quota does not allow what the request takes, and by which use: as things
        are, so that nothing is exceeded; and as is promised, so that nobody takes the quota that a claim counts on. `rootless`:
        whatever all use together.
        """
        tree = replace(self.tree, rootless=rootless)
        wanted = cells_of(pool.name, amounts_of(request.shape))
        shorts = ((tree.short(request.queue, wanted, used), used) for used in (self.held, self.promised))
        return next(((cell, used) for cell, used in shorts if cell is not None), None)

    # Budgets

    def budget_short(self, request: Request, pool: Pool) -> tuple[str, str, int, int] | None:
        """The first budget that would be overdrawn: node, unit, requested, left."""
        money, accelerator_ms = price_of(request, pool)
        for name in self.tree.path(request.queue):
            budget = self.tree.nodes[name].budget or Budget()
            spent = self._spent(name)
            if budget.money_left is not None and money > (left := budget.money_left - spent[0]):
                return name, "money", money, left
            if pool.kind == "cpu" or budget.accelerator_ms_left is None:
                continue
            if accelerator_ms > (left := budget.accelerator_ms_left - spent[1]):
                return name, "accelerator_ms", accelerator_ms, left
        return None

    def _spent(self, name: str) -> tuple[int, int]:
        """What this round has reserved in the budget of a node."""
        known = {lease.lease_id for lease in self.snapshot.leases}
        pools = {pool.name: pool for pool in self.snapshot.pools}
        granted = [lease for lease in self.leases if lease.lease_id not in known and name in self.tree.path(lease.queue)]
        return (
            sum(price_of(lease, pools[lease.pool])[0] for lease in granted),
            sum(price_of(lease, pools[lease.pool])[1] for lease in granted),
        )

    # Capacity

    def node(self, name: str) -> Node:
        """By name."""
        return next(node for node in self.snapshot.nodes if node.name == name)

    def eligible(self, shape: Shape, pool: Pool) -> list[Node]:
        """The nodes of a pool that members of the shape may be placed on, room or not."""
        return [node for node in self.known(shape, pool) if self.lives(node) and not node.cordoned]

    def known(self, shape: Shape, pool: Pool) -> list[Node]:
        """The nodes of a pool that carry what the shape asks for; lost and cordoned too."""
        return [node for node in self.snapshot.nodes if node.pool == pool.name and set(shape.labels) <= set(node.labels)]

    def free(self, node: Node, asking: str, without: Collection[str] = NOBODY) -> Amounts:
        """What is free of a node for a request, if these leases were gone: neither held nor claimed by another."""
        held: Amounts = (0, 0, 0)
        for lease in self.leases:
            if lease.lease_id not in without:
                held = plus(held, part_on(lease.placement, node, lease.shape))
        claimed: Amounts = (0, 0, 0)
        for request in self.requests:
            if request.claim and request.request_id != asking:
                by_victims: Amounts = (0, 0, 0)
                for lease in self.leases:
                    if lease.preempted_for == request.request_id and lease.lease_id not in without:
                        by_victims = plus(by_victims, part_on(lease.placement, node, lease.shape))
                claimed = plus(claimed, minus(part_on(request.claim, node, request.shape), by_victims))
        return minus(node.total, plus(held, claimed))

    def room(self, request: Request, pool: Pool, without: Collection[str] = NOBODY) -> Room:
        """What is free of each eligible node, reserved or not."""
        return {node.name: self.free(node, request.request_id, without) for node in self.eligible(request.shape, pool)}

    def unreserved(self, request: Request, pool: Pool, without: Collection[str] = NOBODY) -> Room:
        """What the request may take of each eligible node without making a reservation start later."""
        room = dict(self.room(request, pool, without))
        for reservation in self.reservations:
            if reservation.request_id == request.request_id or self.now + request.run_micros <= reservation.starts:
                continue
            owner = next(some for some in self.requests if some.request_id == reservation.request_id)
            gone = {lease.lease_id for lease in self.leases if self.ends_at(lease) <= reservation.starts} | set(without)
            for node in self.eligible(request.shape, pool):
                reserved = part_on(reservation.placement, node, owner.shape)
                if reserved != (0, 0, 0):
                    spare = minus(self.free(node, request.request_id, gone), reserved)
                    room[node.name] = lesser(room[node.name], spare)
        return room

    def ends_at(self, lease: Lease) -> Micros:
        """When the lease ends at the latest, if run times hold."""
        return Micros(max(self.now, lease.granted + lease.run_micros))

    # Pools

    def allowed(self, request: Request) -> list[Pool]:
        """The pools that will do, best first: without borrowing, then cheap."""
        queue, shape = request.queue, request.shape

        def key(pool: Pool) -> tuple[bool, int, str]:
            added = add(self.promised, queue, pool.name, amounts_of(shape))
            return (self.tree.borrows(queue, cells_of(pool.name, amounts_of(shape)), added), pool.price, pool.name)

        return sorted(pools_for(shape, self.snapshot.pools), key=key)

    def pool_by_quota(self, request: Request) -> Pool | None:
        """The first pool that quota allows, else the first."""
        allowed = self.allowed(request)
        return next((pool for pool in allowed if self.quota_short(request, pool) is None), allowed[0] if allowed else None)

    def used_with(self, request: Request, pool: Pool | None) -> Used:
        """What every queue would hold with the request in that pool, too."""
        return self.promised if pool is None else add(self.promised, request.queue, pool.name, amounts_of(request.shape))

    def has_room(self, request: Request) -> bool:
        """Whether quota, budget and capacity of some pool allow the request, reserved or not."""
        return any(
            self.quota_short(request, pool) is None
            and self.budget_short(request, pool) is None
            and place(request.shape, self.room(request, pool), self.domains(request.shape)) is not None
            for pool in self.allowed(request)
        )

    def domains(self, shape: Shape) -> Domains:
        """The value of the topology's label on every node that carries it."""
        level = None if shape.topology is None else shape.topology.level
        return {node.name: value for node in self.snapshot.nodes for label, value in node.labels if label == level}

    # What a decision changes

    def with_lease(self, lease: Lease) -> State:
        """After a grant."""
        return replace(self.without_request(lease.lease_id), leases=(*self.leases, lease))

    def without_request(self, request_id: str) -> State:
        """After a grant or refusal."""
        return replace(self, requests=tuple(request for request in self.requests if request.request_id != request_id))

    def with_reservation(self, reservation: Reservation) -> State:
        """After a head is parked for which room is kept."""
        return replace(self, reservations=(*self.reservations, reservation))

    def with_claim(self, request_id: str, placement: Placement, victims: Collection[str] = NOBODY) -> State:
        """After a preemption; or, with an empty placement, after a claim is dissolved."""
        return replace(
            self,
            requests=tuple(replace(r, claim=placement) if r.request_id == request_id else r for r in self.requests),
            leases=tuple(replace(z, preempted_for=request_id) if z.lease_id in victims else z for z in self.leases),
        )


def amounts_of(shape: Shape) -> Amounts:
    """Of all members."""
    return times(shape.member, shape.members)


def part_on(placement: Placement, node: Node, shape: Shape) -> Amounts:
    """What a placement takes of one node."""
    return times(shape.member, dict(placement).get(node.name, 0))


def price_of(item: Request | Lease, pool: Pool) -> tuple[int, int]:
    """What is reserved for the longest run: millionths of money, rounded up; accelerator-milliseconds, where they count."""
    accelerator_micros = item.shape.accelerators * item.run_micros
    return (
        -(-accelerator_micros * pool.price // MICROS_AN_HOUR),
        0 if pool.kind == "cpu" else accelerator_micros // 1000,
    )


def pools_for(shape: Shape, pools: Collection[Pool]) -> list[Pool]:
    """The pools of the right kind; spot only for who takes it."""
    return [pool for pool in pools if shape.kind in (pool.kind, ANY_KIND) and (shape.spot or not pool.spot)]
