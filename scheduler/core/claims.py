"""Step 2: claims whose victims are gone become leases; those that nothing can come of are dissolved."""

from __future__ import annotations

from scheduler.core.state import State
from scheduler.core.types import Request


def place_claims(state: State) -> None:
    """Highest class first, then by line; again until nothing changes, for what one gives up may be another's."""
    backlog = state.snapshot.requests
    waiting = sorted(
        backlog.claimed(),
        key=lambda request: (-state.effective(state.tree.leaf(request.queue), request.priority), backlog.line_key(request)),
    )
    for request in waiting:
        state.cluster.claim(request.request_id, request.claim, request.shape.member)
    settled = True
    while settled:
        left = [request for request in waiting if not _settle(state, request)]
        settled, waiting = len(left) < len(waiting), left
    state.settle(waiting)


def _settle(state: State, request: Request) -> bool:
    """Grants or dissolves the claim; or not, then it waits for victims."""
    pool = state.cluster.pool_of_claim(request)
    if pool is not None and state.affords(
        state.tree.leaf(request.queue), state.demand(request.shape), request.run_micros, pool
    ):
        state.cluster.unclaim(request.request_id)
        state.grant(request, pool, request.claim)
        return True
    if state.cluster.claim_lives(request):
        on_its_nodes = any(name in state.yielding_on for name, _ in request.claim)
        # What is free, and too much for its quota, may be within when others have yielded, wherever they are.
        if on_its_nodes or (pool is not None and state.yielding_on):
            return False
    state.cluster.unclaim(request.request_id)
    state.dissolved.append(request.request_id)
    return True
