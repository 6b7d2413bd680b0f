"""Why what is left waits: every reason that holds in the final state (§11)."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.core.reasons import (
    BudgetReached,
    FairShare,
    Fragmented,
    NoCapacity,
    QuotaReached,
    Reason,
    Reserved,
)
from scheduler.core.reference.fitting import first_resource, place, placeable
from scheduler.core.reference.refusing import resource_name
from scheduler.core.reference.state import State, amounts_of, pools_for
from scheduler.core.reference.tree import Used, cells_of
from scheduler.core.types import Amounts, Cell, Grant, Pool, Request, Resource


def reasons(start: State, end: State, request: Request, granted: Sequence[Grant]) -> tuple[Reason, ...]:
    """Of a request without claim that was looked at: in order of precedence."""
    pools = end.allowed(request)
    every = (
        _budget(end, request, pools),
        _quota(end, request, pools),
        _fair_share(start, end, request, granted),
        _capacity(end, request, pools),
        _placement(end, request, pools),
        _reserved(end, request, pools),
    )
    return tuple(reason for reason in every if reason is not None)


def _budget(state: State, request: Request, pools: Sequence[Pool]) -> Reason | None:
    short = next((found for pool in pools if (found := state.budget_short(request, pool)) is not None), None)
    return None if short is None else BudgetReached(*short)


def _quota(state: State, request: Request, pools: Sequence[Pool]) -> Reason | None:
    for pool in pools:
        if (short := state.quota_short(request, pool)) is not None:
            cell, used = short
            node = state.tree.limiting(request.queue, cell, used)
            # That all use as much as there is, is a matter of capacity.
            if node != state.tree.root or _short(state, request, pool) is None:
                return _quota_reached(state, request, cell, used, node)
    return None


def _quota_reached(state: State, request: Request, cell: Cell, used: Used, node: str) -> Reason:
    return QuotaReached(
        node=node,
        pool=cell[0],
        resource=resource_name(cell[1]),
        requested=amounts_of(request.shape)[cell[1]],
        used=state.tree.usage(node, cell, used),
        nominal=state.tree.subtree(node, cell),
        maximum=state.tree.maximum(node, cell),
    )


def _fair_share(start: State, end: State, request: Request, granted: Sequence[Grant]) -> Reason | None:
    names = {pool.name for pool in pools_for(request.shape, end.snapshot.pools)}
    others = [grant for grant in granted if grant.request.queue != request.queue and grant.pool in names]
    if not others or not start.has_room(request) or end.has_room(request):
        return None
    ahead = others[-1].request.queue
    return FairShare(
        queue=request.queue,
        cost=end.tree.cost(request.queue, end.used_with(request, end.pool_by_quota(request))),
        ahead_queue=ahead,
        ahead_cost=end.tree.cost(ahead, end.promised),
    )


def _capacity(state: State, request: Request, pools: Sequence[Pool]) -> Reason | None:
    shape, wanted = request.shape, amounts_of(request.shape)
    if not pools:
        return NoCapacity(wanted[first_resource(shape)], 0, 0, shape.kind, resource_name(first_resource(shape)))
    if any(_short(state, request, pool) is None for pool in pools):
        return None
    pool = _roomiest(state, request, pools)
    short = _short(state, request, pool) or Resource.ACCELERATORS
    total = sum(node.total[short] for node in state.eligible(shape, pool))
    return NoCapacity(wanted[short], _free(state, request, pool)[short], total, shape.kind, resource_name(short))


def _placement(state: State, request: Request, pools: Sequence[Pool]) -> Reason | None:
    shape, domains = request.shape, state.domains(request.shape)
    enough = [pool for pool in pools if _short(state, request, pool) is None]
    rooms = [state.room(request, pool) for pool in pools]
    if not enough or any(place(shape, room, domains) is not None for room in rooms):
        return None
    free = _free(state, request, _roomiest(state, request, enough))[Resource.ACCELERATORS]
    return Fragmented(shape.members, max(placeable(shape, room, domains) for room in rooms), free, shape.kind)


def _reserved(state: State, request: Request, pools: Sequence[Pool]) -> Reason | None:
    shape, domains = request.shape, state.domains(request.shape)
    for pool in pools:
        if state.quota_short(request, pool) is None and state.budget_short(request, pool) is None:
            fits = place(shape, state.room(request, pool), domains) is not None
            if fits and place(shape, state.unreserved(request, pool), domains) is None:
                kept = next(some for some in state.reservations if some.pool == pool.name)
                return Reserved(kept.request_id, kept.starts)
    return None


def _short(state: State, request: Request, pool: Pool) -> Resource | None:
    """The first resource that too little is free of, all eligible nodes of the pool together."""
    free = _free(state, request, pool)
    return next((cell[1] for cell, amount in cells_of("", amounts_of(request.shape)).items() if amount > free[cell[1]]), None)


def _roomiest(state: State, request: Request, pools: Sequence[Pool]) -> Pool:
    resource = first_resource(request.shape)
    return min(pools, key=lambda pool: (-_free(state, request, pool)[resource], pool.name))


def _free(state: State, request: Request, pool: Pool) -> Amounts:
    room = state.room(request, pool).values()
    return (sum(free[0] for free in room), sum(free[1] for free in room), sum(free[2] for free in room))
