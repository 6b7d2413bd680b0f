"""Whose leases yield to a request (§9)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scheduler.core.reference.fitting import place, slots
from scheduler.core.reference.potential import Running, falls, running
from scheduler.core.reference.state import State, amounts_of
from scheduler.core.reference.tree import Used, add, cells_of
from scheduler.core.types import Brakes, Lease, Micros, Placement, Pool, PriorityClass, Request, TopologyMode


@dataclass(frozen=True)
class Eviction:
    """Who yields, as weighed, and what the request is then placed on. No victims: nothing is to be done."""

    victims: tuple[Lease, ...]
    placement: Placement
    weighed: int


NONE = Eviction((), (), 0)


def evict(state: State, request: Request, brakes: Brakes) -> Eviction:
    """In the first pool where it can be."""
    weighed = 0
    for pool in state.allowed(request):
        if state.budget_short(request, pool) is None:
            found = _evict_in(state, request, pool, brakes)
            weighed += found.weighed
            if found.victims:
                return Eviction(found.victims, found.placement, weighed)
    return Eviction((), (), weighed)


def lost_ms(lease: Lease, now: Micros) -> int:
    """Accelerator-milliseconds of work that is not safe."""
    return lease.shape.accelerators * _unsafe_micros(lease, now) // 1000


def _evict_in(state: State, request: Request, pool: Pool, brakes: Brakes) -> Eviction:
    if _fits(state, request, pool, ()):
        return NONE
    attempt = _Attempt(state, request, pool, brakes, tuple(_candidates(state, request, pool, brakes)))
    weighed = len(attempt.candidates)
    removed = attempt.fill_back(attempt.make_quota(attempt.make_room()))
    lawful = all(_may_displace(state, request, pool, lease, removed) for lease in removed)
    placement = _placement(state, request, pool, removed)
    if not removed or placement is None or not lawful or not _may_return(state, request, pool, removed):
        return Eviction((), (), weighed)
    return Eviction(tuple(removed), placement, weighed)


@dataclass(frozen=True)
class _Attempt:
    """To find who must go from one pool. Each step is given those removed so far; None and then nobody: it cannot be."""

    state: State
    request: Request
    pool: Pool
    brakes: Brakes
    candidates: tuple[Lease, ...]
    """In the order of weighing."""

    def make_room(self) -> list[Lease] | None:
        """Frees nodes of one domain, those first where it costs least, until the request can be placed."""
        if self.has_room([]):
            return []
        for domain in self.domains():
            removed: list[Lease] = []
            while (more := self.go_through(domain, removed)) != removed:
                removed = more
                if self.has_room(removed):
                    return removed
        return None

    def go_through(self, domain: Sequence[str], removed: list[Lease]) -> list[Lease]:
        """Frees one slot more on each node where it can be, until there is room."""
        bills = {node: bill for node in domain if (bill := self.bill(node, removed))}
        for node in sorted(bills, key=lambda node: (*self.price(bills[node]), node)):
            before, freed = self.slots_on(node, removed), removed
            for lease in self.on(node, removed):
                if self.may_go(lease, freed):
                    freed = [*freed, lease]
                if self.slots_on(node, freed) > before:
                    break
            if self.slots_on(node, freed) > before:
                removed = freed
                if self.has_room(removed):
                    break
        return removed

    def bill(self, node: str, removed: Sequence[Lease]) -> list[Lease] | None:
        """The first candidates on a node that would have to go for one slot more there."""
        there = self.on(node, removed)
        starts = (there[:count] for count in range(1, len(there) + 1))
        before = self.slots_on(node, removed)
        return next((start for start in starts if self.slots_on(node, [*removed, *start]) > before), None)

    def price(self, bill: Sequence[Lease]) -> tuple[PriorityClass, int, int, int]:
        """Which bill is the lowest."""
        last = bill[-1]
        return self.state.effective(last), sum(lost_ms(z, self.state.now) for z in bill), len(bill), -last.granted

    def make_quota(self, removed: list[Lease] | None) -> list[Lease] | None:
        """Removes further, whoever may go, until quota allows the request."""
        if removed is None:
            return None
        for lease in self.candidates:
            if _quota_allows(self.state, self.request, self.pool, removed):
                break
            if lease not in removed and self.may_go(lease, removed):
                removed = [*removed, lease]
        return removed if _quota_allows(self.state, self.request, self.pool, removed) else None

    def fill_back(self, removed: list[Lease] | None) -> list[Lease]:
        """Without those that need not go after all."""
        kept = removed or []
        for lease in reversed(kept):
            fewer = [some for some in kept if some is not lease]
            if _fits(self.state, self.request, self.pool, fewer):
                kept = fewer
        return kept

    def may_go(self, lease: Lease, removed: Sequence[Lease]) -> bool:
        """Whether a lease may be removed after these."""
        more = [*removed, lease]
        lost = sum(lost_ms(some, self.state.now) for some in more)
        return (
            len(more) <= self.brakes.preemptions_left
            and lost <= self.brakes.waste_ms_left
            and _may_displace(self.state, self.request, self.pool, lease, more)
            and _may_return(self.state, self.request, self.pool, more)
        )

    def on(self, node: str, removed: Sequence[Lease]) -> list[Lease]:
        """The candidates on a node that are not removed."""
        return [lease for lease in self.candidates if node in dict(lease.placement) and lease not in removed]

    def domains(self) -> list[list[str]]:
        """Where all members have to go together: the domains with most room now first; or all nodes."""
        shape, room = self.request.shape, self.state.unreserved(self.request, self.pool)
        if shape.topology is None or shape.topology.mode is TopologyMode.PREFERRED:
            return [sorted(room)]
        domains = self.state.domains(shape)
        found = {name: [node for node in sorted(room) if domains.get(node) == name] for name in domains.values()}
        return sorted(
            (nodes for nodes in found.values() if nodes),
            key=lambda nodes: (-sum(slots(room[node], shape) for node in nodes), domains[nodes[0]]),
        )

    def slots_on(self, node: str, removed: Sequence[Lease]) -> int:
        """How many members a node has room for without these."""
        room = self.state.unreserved(self.request, self.pool, {lease.lease_id for lease in removed})
        return slots(room[node], self.request.shape)

    def has_room(self, removed: Sequence[Lease]) -> bool:
        """Whether the request can be placed without these, quota apart."""
        return _placement(self.state, self.request, self.pool, removed) is not None


def _candidates(state: State, request: Request, pool: Pool, brakes: Brakes) -> list[Lease]:
    """The leases that could yield, those whose loss is smallest first."""
    found = [
        lease
        for lease in state.leases
        if lease.pool == pool.name
        and lease.preempted_for is None
        # What was granted in this moment is not taken back in it.
        and state.now - lease.granted >= max(1, state.limits.run_minimum_micros)
        and lost_ms(lease, state.now) <= brakes.waste_ms_left
        and _may_displace(state, request, pool, lease, ())
    ]
    return sorted(found, key=lambda z: (state.effective(z), _unsafe_micros(z, state.now), -z.granted, z.lease_id))


def _may_displace(state: State, request: Request, pool: Pool, victim: Lease, victims: Collection[Lease]) -> bool:
    """Whether the request may have the victim's place once all victims are gone and it is there."""
    if victim.queue == request.queue:
        return state.effective(victim) < state.effective(request)
    tree = state.tree
    mine, theirs = tree.sides(request.queue, victim.queue)
    used = _used_after(state, request, pool, victims)
    used_with_victim = _used_after(state, request, pool, [some for some in victims if some is not victim])
    if not tree.borrows(theirs, cells_of(victim.pool, amounts_of(victim.shape)), used_with_victim):
        return False
    within = not tree.borrows(mine, cells_of(pool.name, amounts_of(request.shape)), used)
    not_above = state.effective(victim) <= state.effective(request)
    return within or (not_above and tree.cost(mine, used) < tree.cost(theirs, used))


