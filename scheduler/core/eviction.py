"""The search for those who yield to one request in one pool (rule 9).

Room is made node by node, where it costs least: leases removed in order of their loss alone would be scattered over all nodes,
and whoever needs a whole one would find none, however much is borrowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.core.potential import Alike
from scheduler.core.reservation import runs_into
from scheduler.core.settled import Settled
from scheduler.core.types import Placement, PriorityClass, Request
from scheduler.core.victims import Victim


class Search:
    """For the victims of a request."""

    def __init__(self, settled: Settled, request: Request, pool: str) -> None:
        self.request, self.pool = request, pool
        self._settled, self._tree, self._cluster = settled, settled.tree, settled.cluster
        self._asking = settled.alike(request, pool)
        self._lasting = runs_into(self._cluster.reservation(pool), request.request_id, request.run_micros, settled.now)
        self._removed: list[Victim] = []
        self._gone: set[str] = set()
        """The ids of those removed."""
        self._tokens, self._waste_ms = settled.brakes.preemptions_left, settled.brakes.waste_ms_left

    def place(self) -> Placement | None:
        """Where it goes now."""
        return self._cluster.place(self.request.shape, self.pool, lasting=self._lasting)

    def fits(self) -> bool:
        """Whether quota and capacity allow it; the request is not in the tree."""
        return self._tree.short(self._asking.leaf, self.pool, self._asking.amounts) is None and self._has_room()

    def victims(self) -> list[Victim]:
        """Who yields: they are out of tree and cluster then, and the request is in the tree. Nobody: all is as before."""
        if not self._tokens:
            return []
        candidates = [*self._settled.candidates(self.pool).in_order(self._asking, self._waste_ms)]
        self._settled.weighed += len(candidates)
        if not self._could_have_room(candidates):
            return []
        self._use(self._asking, 1, begin=True)
        if self._make_room(candidates) and self._make_quota(candidates):
            self._fill_back()
            if all(self._may_displace(victim.alike) for victim in self._removed) and self._potential_falls():
                return self._removed
        self._put_back_to(0)
        self._use(self._asking, -1)
        return []

    # Capacity

    def _could_have_room(self, candidates: Sequence[Victim]) -> bool:
        """Whether all of them would be enough, wherever they are. Most of those who are asked about in vain end here."""
        wanted = self.request.shape.total
        given = [victim.alike.amounts for victim in candidates]
        free = self._cluster.free(self.request.shape, self.pool)
        return bool(given) and all(
            have + sum(amounts[of] for amounts in given) >= need
            for of, (have, need) in enumerate(zip(free, wanted, strict=True))
        )

    def _make_room(self, candidates: Sequence[Victim]) -> bool:
        """Removes candidates node by node until the cluster has room for the request."""
        if self._has_room():
            return True
        on_nodes: dict[str, list[Victim]] = {}
        for victim in candidates:
            for name, _ in victim.lease.placement:
                on_nodes.setdefault(name, []).append(victim)
        for domain in self._cluster.domains(self.request.shape, self.pool, lasting=self._lasting):
            there = {name: on_nodes[name] for name in domain if name in on_nodes}
            while self._gain_once(there):
                if self._has_room():
                    return True
            self._put_back_to(0)
        return False

    def _gain_once(self, on_nodes: dict[str, list[Victim]]) -> bool:
        """Makes room for one more member on each of the nodes, the least loss first, until all fit. Whether for any."""
        gained = False
        for name in self._by_bill(on_nodes):
            if self._gain_on(name, on_nodes[name]):
                gained = True
                if self._has_room():
                    break
        return gained

    def _by_bill(self, on_nodes: dict[str, list[Victim]]) -> list[str]:
        """The nodes by what has to go for one more member: the first candidates of the node that are enough."""
        bills: list[tuple[PriorityClass, int, int, int, str]] = []
        for name, victims in on_nodes.items():
            left = [victim for victim in victims if victim.lease_id not in self._gone]
            leases = [victim.lease for victim in left]
            if count := self._cluster.enough_for_one(name, self.request.shape, leases, lasting=self._lasting):
                bill = left[:count]
                lost_ms = sum(victim.lost_ms for victim in bill)
                bills.append((bill[-1].priority_class, lost_ms, count, bill[-1].newest_first, name))
        return [name for *_, name in sorted(bills)]

    def _gain_on(self, name: str, victims: Iterable[Victim]) -> bool:
        """Removes candidates of the node until one more member fits there. If it does not come to that, puts them back."""
        before, members = len(self._removed), self._members_on(name)
        for victim in victims:
            if self._remove(victim) and self._members_on(name) > members:
                return True
        self._put_back_to(before)
        return False

    def _members_on(self, name: str) -> int:
        return self._cluster.members_on(name, self.request.shape, lasting=self._lasting)

    def _has_room(self) -> bool:
        return self._cluster.fits(self.request.shape, self.pool, lasting=self._lasting)

    # Quota

    def _make_quota(self, candidates: Iterable[Victim]) -> bool:
        """Removes candidates, the least loss first, until quota allows the request."""
        left = iter(candidates)
        while not self._within_quota():
            if not any(self._remove(victim) for victim in left):
                return False
        return True

    def _within_quota(self) -> bool:
        """The request is in the tree."""
        leaf, pool, amounts = self._asking.leaf, self.pool, self._asking.amounts
        self._tree.remove(leaf, pool, amounts)
        short = self._tree.short(leaf, pool, amounts)
        self._tree.add(leaf, pool, amounts)
        return short is None

    # One lease

    def _remove(self, victim: Victim) -> bool:
        """Removes the lease, if it is there and rules and brakes allow that."""
        if victim.lease_id in self._gone or not self._tokens or victim.lost_ms > self._waste_ms:
            return False
        self._take_out(victim)
        if self._may_displace(victim.alike) and self._potential_falls():
            return True
        self._put_back()
        return False

    def _fill_back(self) -> None:
        """Puts back those that need not go, the last removed first."""
        needed: list[Victim] = []
        while self._removed:
            victim = self._put_back()
            if not (self._has_room() and self._within_quota()):
                needed.append(victim)
                self._take_out(victim)
                self._removed.pop()
        self._removed = needed[::-1]

    def _may_displace(self, victim: Alike) -> bool:
        """(a) or (b) of rule 9, with the request in the tree and the victim, with all others removed, not."""
        if victim.leaf == self._asking.leaf:
            return victim.priority_class < self._asking.priority_class
        ours, theirs = self._tree.sides(self._asking.leaf, victim.leaf)
        borrows_with_it, _ = self._tree.weigh(theirs, victim.leaf, self.pool, victim.amounts)
        if not borrows_with_it:
            return False
        if not self._tree.borrows(ours, self.pool, self._asking.amounts):
            return True
        return victim.priority_class <= self._asking.priority_class and self._tree.cost(ours) < self._tree.cost(theirs)

    def _potential_falls(self) -> bool:
        """(c) of rule 9: who was preempted displaces others only if it does."""
        return not self.request.preempted or self._settled.standing.falls()

    def _take_out(self, victim: Victim) -> None:
        self._removed.append(victim)
        self._gone.add(victim.lease_id)
        self._tokens -= 1
        self._waste_ms -= victim.lost_ms
        self._cluster.give_lease(victim.lease)
        self._use(victim.alike, -1)

    def _put_back(self) -> Victim:
        """The one that was removed last."""
        victim = self._removed.pop()
        self._gone.remove(victim.lease_id)
        self._tokens += 1
        self._waste_ms += victim.lost_ms
        self._cluster.take_lease(victim.lease)
        self._use(victim.alike, 1)
        return victim

    def _put_back_to(self, count: int) -> None:
        """All but the first so many."""
        while len(self._removed) > count:
            self._put_back()

    def _use(self, of: Alike, sign: int, *, begin: bool = False) -> None:
        """One more uses the tree, or one less."""
        (self._tree.add if sign > 0 else self._tree.remove)(of.leaf, of.pool, of.amounts)
        if self.request.preempted:
            standing = self._settled.standing
            if begin:
                standing.begin()
            standing.change(of, sign)
