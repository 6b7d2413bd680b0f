"""What falls whenever a request that was itself preempted displaces others, so that nobody goes round in a circle (§9 c)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

from scheduler.core.reference.fitting import plus
from scheduler.core.reference.state import NOBODY, State, amounts_of
from scheduler.core.types import Amounts, Cell, PriorityClass, Resource


class Running(NamedTuple):
    """What counts of a lease."""

    queue: str
    pool: str
    priority_class: PriorityClass
    amounts: Amounts


Standing: TypeAlias = list[tuple[PriorityClass, Amounts, int]]
"""Class, amounts and how many of them: of leases that fit into a node's own quota, the greatest first."""


def running(state: State, without: Collection[str] = NOBODY) -> list[Running]:
    """What will run when all preemptions under way are done, and these leases are gone."""
    staying = [lease for lease in state.leases if lease.preempted_for is None and lease.lease_id not in without]
    claiming = [request for request in state.requests if request.claim]
    return [
        *(Running(z.queue, z.pool, state.effective(z), amounts_of(z.shape)) for z in staying),
        *(Running(r.queue, state.node(r.claim[0][0]).pool, state.effective(r), amounts_of(r.shape)) for r in claiming),
    ]


def falls(state: State, before: Sequence[Running], after: Sequence[Running]) -> bool:
    """Whether more stands within quotas than before: at the deepest nodes of the tree that differ, and nowhere there less. If
    the same stands everywhere: whether more of the higher classes runs.
    """
    nodes = [name for name in state.tree.nodes if name != state.tree.root]
    for depth in sorted({len(state.tree.path(name)) for name in nodes}, reverse=True):
        pairs = [
            (_standing(state, name, pool.name, before), _standing(state, name, pool.name, after))
            for name in nodes
            for pool in state.snapshot.pools
            if len(state.tree.path(name)) == depth
        ]
        if any(was != will_be for was, will_be in pairs):
            return all(was <= will_be for was, will_be in pairs)
    return _classes(after) > _classes(before)


def _standing(state: State, name: str, pool: str, leases: Sequence[Running]) -> Standing:
    """Taken one by one, the highest class first and of a class the greatest, where they fit beside those before."""
    below = [lease for lease in leases if lease.pool == pool and name in state.tree.path(lease.queue)]
    counting = [resource for resource in Resource if (pool, resource) in state.tree.counting]
    taken: Counter[tuple[PriorityClass, Amounts]] = Counter()
    used: Amounts = (0, 0, 0)
    for lease in sorted(below, key=lambda lease: (lease.priority_class, lease.amounts), reverse=True):
        more = plus(used, lease.amounts)
        if all(more[resource] <= _nominal(state, name, (pool, resource)) for resource in counting):
            used = more
            taken[lease.priority_class, lease.amounts] += 1
    return [(*alike, count) for alike, count in sorted(taken.items(), reverse=True)]


def _nominal(state: State, name: str, cell: Cell) -> int:
    """Of all nodes of a subtree together, lent or not."""
    below = [node for node in state.tree.nodes.values() if name in state.tree.path(node.name)]
    return sum(node.quotas[cell].nominal for node in below if cell in node.quotas)


def _classes(leases: Sequence[Running]) -> list[int]:
    """How many run, the highest class first."""
    counts = Counter(lease.priority_class for lease in leases)
    return [counts[priority_class] for priority_class in sorted(PriorityClass, reverse=True)]
