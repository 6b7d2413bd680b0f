"""What holds in a state, counted for the tests in ways of their own: neither planner's code is used here.

Quota is checked from the leaf upwards, carrying what a node's own room leaves to be found above; capacity by counting how
many members every node holds, without placing any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scheduler.core.apply import apply, lease_of
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    CLASS_FLOORS,
    Cell,
    Grant,
    Lease,
    Limits,
    Micros,
    Node,
    Plan,
    Pool,
    PriorityClass,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Reservation,
    Resource,
    Shape,
    TopologyMode,
)

THREE = tuple(Resource)
Vector = tuple[int, ...]


@dataclass(frozen=True)
class Books:
    """A state: leases that are held, requests that wait, what was spent since the snapshot."""

    snapshot: Snapshot
    now: Micros
    limits: Limits
    leases: tuple[Lease, ...]
    requests: tuple[Request, ...]
    spent: tuple[Grant, ...] = ()
    reservations: tuple[Reservation, ...] = ()

    # The tree, from the leaves up

    @cached_property
    def parents(self) -> dict[str, str | None]:
        """Of every node, with the queues that are not in the tree."""
        found = {node.name: node.parent for node in self.snapshot.tree} or {"": None}
        root = next(name for name, parent in found.items() if parent is None)
        for item in (*self.snapshot.requests, *self.snapshot.jobs, *self.snapshot.leases):
            found.setdefault(item.queue, root)
        return found

    @cached_property
    def root(self) -> str:
        return next(name for name, parent in self.parents.items() if parent is None)

    @cached_property
    def upwards(self) -> list[str]:
        """Children before their parents."""
        return sorted(self.parents, key=lambda name: -len(self.path(name)))

    def path(self, name: str) -> list[str]:
        found = [name]
        while (parent := self.parents[found[-1]]) is not None:
            found.append(parent)
        return found

    @cached_property
    def written(self) -> dict[str, QueueNode]:
        return {node.name: node for node in self.snapshot.tree}

    def quota(self, name: str, cell: Cell) -> Quota:
        node = self.written.get(name)
        return Quota() if node is None else node.quotas.get(cell, Quota())

    def weight(self, name: str) -> int:
        return self.written[name].weight if name in self.written else 1_000

    @cached_property
    def named(self) -> set[Cell]:
        return {cell for node in self.snapshot.tree for cell in node.quotas}

    @cached_property
    def cells(self) -> list[Cell]:
        return [(pool.name, resource) for pool in self.snapshot.pools for resource in THREE]

    @cached_property
    def counting(self) -> list[Cell]:
        pools = {pool for pool, _ in self.named}
        return [cell for cell in self.cells if cell in self.named or cell[0] not in pools]

    def quotas(self, nodes: Iterable[Node]) -> tuple[dict[tuple[str, Cell], int], dict[tuple[str, Cell], int]]:
        """Subtree quota and guaranteed part of every node and cell, the root raised to the capacity of these nodes."""
        capacity: dict[Cell, int] = defaultdict(int)
        for node in nodes:
            for resource in THREE:
                capacity[node.pool, resource] += node.total[resource]
        subtree: dict[tuple[str, Cell], int] = defaultdict(int)
        kept: dict[tuple[str, Cell], int] = {}
        for cell in {*self.cells, *self.named}:
            for name in self.upwards:
                quota = self.quota(name, cell)
                subtree[name, cell] += quota.nominal
                lending = quota.lending_limit
                kept[name, cell] = 0 if lending is None else max(0, subtree[name, cell] - lending)
                if (parent := self.parents[name]) is not None:
                    subtree[parent, cell] += subtree[name, cell] - kept[name, cell]
            total_kept = sum(kept[name, cell] for name in self.upwards if name != self.root)
            subtree[self.root, cell] = max(subtree[self.root, cell], capacity[cell] - total_kept)
        return subtree, kept

    @cached_property
    def own_quotas(self) -> tuple[dict[tuple[str, Cell], int], dict[tuple[str, Cell], int]]:
        return self.quotas(node for node in self.snapshot.nodes if self.lives(node))

    @property
    def subtree(self) -> dict[tuple[str, Cell], int]:
        return self.own_quotas[0]

    @property
    def kept(self) -> dict[tuple[str, Cell], int]:
        return self.own_quotas[1]

    def usage_of(self, held: Iterable[tuple[str, str, Shape]]) -> dict[tuple[str, Cell], int]:
        """What every node uses when these are held: queue, pool and shape."""
        usage: dict[tuple[str, Cell], int] = defaultdict(int)
        for queue, pool, shape in held:
            for resource in THREE:
                usage[queue, (pool, resource)] += shape.member[resource] * shape.members
        for name in self.upwards:
            if (parent := self.parents[name]) is not None:
                for cell in self.cells:
                    usage[parent, cell] += max(0, usage[name, cell] - self.kept[name, cell])
        return usage

    @cached_property
    def held(self) -> list[tuple[str, str, Shape]]:
        """By leases."""
        return [(lease.queue, lease.pool, lease.shape) for lease in self.leases]

    @cached_property
    def claimed(self) -> list[tuple[str, str, Shape]]:
        """By requests that others make room for."""
        return [(r.queue, self.node_named[r.claim[0][0]].pool, r.shape) for r in self.requests if r.claim]

    @cached_property
    def uses(self) -> list[dict[tuple[str, Cell], int]]:
        """Of every node: as leases are held now, and as will be when every preemption under way is done."""
        return [self.usage_of(self.held), self.usage_of(self.settled())]

    def settled(self, gone: Collection[str] = ()) -> list[tuple[str, str, Shape]]:
        """What will be held when every preemption under way is done and these leases are gone."""
        staying = [z for z in self.leases if z.preempted_for is None and z.lease_id not in gone]
        return [*((z.queue, z.pool, z.shape) for z in staying), *self.claimed]

    def quota_allows(self, request: Request, pool: Pool) -> bool:
        cells = cells_taken(request.shape, pool.name)
        return all(self.cell_allows(request, cell, usage, *self.own_quotas) for cell in cells for usage in self.uses)

    def cell_allows(
        self,
        request: Request | QueuedJob,
        cell: Cell,
        usage: dict[tuple[str, Cell], int],
        subtree: dict[tuple[str, Cell], int],
        kept: dict[tuple[str, Cell], int],
    ) -> bool:
        """Carries upwards what does not go into a node's guaranteed part; no node may take more from above than its limits."""
        if cell not in self.named:
            return True
        carried = request.shape.member[cell[1]] * request.shape.members
        for name in self.path(request.queue):
            if name == self.root:
                # Where nobody keeps anything for itself, capacity bounds what all use.
                kept_below = any(kept[other, cell] for other in self.parents if other != self.root)
                return not kept_below or carried <= subtree[name, cell] - usage[name, cell]
            carried -= max(0, kept[name, cell] - usage[name, cell])
            limit = self.quota(name, cell).borrowing_limit
            above = max(0, usage[name, cell] - kept[name, cell])
            if limit is not None and above + carried > subtree[name, cell] - kept[name, cell] + limit:
                return False
        raise AssertionError("a path ends at the root")

    def over(self, name: str, cells: Iterable[Cell], usage: dict[tuple[str, Cell], int]) -> bool:
        """Whether the node uses more than its quota of a cell that counts."""
        return any(usage[name, cell] > self.subtree[name, cell] for cell in cells if cell in self.counting)

    def cost(self, name: str, usage: dict[tuple[str, Cell], int]) -> int:
        def of(cell: Cell) -> int:
            excess = usage[name, cell] - self.subtree[name, cell]
            lendable = max(1, self.subtree[self.root, cell])
            return excess * self.limits.cost_buckets * 1_000 // (lendable * self.weight(name)) if excess > 0 else 0

        return max(map(of, self.counting), default=0)

    def demoted(self, queue: str) -> bool:
        return any(name in self.written and self.written[name].demoted for name in self.path(queue))

    def rank(self, item: Request | Lease | QueuedJob) -> PriorityClass:
        if self.demoted(item.queue):
            return PriorityClass.SCAVENGER
        return max((floor, name) for name, floor in CLASS_FLOORS.items() if floor <= item.priority)[1]

    def virtual(self, item: Request | QueuedJob) -> tuple[int, int, str]:
        name = item.request_id if isinstance(item, Request) else item.job_id
        return (item.submitted - item.priority * self.limits.aging_micros, item.submitted, name)

    # Budgets

    def budgets_short(self, request: Request, pool: Pool) -> list[tuple[str, str, int, int]]:
        """Node, unit, requested and left of every budget that would be overdrawn."""
        found: list[tuple[str, str, int, int]] = []
        pools = {pool.name: pool for pool in self.snapshot.pools}
        for name in self.path(request.queue):
            budget = self.written[name].budget if name in self.written else None
            if budget is None:
                continue
            below = [grant for grant in self.spent if name in self.path(grant.request.queue)]
            if budget.money_left is not None:
                left = budget.money_left - sum(money(grant.request, pools[grant.pool]) for grant in below)
                if money(request, pool) > left:
                    found.append((name, "money", money(request, pool), left))
            if budget.accelerator_ms_left is not None and pool.kind != "cpu":
                left = budget.accelerator_ms_left - sum(time_ms(grant.request, pools[grant.pool]) for grant in below)
                if time_ms(request, pool) > left:
                    found.append((name, "accelerator_ms", time_ms(request, pool), left))
        return found

    # Nodes

    @cached_property
    def node_named(self) -> dict[str, Node]:
        return {node.name: node for node in self.snapshot.nodes}

    def lives(self, node: Node) -> bool:
        heard = max(node.heartbeat, self.snapshot.database_started)
        return heard + self.limits.node_lost_micros >= self.now

    def allowed(self, shape: Shape) -> list[Pool]:
        return [pool for pool in self.snapshot.pools if shape.kind in ("any", pool.kind) and not (pool.spot and not shape.spot)]

    def taking(self, shape: Shape, pool: Pool) -> list[Node]:
        """The nodes that members of a shape may go to."""
        return [node for node in labelled(shape, pool, self.snapshot.nodes) if self.lives(node) and not node.cordoned]

    def free(self, node: Node, asking: str, gone: Collection[str] = ()) -> Vector:
        """Neither held nor claimed by anybody else, when some leases are gone."""
        there = [lease for lease in self.leases if lease.lease_id not in gone]
        held = total(taken(z.shape, z.placement, node.name) for z in there)
        kept = [0, 0, 0]
        for request in self.requests:
            if request.claim and request.request_id != asking:
                by_victims = total(
                    taken(z.shape, z.placement, node.name) for z in there if z.preempted_for == request.request_id
                )
                claimed = taken(request.shape, request.claim, node.name)
                kept = [kept[r] + max(0, claimed[r] - by_victims[r]) for r in THREE]
        return tuple(max(0, node.total[r] - held[r] - kept[r]) for r in THREE)

    def spare(self, node: Node, request: Request, gone: Collection[str] = ()) -> Vector:
        """Free, and not needed by a reservation of another."""
        free = self.free(node, request.request_id, gone)
        for reservation in self.reservations:
            owner = next((some for some in self.snapshot.requests if some.request_id == reservation.request_id), None)
            if owner is None or owner.request_id == request.request_id or self.now + request.run_micros <= reservation.starts:
                continue
            reserved = taken(owner.shape, reservation.placement, node.name)
            if any(reserved):
                ended = {z.lease_id for z in self.leases if max(self.now, z.granted + z.run_micros) <= reservation.starts}
                then = self.free(node, request.request_id, ended | set(gone))
                free = tuple(max(0, min(free[r], then[r] - reserved[r])) for r in THREE)
        return free

    def holds(self, request: Request, pool: Pool, gone: Collection[str] = (), *, reserved: bool = True) -> int:
        """How many members the pool has room for now, at most all."""
        nodes = self.taking(request.shape, pool)
        room = {n.name: self.spare(n, request, gone) if reserved else self.free(n, request.request_id, gone) for n in nodes}
        return members_held(request.shape, [(node, room[node.name]) for node in nodes])

    def fits(self, request: Request, *, reserved: bool = True) -> list[Pool]:
        """The pools that the request could be granted in now."""
        return [
            pool
            for pool in self.allowed(request.shape)
            if self.quota_allows(request, pool)
            and not self.budgets_short(request, pool)
            and self.holds(request, pool, reserved=reserved) == request.shape.members
        ]


