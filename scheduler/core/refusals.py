"""What can never be granted: the cluster as it is known, or a quota, does not allow so much even when nothing else runs."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.core.groups import Group
from scheduler.core.quota import NodeIndex
from scheduler.core.reasons import ExceedsMaximum
from scheduler.core.state import Demand, State
from scheduler.core.types import Pool, Refuse


class Maximum:
    """The most that queues can ever be granted. Answers are remembered: none depends on what happens in a round."""

    def __init__(self, state: State) -> None:
        self._cluster = state.cluster
        self._tree = state.idle_tree
        self._holding: dict[Demand, list[Pool]] = {}
        self._known: dict[tuple[NodeIndex, Demand], ExceedsMaximum | None] = {}

    def exceeded(self, leaf: NodeIndex, demand: Demand) -> ExceedsMaximum | None:
        """Why the queue can never be granted a lease of the shape. None: it can; or the maximum is 0, which is waited out."""
        asked = leaf, demand
        if asked not in self._known:
            self._known[asked] = self._exceeded(leaf, demand)
        return self._known[asked]

    def _exceeded(self, leaf: NodeIndex, demand: Demand) -> ExceedsMaximum | None:
        holding = self._holding.get(demand)
        if holding is None:
            holding = [pool for pool in demand.pools if self._cluster.fits_empty(demand.shape, pool.name)]
            self._holding[demand] = holding
        if not holding:
            return self._cluster.exceeds(demand.shape)
        most: ExceedsMaximum | None = None
        for pool in sorted(holding, key=lambda pool: pool.name) if len(holding) > 1 else holding:
            found = self._by_quota(leaf, demand, pool)
            if found is None:
                return None
            if most is None or found.maximum > most.maximum:
                most = found
        return most if most is not None and most.maximum > 0 else None

    def _by_quota(self, leaf: NodeIndex, demand: Demand, pool: Pool) -> ExceedsMaximum | None:
        tree = self._tree
        if (resource := tree.short(leaf, pool.name, demand.amounts)) is None:
            return None
        return ExceedsMaximum(
            requested=demand.amounts[resource],
            maximum=max(0, tree.available(leaf, pool.name, resource) or 0),
            kind=demand.shape.kind,
            resource=resource.name.lower(),
            limited_by=tree.nodes[tree.limiting(leaf, pool.name, resource)].name,
        )


def refuse(state: State, groups: Iterable[Group], maximum: Maximum) -> None:
    """Ends what can never be granted."""
    for group in groups:
        if (reason := maximum.exceeded(group.leaf, group.demand)) is not None:
            state.refusals.extend(Refuse(request, reason) for request in group.refuse())
