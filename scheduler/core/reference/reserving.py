"""What is kept for a request that was blocked for long (§8)."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.reference.fitting import place, place_plainly
from scheduler.core.reference.refusing import quota_exceeded
from scheduler.core.reference.state import State
from scheduler.core.types import Pool, PriorityClass, Request, Reservation


@dataclass(frozen=True)
class Shadow:
    """Where and when a request fits at the latest, and how many leases had to be thought away to see it."""

    reservation: Reservation | None
    taken_away: int


def reserve(state: State, request: Request) -> Shadow:
    """In the first pool that can; for a request that was looked at and does not fit."""
    waited = state.now - request.submitted
    if waited < state.limits.reserve_after_micros or state.effective(request) is PriorityClass.SCAVENGER:
        return Shadow(None, 0)
    taken_away = 0
    for pool in state.allowed(request):
        if _blocked_by_capacity(state, request, pool) and all(kept.pool != pool.name for kept in state.reservations):
            shadow = _reserve_in(state, request, pool)
            taken_away += shadow.taken_away
            if shadow.reservation is not None:
                return Shadow(shadow.reservation, taken_away)
    return Shadow(None, taken_away)


def _blocked_by_capacity(state: State, request: Request, pool: Pool) -> bool:
    return (
        # What others use will end, as what stands in the way will. What the queue may never use is not kept for it.
        state.quota_short(request, pool, rootless=True) is None
        and quota_exceeded(state, request.queue, request.shape, pool) is None
        and state.budget_short(request, pool) is None
        and place(request.shape, state.room(request, pool), state.domains(request.shape)) is None
    )


def _reserve_in(state: State, request: Request, pool: Pool) -> Shadow:
    ending = sorted((state.ends_at(lease), lease.lease_id) for lease in state.leases if lease.pool == pool.name)
    for count, (end, _) in enumerate(ending, 1):
        gone = {lease_id for _, lease_id in ending[:count]}
        placement = place_plainly(request.shape, state.room(request, pool, gone), state.domains(request.shape))
        if placement is not None:
            return Shadow(Reservation(request.request_id, pool.name, end, placement), count)
    return Shadow(None, len(ending))
