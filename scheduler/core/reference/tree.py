"""The quota tree: what a node of it may use, and what it costs that it uses more than its own.

The algebra of nominal quota, guaranteed part, borrowing and lending is that of Kueue's cohorts; the cost is its dominant
resource share. `Used` says what every queue holds; all else is counted from it whenever it is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from scheduler.core.types import Amounts, Cell, Limits, Pool, QueueNode, Quota, Resource

Used: TypeAlias = Counter[tuple[str, Cell]]
"""What each queue holds of each cell."""

NO_QUOTA = Quota()
UNLIMITED = 10**18


def cells_of(pool: str, amounts: Amounts) -> dict[Cell, int]:
    """The cells of a pool that the amounts take something of."""
    return {(pool, resource): amounts[resource] for resource in Resource if amounts[resource] > 0}


def add(used: Used, queue: str, pool: str, amounts: Amounts) -> Used:
    """The use when the queue holds so much more."""
    return used + Counter({(queue, cell): amount for cell, amount in cells_of(pool, amounts).items()})


@dataclass(frozen=True)
class Tree:
    """The nodes by name, with the queues that nobody wrote down as children of the root."""

    nodes: Mapping[str, QueueNode]
    capacity: Mapping[Cell, int]
    """Of every cell of every pool; what the root has at least."""
    limits: Limits
    rootless: bool = False
    """Whether the root's quota is disregarded: what all use together."""

    @staticmethod
    def of(nodes: Iterable[QueueNode], queues: Iterable[str], capacity: Mapping[Cell, int], limits: Limits) -> Tree:
        """The tree of a snapshot in which these queues are spoken of."""
        known = {node.name: node for node in nodes} or {"": QueueNode("", None)}
        root = next(node.name for node in known.values() if node.parent is None)
        for queue in sorted(set(queues) - set(known)):
            known[queue] = QueueNode(queue, root)
        return Tree(known, capacity, limits)

    @cached_property
    def root(self) -> str:
        """The name of the node without a parent."""
        return next(node.name for node in self.nodes.values() if node.parent is None)

    @cached_property
    def named(self) -> frozenset[Cell]:
        """The cells that some node has a quota of; no other cell is limited."""
        return frozenset(cell for node in self.nodes.values() for cell in node.quotas)

    @cached_property
    def counting(self) -> frozenset[Cell]:
        """The cells that cost and borrowing look at: those named; of a pool of which none is named, all."""
        pools_named = {pool for pool, _ in self.named}
        return frozenset(cell for cell in self.capacity if cell in self.named or cell[0] not in pools_named)

    def children(self, name: str) -> list[str]:
        """In order of name."""
        return sorted(node.name for node in self.nodes.values() if node.parent == name)

    def path(self, name: str) -> list[str]:
        """The node, its parent, and so on to the root."""
        parent = self.nodes[name].parent
        return [name] if parent is None else [name, *self.path(parent)]

    def sides(self, one: str, other: str) -> tuple[str, str]:
        """The children of the lowest node above both queues that each of them is in."""
        up_one, up_other = self.path(one), self.path(other)
        return (
            next(node for node in up_one if self.nodes[node].parent in up_other),
            next(node for node in up_other if self.nodes[node].parent in up_one),
        )

    def subtree(self, name: str, cell: Cell) -> int:
        """The quota of the node and what its children lend it."""
        lent = sum(self.subtree(child, cell) - self.guaranteed(child, cell) for child in self.children(name))
        own = self._quota(name, cell).nominal + lent
        if name != self.root:
            return own
        # Capacity that is nobody's belongs to all; what others keep for themselves is somebody's.
        return max(own, self.capacity.get(cell, 0) - self._kept(cell))

    def guaranteed(self, name: str, cell: Cell) -> int:
        """What the node never lends."""
        limit = self._quota(name, cell).lending_limit
        return 0 if limit is None else max(0, self.subtree(name, cell) - limit)

    def usage(self, name: str, cell: Cell, used: Used) -> int:
        """What the node's queues hold, without what they hold of their guaranteed parts below it."""
        if not (children := self.children(name)):
            return used[name, cell]
        return sum(max(0, self.usage(child, cell, used) - self.guaranteed(child, cell)) for child in children)

    def available(self, name: str, cell: Cell, used: Used) -> int:
        """How much more the node may use. Below 0 where more is used than may be."""
        parent = self.nodes[name].parent
        usage = self.usage(name, cell, used)
        if parent is None:
            # Where nobody keeps anything for itself, what all may use together is the capacity, which bounds it anyway.
            return self.subtree(name, cell) - usage if self._kept(cell) and not self.rootless else UNLIMITED
        from_above = self.available(parent, cell, used)
        if (own := self._borrowable(name, cell, used)) is not None:
            from_above = min(from_above, own)
        return max(0, self.guaranteed(name, cell) - usage) + from_above

    def limiting(self, name: str, cell: Cell, used: Used) -> str:
        """The node, on the way up, whose limit decides what is available."""
        parent = self.nodes[name].parent
        if parent is None:
            return name
        own = self._borrowable(name, cell, used)
        return name if own is not None and own < self.available(parent, cell, used) else self.limiting(parent, cell, used)

    def maximum(self, name: str, cell: Cell) -> int:
        """The most that the node's own limits let it use."""
        return self.subtree(name, cell) + (0 if name == self.root else self._quota(name, cell).borrowing_limit or 0)

    def short(self, queue: str, wanted: Mapping[Cell, int], used: Used) -> Cell | None:
        """The first cell of which the quota does not allow so much more."""
        return next(
            (c for c, amount in wanted.items() if c in self.named and amount > self.available(queue, c, used)),
            None,
        )

    def borrows(self, name: str, wanted: Collection[Cell], used: Used) -> bool:
        """Whether the node uses more than its quota of one of these cells."""
        return any(self.usage(name, cell, used) > self.subtree(name, cell) for cell in self.counting.intersection(wanted))

    def cost(self, name: str, used: Used) -> int:
        """What the node uses beyond its quota, of all that can be lent, over its weight: in buckets. The largest over cells."""
        return max((self._cost(name, cell, used) for cell in self.counting), default=0)

    def _cost(self, name: str, cell: Cell, used: Used) -> int:
        beyond = max(0, self.usage(name, cell, used) - self.subtree(name, cell))
        lendable = max(1, self.subtree(self.root, cell))
        return beyond * self.limits.cost_buckets * 1000 // (lendable * self.nodes[name].weight)

    def _kept(self, cell: Cell) -> int:
        """What the nodes below the root never lend, together."""
        return sum(self.guaranteed(name, cell) for name in self.nodes if name != self.root)

    def _borrowable(self, name: str, cell: Cell, used: Used) -> int | None:
        """What its borrowing limit leaves the node of what its parent has. None: it has no limit."""
        limit = self._quota(name, cell).borrowing_limit
        if limit is None:
            return None
        guaranteed = self.guaranteed(name, cell)
        above = max(0, self.usage(name, cell, used) - guaranteed)
        return self.subtree(name, cell) - guaranteed - above + limit

    def _quota(self, name: str, cell: Cell) -> Quota:
        return self.nodes[name].quotas.get(cell, NO_QUOTA)


def capacity_of(pools: Iterable[Pool], totals: Iterable[tuple[str, Amounts]]) -> dict[Cell, int]:
    """The sum of the totals of nodes, each with its pool, by cell."""
    summed: dict[Cell, int] = {(pool.name, resource): 0 for pool in pools for resource in Resource}
    for pool, total in totals:
        for resource in Resource:
            if (pool, resource) in summed:
                summed[pool, resource] += total[resource]
    return summed
