"""Step 6: why what is left waits, in the state that the decisions lead to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scheduler.core.groups import Group
from scheduler.core.quota import ROOT, NodeIndex
from scheduler.core.reasons import (
    AwaitsPreemption,
    BudgetReached,
    FairShare,
    Fragmented,
    NoCapacity,
    NotEvaluated,
    QuotaReached,
    Reason,
    Reserved,
)
from scheduler.core.reservation import runs_into
from scheduler.core.state import Demand, State
from scheduler.core.types import Grant, Pool, Request, Resource, Waiting
from scheduler.core.usage import Short


class Start:
    """What was open to whom before anything was granted in the fair order."""

    def __init__(self, state: State) -> None:
        self._usage = state.usage.copy()
        self._budgets = state.budgets.copy()
        self._open = {demand: demand.open_pools for demand in state.demands()}
        self.grants = len(state.grants)
        """How many claims had been placed."""

    def had_room(self, leaf: NodeIndex, demand: Demand, run_micros: int) -> bool:
        """Whether quota, budget and capacity of some pool allowed it."""
        return any(
            self._usage.short(leaf, pool.name, demand.amounts) is None
            and self._budgets.short(leaf, demand.shape, run_micros, pool) is None
            for pool in self._open.get(demand, ())
        )


class _Found(NamedTuple):
    """What holds for all of a queue who ask for the same."""

    reasons: tuple[Reason, ...]
    room: tuple[Pool, ...]
    """Where nothing but a reservation can stand in the way."""


class Explanation:
    """Reasons of groups. What is the same for all that ask for the same is found out once."""

    def __init__(self, state: State, start: Start, not_reached: Iterable[Group]) -> None:
        self._state = state
        self._start = start
        self._not_reached = {group.key for group in not_reached}
        self._ahead = _Ahead(state.grants[start.grants :])
        self._found: dict[tuple[NodeIndex, Demand, int], _Found] = {}
        self._lacking: dict[tuple[Demand, str], Resource | None] = {}
        self._shortages: dict[Demand, NoCapacity | Fragmented | None] = {}
        self._fits: dict[tuple[Demand, str, bool], bool] = {}

    def waiting(self, groups: Iterable[Group]) -> tuple[Waiting, ...]:
        """Of each group that has somebody left."""
        return tuple(Waiting(group.key, self._reasons(group, first)) for group in groups if (first := group.first) is not None)

    def _reasons(self, group: Group, first: Request) -> tuple[Reason, ...]:
        if first.request_id in self._state.pending:
            return (AwaitsPreemption(self._state.yielding[first.request_id]),)
        if group.key in self._not_reached:
            return (NotEvaluated(),)
        leaf, demand = group.leaf, group.demand
        # Only budgets care for how long it runs.
        asked = leaf, demand, first.run_micros if self._state.budgets.limit(leaf) else 0
        found = self._found.get(asked)
        if found is None:
            found = self._found[asked] = self._find(leaf, demand, first)
        for pool in found.room:
            if (reserved := self._reserved(demand, first, pool)) is not None:
                return (*found.reasons, reserved)
        return found.reasons

    def _find(self, leaf: NodeIndex, demand: Demand, request: Request) -> _Found:
        """All reasons that hold but reservations, in order of precedence; each of the first pool that it holds in."""
        state = self._state
        budget: Reason | None = None
        quota: Reason | None = None
        within_quota: Pool | None = None
        room: list[Pool] = []
        pools = state.in_order(leaf, demand, demand.pools)
        limited = state.budgets.limit(leaf)
        for pool in pools:
            overdrawn = state.budgets.short(leaf, demand.shape, request.run_micros, pool) if limited else None
            if overdrawn is not None and budget is None:
                name = state.tree.nodes[overdrawn.node].name
                budget = BudgetReached(name, overdrawn.unit, overdrawn.requested, overdrawn.left)
            short = state.usage.short(leaf, pool.name, demand.amounts)
            if short is None:
                within_quota = within_quota or pool
                if overdrawn is None and self._fit(demand, pool, lasting=False):
                    room.append(pool)
            elif quota is None:
                quota = self._quota_reached(short, leaf, demand, pool)
        unfair = None if room or not pools else self._fair_share(leaf, demand, request, within_quota or pools[0])
        every = (budget, quota, unfair, self._shortage(demand))
        return _Found(tuple(reason for reason in every if reason is not None), tuple(room))

    def _fit(self, demand: Demand, pool: Pool, *, lasting: bool) -> bool:
        if pool not in demand.open_pools:
            return False
        asked = demand, pool.name, lasting
        if asked not in self._fits:
            self._fits[asked] = self._state.cluster.fits(demand.shape, pool.name, lasting=lasting)
        return self._fits[asked]

    def _lacks(self, demand: Demand, pool: Pool) -> Resource | None:
        """What too little is free of in all."""
        asked = demand, pool.name
        if asked not in self._lacking:
            self._lacking[asked] = self._state.cluster.short(demand.shape, pool.name)
        return self._lacking[asked]

    def _shortage(self, demand: Demand) -> NoCapacity | Fragmented | None:
        if demand not in self._shortages:
            self._shortages[demand] = self._state.cluster.shortage(demand.shape)
        return self._shortages[demand]

    def _reserved(self, demand: Demand, request: Request, pool: Pool) -> Reserved | None:
        kept = self._state.cluster.reservation(pool.name)
        if kept is None or not runs_into(kept, request.request_id, request.run_micros, self._state.now):
            return None
        return None if self._fit(demand, pool, lasting=True) else Reserved(kept.request_id, kept.starts)

    def _fair_share(self, leaf: NodeIndex, demand: Demand, request: Request, pool: Pool) -> FairShare | None:
        """That there was room for it, and others got it. It would be placed in the pool."""
        ahead = self._ahead.of(request.queue, demand)
        if ahead is None or not self._start.had_room(leaf, demand, request.run_micros):
            return None
        settled = self._state.usage.settled
        _, cost = settled.weigh(leaf, leaf, pool.name, demand.amounts)
        return FairShare(request.queue, cost, ahead, settled.cost(settled.leaf(ahead)))

    def _quota_reached(self, short: Short, leaf: NodeIndex, demand: Demand, pool: Pool) -> QuotaReached | None:
        tree, resource = short
        node = tree.limiting(leaf, pool.name, resource)
        # What the root has is the capacity, but for what others keep: where too little is free, that is what is said.
        if node == ROOT and self._lacks(demand, pool) is not None:
            return None
        use = tree.of(node, pool.name, resource)
        return QuotaReached(
            node=tree.nodes[node].name,
            pool=pool.name,
            resource=resource.name.lower(),
            requested=demand.amounts[resource],
            used=use.used,
            nominal=use.quota,
            maximum=use.maximum,
        )


class _Ahead:
    """Who took the last of a pool."""

    def __init__(self, grants: Sequence[Grant]) -> None:
        self._last: dict[str, list[tuple[int, str]]] = {}
        """By pool: the number of the last grant and its queue, and the same of the last one of another queue than that."""
        self._latest: dict[Demand, tuple[str, ...]] = {}
        """The queues of these that the demand's pools know of, the last first."""
        for number, grant in enumerate(grants):
            queue = grant.request.queue
            last = self._last.setdefault(grant.pool, [])
            if last and last[0][1] != queue:
                last[1:] = [last[0]]
            last[:1] = [(number, queue)]

    def of(self, queue: str, demand: Demand) -> str | None:
        """The queue of the last grant in one of the demand's pools to another than this one."""
        latest = self._latest.get(demand)
        if latest is None:
            granted = (each for pool in demand.pools for each in self._last.get(pool.name, ()))
            latest = self._latest[demand] = tuple(dict.fromkeys(name for _, name in sorted(granted, reverse=True)))
        return next((name for name in latest if name != queue), None)
