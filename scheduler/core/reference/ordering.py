"""Whose turn it is (§4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.core.reference.state import State, amounts_of
from scheduler.core.reference.tree import cells_of
from scheduler.core.types import Micros, Pool, QueuedJob, Request


@dataclass(frozen=True)
class Turn:
    """What a queue would do next, of one class."""

    passed: tuple[Request, ...]
    """Heads of groups that nothing is open for; they stand before the one that is tried."""
    tried: Request | None
    """The head of the first group that a pool is open for. None: there is no such group."""
    pool: Pool | None
    """What the queue is compared with others for: the pool that its `speaker` would be placed in."""

    @property
    def speaker(self) -> Request:
        """The request that the queue is compared with others for."""
        return self.tried or self.passed[0]


def line_key(state: State, item: Request | QueuedJob) -> tuple[int, Micros, str]:
    """First in, first out, but for priority, a point of which counts for so much waiting."""
    name = item.request_id if isinstance(item, Request) else item.job_id
    return (item.submitted - item.priority * state.limits.aging_micros, item.submitted, name)


def first(state: State, turns: Mapping[str, Turn]) -> str:
    """The queue whose turn it is; at least one is given."""
    return _best(state, state.tree.root, turns) or min(turns)


def _best(state: State, node: str, turns: Mapping[str, Turn]) -> str | None:
    """Of the queues in a subtree."""
    if not (children := state.tree.children(node)):
        return node if node in turns else None
    best = {child: queue for child in children if (queue := _best(state, child, turns)) is not None}
    return best[min(best, key=lambda child: _key(state, child, turns[best[child]]))] if best else None


def _key(state: State, child: str, turn: Turn) -> tuple[object, ...]:
    used = state.used_with(turn.speaker, turn.pool)
    taken = {} if turn.pool is None else cells_of(turn.pool.name, amounts_of(turn.speaker.shape))
    return (
        state.tree.borrows(child, taken, used),
        state.tree.cost(child, used),
        state.tree.nodes[child].past_use,
        *line_key(state, turn.speaker),
    )