def _may_return(state: State, request: Request, pool: Pool, victims: Collection[Lease]) -> bool:
    """Whether one that was itself preempted does not begin a circle by it."""
    if not request.preempted:
        return True
    before = running(state)
    added = Running(request.queue, pool.name, state.effective(request), amounts_of(request.shape))
    return falls(state, before, [*running(state, {lease.lease_id for lease in victims}), added])


def _used_after(state: State, request: Request, pool: Pool, victims: Collection[Lease]) -> Used:
    settled = state.settled({lease.lease_id for lease in victims})
    return add(settled, request.queue, pool.name, amounts_of(request.shape))


def _fits(state: State, request: Request, pool: Pool, victims: Collection[Lease]) -> bool:
    """Whether quota and capacity allow the request once these are gone."""
    return _quota_allows(state, request, pool, victims) and _placement(state, request, pool, victims) is not None


def _quota_allows(state: State, request: Request, pool: Pool, victims: Collection[Lease]) -> bool:
    used = state.settled({lease.lease_id for lease in victims})
    return state.tree.short(request.queue, cells_of(pool.name, amounts_of(request.shape)), used) is None


def _placement(state: State, request: Request, pool: Pool, victims: Collection[Lease]) -> Placement | None:
    gone = {lease.lease_id for lease in victims}
    return place(request.shape, state.unreserved(request, pool, gone), state.domains(request.shape))


def _unsafe_micros(lease: Lease, now: Micros) -> int:
    return now - max(lease.granted, lease.checkpointed or lease.granted)
