"""What the nodes have, who holds it, and where something fits: kept as a round goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

from scheduler.core.node_use import times
from scheduler.core.pool_room import PoolRoom
from scheduler.core.reasons import ExceedsMaximum, Fragmented, NoCapacity
from scheduler.core.types import (
    ANY_KIND,
    Amounts,
    Lease,
    Micros,
    Node,
    Placement,
    Pool,
    Request,
    Reservation,
    Resource,
    Shape,
)


class Cluster:
    """Nodes by pool. To place costs some microseconds, however many nodes there are."""

    def __init__(self, pools: Iterable[Pool], nodes: Iterable[Node], lost: Set[str], now: Micros) -> None:
        """All known nodes, nothing held.

        Args:
            pools: nodes of other pools are left out, and what is held on them counts nowhere.
            nodes: cordoned and lost ones too: they say what the cluster can be.
            lost: the names of those that are silent.
            now: leases end no earlier.
        """
        self._now = now
        self._lost = lost
        self._pools = {pool.name: pool for pool in sorted(pools, key=lambda pool: (pool.price, pool.name))}
        by_pool: dict[str, list[Node]] = {name: [] for name in self._pools}
        self._nodes = {node.name: node for node in nodes}
        for node in sorted(self._nodes.values(), key=lambda node: node.name):
            if node.pool in by_pool:
                by_pool[node.pool].append(node)
        self._rooms = {name: PoolRoom(those, lost) for name, those in by_pool.items()}
        self._at = {node.name: (self._rooms[name], at) for name, those in by_pool.items() for at, node in enumerate(those)}
        self._claims: dict[str, tuple[Placement, Amounts]] = {}

    # What there is

    def pools_for(self, shape: Shape) -> tuple[Pool, ...]:
        """Those of the shape's kind, spot ones only if it takes them; by price, then name."""
        pools = self._pools.values()
        return tuple(pool for pool in pools if shape.kind in (pool.kind, ANY_KIND) and (shape.spot or not pool.spot))

    def node(self, name: str) -> Node:
        """A known node.

        Raises:
            KeyError: there is none of the name.
        """
        return self._nodes[name]

    def lives(self, name: str) -> bool:
        """Whether the node is known and not lost; cordoned or not."""
        return name in self._nodes and name not in self._lost

    def incarnations(self, placement: Placement) -> tuple[str, ...]:
        """Of the nodes of a placement, in its order."""
        return tuple(self._nodes[name].incarnation for name, _ in placement)

    def known_in(self, pool: str) -> int:
        """How many nodes of the pool are known: what a placement that is tried is charged by."""
        return len(self._rooms[pool].nodes)

    def capacity(self, pool: str, *, known: bool = False) -> Amounts:
        """Of the living nodes of the pool, cordoned or not; or of all that are known."""
        return self._rooms[pool].known if known else self._rooms[pool].living

    # Who holds it

    def ends_at(self, lease: Lease) -> Micros:
        """When it ends at the latest if run times hold: not before now."""
        return Micros(max(self._now, lease.granted + lease.run_micros))

    def take_lease(self, lease: Lease) -> None:
        """Holds what the lease is placed on. If it yields to a request, that counts towards the request's claim."""
        self.take(lease.placement, lease.shape.member, self.ends_at(lease), lease.preempted_for)

    def give_lease(self, lease: Lease) -> None:
        """Undoes `take_lease` exactly."""
        self.give(lease.placement, lease.shape.member, self.ends_at(lease), lease.preempted_for)

    def take(self, placement: Placement, member: Amounts, ends: Micros, yields_to: str | None = None) -> None:
        """Holds members on nodes until `ends` at the latest."""
        for name, count in placement:
            if found := self._at.get(name):
                room, at = found
                room.hold(at, times(member, count), ends, yields_to)

    def give(self, placement: Placement, member: Amounts, ends: Micros, yields_to: str | None = None) -> None:
        """Undoes a `take` with the same arguments exactly."""
        for name, count in placement:
            if found := self._at.get(name):
                room, at = found
                room.hold(at, times(member, -count), ends, yields_to)

    def claim(self, request_id: str, placement: Placement, member: Amounts) -> None:
        """Keeps from others what is claimed and not held by leases that yield to the request, whenever these are taken.

        Raises:
            ValueError: the request has a claim.
        """
        if request_id in self._claims:
            raise ValueError(f"request {request_id} has a claim already; expected `unclaim` before another `claim`")
        self._claims[request_id] = placement, member
        self._keep(request_id, placement, member, 1)

    def unclaim(self, request_id: str) -> None:
        """The claim is granted or dissolved. Nothing happens if there is none."""
        if (found := self._claims.pop(request_id, None)) is not None:
            self._keep(request_id, *found, -1)

    def _keep(self, request_id: str, placement: Placement, member: Amounts, sign: int) -> None:
        for name, count in placement:
            if found := self._at.get(name):
                room, at = found
                room.claim(at, request_id, times(member, sign * count))

    def claim_lives(self, request: Request) -> bool:
        """Whether all nodes of the request's claim are known and not lost."""
        return all(self.lives(name) for name, _ in request.claim)

    def pool_of_claim(self, request: Request) -> Pool | None:
        """The pool of the request's claim, if all of the claim is free for the request now. None: something is not."""
        names = {self._nodes[name].pool for name, _ in request.claim if name in self._nodes}
        pools = [pool for pool in self.pools_for(request.shape) if names == {pool.name}]
        if not pools or any(name not in self._at for name, _ in request.claim):
            return None
        takers = self._rooms[pools[0].name].eligible(request.shape.labels)
        for name, count in request.claim:
            room, at = self._at[name]
            free, wanted = room.uses[at].free(request.request_id), times(request.shape.member, count)
            if not takers >> at & 1 or any(have < need for have, need in zip(free, wanted, strict=True)):
                return None
        return pools[0]

    # Where something fits

    def place(self, shape: Shape, pool: str, *, lasting: bool = False) -> Placement | None:
        """All members, tightest first (rule 5). None: they do not fit.

        Args:
            shape: what is to be placed.
            pool: where; quota and kind are not asked about.
            lasting: beside what is reserved in the pool; for what would run longer than until the reservation starts.
        """
        return self._rooms[pool].place(shape, lasting=lasting)

    def fits(self, shape: Shape, pool: str, *, lasting: bool = False) -> bool:
        """Whether `place` finds a place; cheaper."""
        return self._rooms[pool].fits(shape, lasting=lasting)

    def domains(self, shape: Shape, pool: str, *, lasting: bool = False) -> Iterator[Sequence[str]]:
        """The nodes within which all members must find places: of one domain after the other where the topology insists on one,
        that which holds most members first, then by name; else all. Only nodes that members may be placed on."""
        return self._rooms[pool].domains(shape, lasting=lasting)

    def members_on(self, name: str, shape: Shape, *, lasting: bool = False) -> int:
        """How many members a node holds now, if it is one that they may be placed on."""
        room, at = self._at[name]
        return room.members_on(at, shape, lasting=lasting)

    def enough_for_one(self, name: str, shape: Shape, leases: Iterable[Lease], *, lasting: bool = False) -> int:
        """How many of these leases, the first ones, would have to go for the node to hold a member more. 0: all are too few.

        None of them may be yielding already.
        """
        room, at = self._at[name]
        held = [
            (times(lease.shape.member, count), lease.granted + lease.run_micros)
            for lease in leases
            for on, count in lease.placement
            if on == name
        ]
        return room.enough_for_one(at, shape, held, lasting=lasting)

    def place_plainly(self, shape: Shape, pool: str) -> Placement | None:
        """As `place`, but nodes and domains in order of name, so that what is reserved stays where it is (rule 8)."""
        return self._rooms[pool].place_plainly(shape)

    def reserve(self, reservation: Reservation, shape: Shape) -> None:
        """Keeps a placement from what is placed `lasting`. To be called while the cluster is as it will be at `starts`: see
        `reservation.reserve`."""
        self._rooms[reservation.pool].reserve(reservation, shape.member)

    def reservation(self, pool: str) -> Reservation | None:
        """Of this pool."""
        return self._rooms[pool].reservation

    def drop_reservations(self) -> None:
        """Before another pass of the same round."""
        for room in self._rooms.values():
            room.drop_reservation()

    # Why something does not fit

    def placeable(self, shape: Shape, pool: str) -> int:
        """Members that could be placed now, at most all; in one domain where the topology insists on it."""
        return self._rooms[pool].placeable(shape)

    def free(self, shape: Shape, pool: str) -> Amounts:
        """Of all nodes that the shape's members may be placed on, together."""
        return self._rooms[pool].free(shape)

    def short(self, shape: Shape, pool: str) -> Resource | None:
        """The first resource that all nodes the members may be placed on have too little free of, together. None: enough."""
        return next(
            (of for of, need, have in zip(Resource, shape.total, self.free(shape, pool), strict=True) if need > have), None
        )

    def shortage(self, shape: Shape) -> NoCapacity | Fragmented | None:
        """Why it fits in no pool, reservations apart (rule 11). None: it does."""
        by = first_resource(shape)
        pools = self.pools_for(shape)
        if not pools:
            return NoCapacity(shape.total[by], 0, 0, shape.kind, by.name.lower())
        free = {pool.name: self.free(shape, pool.name) for pool in pools}
        short = {pool.name: self.short(shape, pool.name) for pool in pools}
        enough = [name for name in free if short[name] is None]
        roomiest = min(enough or free, key=lambda name: (-free[name][by], name))
        if (lacking := short[roomiest]) is not None:
            total = self._rooms[roomiest].total(shape)[lacking]
            return NoCapacity(shape.total[lacking], free[roomiest][lacking], total, shape.kind, lacking.name.lower())
        if any(self.fits(shape, name) for name in free):
            return None
        placeable = max(self.placeable(shape, name) for name in free)
        return Fragmented(shape.members, placeable, free[roomiest][Resource.ACCELERATORS], shape.kind)

    def fits_empty(self, shape: Shape, pool: str) -> bool:
        """Whether all known nodes of the pool, cordoned and lost too, hold it when nobody holds anything (rule 6)."""
        return self._rooms[pool].placeable_empty(shape) >= shape.members

    def exceeds(self, shape: Shape) -> ExceedsMaximum | None:
        """Why no pool could ever hold it (rule 6). None: one could, or nothing of the kind is known yet: that is waited out."""
        rooms = [self._rooms[pool.name] for pool in self.pools_for(shape)]
        members = max((room.placeable_empty(shape) for room in rooms), default=0)
        if members >= shape.members:
            return None
        if members:
            by = first_resource(shape)
            return ExceedsMaximum(shape.total[by], members * shape.member[by], shape.kind, by.name.lower())
        totals = [total for room in rooms for total in room.totals(shape.labels)]
        for resource, need in zip(Resource, shape.member, strict=True):
            enough = [total for total in totals if total[resource] >= need]
            if not enough:
                most = max((total[resource] for total in totals), default=0)
                return ExceedsMaximum(shape.total[resource], most, shape.kind, resource.name.lower()) if most else None
            totals = enough
        return None


def first_resource(shape: Shape) -> Resource:
    """The one a shape is spoken of by: the first that it takes any of."""
    return next((resource for resource in Resource if shape.member[resource]), Resource.ACCELERATORS)