def members_held(shape: Shape, nodes: Sequence[tuple[Node, Vector]]) -> int:
    """How many members these nodes have room for, at most all; in one domain, if that is required."""

    def held(room: Vector) -> int:
        return min(room[r] // shape.member[r] for r in THREE if shape.member[r])

    if shape.topology is None or shape.topology.mode is TopologyMode.PREFERRED:
        return min(shape.members, sum(held(room) for _, room in nodes))
    domains: dict[str, int] = defaultdict(int)
    for node, room in nodes:
        for label, value in node.labels:
            if label == shape.topology.level:
                domains[value] += held(room)
    return min(shape.members, max(domains.values(), default=0))


def labelled(shape: Shape, pool: Pool, nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes of a pool that carry what a shape asks for."""
    return (node for node in nodes if node.pool == pool.name and all(label in node.labels for label in shape.labels))


def taken(shape: Shape, placement: Iterable[tuple[str, int]], node: str) -> Vector:
    """What a placement takes of a node."""
    members = sum(count for name, count in placement if name == node)
    return tuple(members * shape.member[r] for r in THREE)


def total(vectors: Iterable[Vector]) -> Vector:
    summed = [0, 0, 0]
    for vector in vectors:
        summed = [summed[r] + vector[r] for r in THREE]
    return tuple(summed)


def cells_taken(shape: Shape, pool: str) -> list[Cell]:
    """The cells that a shape takes something of."""
    return [(pool, resource) for resource in THREE if shape.member[resource] > 0]


def money(request: Request, pool: Pool) -> int:
    """Millionths, rounded up."""
    exact = request.shape.member[0] * request.shape.members * request.run_micros * pool.price
    return exact // 3_600_000_000 + (1 if exact % 3_600_000_000 else 0)


def time_ms(request: Request, pool: Pool) -> int:
    """Accelerator-milliseconds; of kind "cpu" none."""
    return 0 if pool.kind == "cpu" else request.shape.member[0] * request.shape.members * request.run_micros // 1_000


def books_at_start(snapshot: Snapshot, now: Micros, limits: Limits, plan: Plan) -> Books:
    """Once leases have ended and claims were granted and dissolved: what the round then divides."""
    on_claims = tuple(grant for grant in plan.grants if grant.request.claim)
    granted = {grant.request.request_id for grant in on_claims}
    dissolved = {claim.request_id for claim in plan.claims}
    dissolved |= {decision.request.request_id for decision in (*plan.grants, *plan.refusals)} - granted
    waiting = [r for r in snapshot.requests if r.request_id not in granted]
    ended = {end.lease_id for end in plan.ends}
    return Books(
        snapshot,
        now,
        limits,
        leases=(*(z for z in snapshot.leases if z.lease_id not in ended), *(lease_of(grant, now) for grant in on_claims)),
        requests=tuple(replace(r, claim=()) if r.request_id in dissolved else r for r in waiting),
        spent=on_claims,
    )


def books_after(snapshot: Snapshot, now: Micros, limits: Limits, plan: Plan) -> Books:
    """Once all of the plan is done, but before any victim has yielded."""
    after = apply(snapshot, plan, now)
    return Books(snapshot, now, limits, after.leases, tuple(after.requests), plan.grants, plan.reservations)
