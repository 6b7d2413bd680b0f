"""The state that a pass of preemption looks at: as if all preemptions under way were done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

from scheduler.core.cluster import Cluster
from scheduler.core.potential import Alike, Standing
from scheduler.core.quota import QuotaTree
from scheduler.core.types import Brakes, Lease, Limits, Micros, PriorityClass, Request, class_of
from scheduler.core.victims import Candidates, Victim


class Settled:
    """Who uses what when all preemptions under way are done; and who could yield. What is free is as it is now."""

    def __init__(
        self,
        cluster: Cluster,
        tree: QuotaTree,
        leases: Collection[Lease],
        claimed: Iterable[Request],
        brakes: Brakes,
        limits: Limits,
        now: Micros,
    ) -> None:
        """See `Preemption`."""
        self.cluster = cluster
        self.brakes = brakes
        """What is left of them."""
        self.now = now
        self.tree = tree.copy()
        self.weighed = 0
        self._leases, self._limits = leases, limits
        self._claims = [(request, cluster.node(request.claim[0][0]).pool) for request in claimed]
        self._yielding = {lease.lease_id for lease in leases if lease.preempted_for is not None}
        for lease in leases:
            if lease.preempted_for is not None:
                self.tree.remove(self.tree.leaf(lease.queue), lease.pool, lease.shape.total)
        for request, pool in self._claims:
            self.tree.add(self.tree.leaf(request.queue), pool, request.shape.total)
        self._alike: dict[tuple[str, int, str, int], Alike] = {}
        self._candidates: dict[str, Candidates] = {}

    def alike(self, of: Lease | Request, pool: str) -> Alike:
        """What the rules ask of a lease, or of a request in a pool."""
        # Who asks for the same mostly has the same object, and that is much faster to find; leases and requests keep it alive.
        asked = of.queue, of.priority, pool, id(of.shape)
        found = self._alike.get(asked)
        if found is None:
            leaf = self.tree.leaf(of.queue)
            priority_class = PriorityClass.SCAVENGER if self.tree.demoted(leaf) else class_of(of.priority)
            found = self._alike[asked] = Alike(leaf, priority_class, pool, of.shape.total)
        return found

    def candidates(self, pool: str) -> Candidates:
        """What could yield in a pool."""
        found = self._candidates.get(pool)
        if found is None:
            could_yield = ((lease, self.alike(lease, pool)) for lease in self._could_yield(pool))
            found = self._candidates[pool] = Candidates(self.tree, pool, could_yield, self.now)
        return found

    def _could_yield(self, pool: str) -> Iterator[Lease]:
        # What was granted in this moment is not taken back in it.
        run_minimum = max(1, self._limits.run_minimum_micros)
        for lease in self._leases:
            if lease.pool == pool and self.now - lease.granted >= run_minimum and lease.lease_id not in self._yielding:
                yield lease

    @cached_property
    def standing(self) -> Standing:
        """Of all that will run."""
        running = [self.alike(lease, lease.pool) for lease in self._leases if lease.lease_id not in self._yielding]
        return Standing(self.tree, [*running, *(self.alike(request, pool) for request, pool in self._claims)])

    def decided(self, request: Request, pool: str, victims: Collection[Victim]) -> None:
        """These yield to the request from now on; the tree knows."""
        self._yielding.update(victim.lease_id for victim in victims)
        self._claims.append((request, pool))
        self.brakes = Brakes(
            self.brakes.preemptions_left - len(victims), self.brakes.waste_ms_left - sum(victim.lost_ms for victim in victims)
        )
        for other, candidates in self._candidates.items():
            candidates.changed(victims if other == pool else ())
        if not request.preempted and "standing" in self.__dict__:
            # The search did not keep it.
            for victim in victims:
                self.standing.change(victim.alike, -1)
            self.standing.change(self.alike(request, pool), 1)
