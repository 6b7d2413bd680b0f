"""The quota tree: who may use how much, and what it costs that somebody uses more than their own.

The algebra of nominal quota, guaranteed part, borrowing and lending is that of Kueue's cohorts; the cost is dominant resource
fairness (Ghodsi et al., NSDI 2011) over what is borrowed, as in Kueue's fair sharing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from scheduler.core.types import Amounts, QueueNode, Quota, Resource

NodeIndex: TypeAlias = int
"""A node of the tree by number, parents before children; a leaf is a queue."""

ROOT: NodeIndex = 0
_NO_QUOTA = Quota()
_UNLIMITED = 1 << 80
"""More than anybody has of anything."""


class _Counted(NamedTuple):
    """A cell that is kept count of, by number."""

    resource: Resource
    cell: int
    limits: bool
    """Whether some node names it. The cells of a pool of which nobody names any count for cost alone."""


class _Gate(NamedTuple):
    """A node on the way down to another that may hold back or keep some of a cell."""

    node: NodeIndex
    lendable: int
    borrowing_limit: int | None


class CellUse(NamedTuple):
    """Of one cell, as far as a node sees it."""

    quota: int
    """Its own nominal and what its children lend it."""
    used: int
    maximum: int
    """The most that the node itself may use: its quota and what it may borrow, if that is limited."""


class QuotaTree:
    """Quotas and what is used of them.

    Of every node and cell it keeps what is left: the quota of the node and what its children lend it (its `subtree` quota),
    minus what is used of that; below 0 the node borrows. A parent sees of a child's use what exceeds its guaranteed part.
    """

    def __init__(
        self, nodes: Iterable[QueueNode], queues: Iterable[str], capacity: Mapping[str, Amounts], *, buckets: int
    ) -> None:
        """The tree of these nodes, unused.

        Args:
            nodes: with one root; none at all stands for a root without quotas.
            queues: all that will be asked about. One that is no leaf becomes one, without quotas: below the root, or below the
                node of its name.
            capacity: of each pool; what is not given to anybody belongs to the root.
            buckets: steps of cost, as `Limits.cost_buckets`.

        Raises:
            ValueError: the nodes are no tree.
        """
        self.nodes = _downwards(nodes)
        index = {node.name: number for number, node in enumerate(self.nodes)}
        inner = {node.parent for node in self.nodes}
        self._leaves = {name: number for name, number in index.items() if number != ROOT and name not in inner}
        for queue in sorted({*queues} - self._leaves.keys()):
            self._leaves[queue] = len(self.nodes)
            self.nodes.append(QueueNode(queue, self.nodes[index.get(queue, ROOT)].name))
        self._parents = [-1, *(index[str(node.parent)] for node in self.nodes[1:])]
        self._children: list[list[NodeIndex]] = [[] for _ in self.nodes]
        self._paths: list[tuple[NodeIndex, ...]] = [(ROOT,)]
        self._demoted = [self.nodes[ROOT].demoted]
        for number in range(1, len(self.nodes)):
            parent = self._parents[number]
            self._children[parent].append(number)
            self._paths.append((number, *self._paths[parent]))
            self._demoted.append(self._demoted[parent] or self.nodes[number].demoted)
        self._pools, named = _cells(self.nodes, capacity)
        self._give(capacity, named)
        self._guarded = [not self._guarding.isdisjoint(path) for path in self._paths]
        """Whether somebody on the way to the root keeps a part."""
        self._left = [list(subtree) for subtree in self._subtree]
        self._scale = buckets * 1000
        self._weights = [node.weight for node in self.nodes]
        self._costs: list[int | None] = [0] * len(self.nodes)
        self._gates: list[list[tuple[_Gate, ...] | None]] = [[None] * named for _ in self.nodes]

    def _give(self, capacity: Mapping[str, Amounts], named: int) -> None:
        """What each node has with what its children lend it, and what of that it lends."""
        cells = [(pool, each) for pool, counted in self._pools.items() for each in counted]
        self._subtree = [[0] * named for _ in self.nodes]
        self._lendable = [[0] * named for _ in self.nodes]
        self._borrowing_limits: list[dict[int, int]] = [{} for _ in self.nodes]
        self._guarding: set[NodeIndex] = set()
        guaranteed = [0] * named
        for number in reversed(range(len(self.nodes))):
            quotas, subtree, lendable = self.nodes[number].quotas, self._subtree[number], self._lendable[number]
            for pool, each in cells:
                quota = quotas.get((pool, each.resource), _NO_QUOTA) if quotas else _NO_QUOTA
                subtree[each.cell] += quota.nominal
                lendable[each.cell] = subtree[each.cell]
                if number == ROOT:
                    continue
                if quota.lending_limit is not None and quota.lending_limit < subtree[each.cell]:
                    lendable[each.cell] = quota.lending_limit
                    guaranteed[each.cell] += subtree[each.cell] - quota.lending_limit
                    self._guarding.add(number)
                if quota.borrowing_limit is not None:
                    self._borrowing_limits[number][each.cell] = quota.borrowing_limit
                self._subtree[self._parents[number]][each.cell] += lendable[each.cell]
        root = self._subtree[ROOT]
        self._root_limits = [amount > 0 for amount in guaranteed]
        for pool, each in cells:
            root[each.cell] = max(root[each.cell], capacity[pool][each.resource] - guaranteed[each.cell])

    def copy(self) -> QuotaTree:
        """One of its own, of the same use."""
        twin = copy(self)
        twin._left = [list(left) for left in self._left]
        twin._costs = list(self._costs)
        return twin

    # Where a node is

    def leaf(self, queue: str) -> NodeIndex:
        """The leaf of a queue.

        Raises:
            KeyError: the tree was not told of it.
        """
        return self._leaves[queue]

    def path(self, node: NodeIndex) -> tuple[NodeIndex, ...]:
        """The node, its parent, and so on to the root."""
        return self._paths[node]

    def parent(self, node: NodeIndex) -> NodeIndex:
        """Of the root: -1."""
        return self._parents[node]

    def children(self, node: NodeIndex) -> Sequence[NodeIndex]:
        """None of a leaf."""
        return self._children[node]

    def sides(self, one: NodeIndex, other: NodeIndex) -> tuple[NodeIndex, NodeIndex]:
        """The children of the lowest common ancestor of two leaves that they are in; each its own where they are the same."""
        ours, theirs = one, other
        for mine, its in zip(reversed(self._paths[one]), reversed(self._paths[other]), strict=False):
            ours, theirs = mine, its
            if mine != its:
                break
        return ours, theirs

    def demoted(self, leaf: NodeIndex) -> bool:
        """Whether its requests are of the lowest class, whatever they say."""
        return self._demoted[leaf]

    # Use

    def add(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> None:
        """The queue uses so much more of the pool. `remove` undoes it."""
        self._use(leaf, pool, amounts, 1)

    def remove(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> None:
        """The queue uses so much less of the pool. `add` undoes it."""
        self._use(leaf, pool, amounts, -1)

    def _use(self, leaf: NodeIndex, pool: str, amounts: Amounts, sign: int) -> None:
        path, costs = self._paths[leaf], self._costs
        for resource, cell, _ in self._pools.get(pool, ()):
            if amount := sign * amounts[resource]:
                for node in path:
                    left = self._left[node]
                    before = left[cell]
                    left[cell] = before - amount
                    costs[node] = None
                    if node in self._guarding:
                        lendable = self._lendable[node][cell]
                        amount = min(before, lendable) - min(before - amount, lendable)
                        if not amount:
                            break

    def of(self, node: NodeIndex, pool: str, resource: Resource) -> CellUse:
        """What the node has and uses of a cell; nothing, where the cell does not count."""
        for counted, cell, _ in self._pools.get(pool, ()):
            if counted is resource:
                quota = self._subtree[node][cell]
                return CellUse(quota, quota - self._left[node][cell], quota + self._borrowing_limits[node].get(cell, 0))
        return CellUse(0, 0, 0)

    # What may be used

    def available(self, node: NodeIndex, pool: str, resource: Resource) -> int | None:
        """How much more the node may use; below 0 where more is used than may be. None: not limited by quota.

        Where nobody keeps a guaranteed part, the root limits nothing: all it has is the capacity, which bounds what is granted.
        """
        for counted, cell, limits in self._pools.get(pool, ()):
            if counted is resource and limits:
                room = self._available(node, cell, self._root_room(cell))
                return None if room >= _UNLIMITED else room
        return None

    def short(self, leaf: NodeIndex, pool: str, amounts: Amounts, *, apart_from_root: bool = False) -> Resource | None:
        """The first resource of which the queue may not use so much more. None: the request is within quota.

        Args:
            leaf: of the queue.
            pool: where it would use it.
            amounts: what it asks for.
            apart_from_root: whether to ask only for limits of its own and of nodes above it, and not for what others use.
        """
        for resource, cell, limits in self._pools.get(pool, ()):
            if limits and (amount := amounts[resource]):
                room = self._left[ROOT][cell] if self._root_limits[cell] and not apart_from_root else _UNLIMITED
                if amount > self._available(leaf, cell, room):
                    return resource
        return None

    def limiting(self, leaf: NodeIndex, pool: str, resource: Resource) -> NodeIndex:
        """The node whose limit decides what the queue may use: the lowest that may borrow less than there is, or the root."""
        for counted, cell, _ in self._pools.get(pool, ()):
            if counted is not resource:
                continue
            room, found = self._root_room(cell), ROOT
            for gate in self._gates_of(leaf, cell):
                left = self._left[gate.node][cell]
                kept = max(0, left - gate.lendable)
                if gate.borrowing_limit is not None and left - kept + gate.borrowing_limit < room:
                    room, found = left - kept + gate.borrowing_limit, gate.node
                room += kept
            return found
        return ROOT

    def _root_room(self, cell: int) -> int:
        return self._left[ROOT][cell] if self._root_limits[cell] else _UNLIMITED

    def _available(self, node: NodeIndex, cell: int, room: int) -> int:
        """Of what the root has."""
        gates = self._gates[node][cell]
        for gate, lendable, borrowing_limit in self._gates_of(node, cell) if gates is None else gates:
            left = self._left[gate][cell]
            kept = left - lendable if left > lendable else 0
            if borrowing_limit is not None and left - kept + borrowing_limit < room:
                room = left - kept + borrowing_limit
            room += kept
        return room

    def _gates_of(self, node: NodeIndex, cell: int) -> tuple[_Gate, ...]:
        """The nodes on the path that make a difference, from above."""
        found = self._gates[node][cell]
        if found is None:
            gates = (
                _Gate(each, self._lendable[each][cell], self._borrowing_limits[each].get(cell))
                for each in reversed(self._paths[node][:-1])
            )
            found = tuple(gate for gate in gates if gate.borrowing_limit is not None or gate.node in self._guarding)
            self._gates[node][cell] = found
        return found

    # What it costs

    def borrows(self, node: NodeIndex, pool: str, amounts: Amounts) -> bool:
        """Whether the node uses more than its quota of something that the amounts take of the pool."""
        left = self._left[node]
        for resource, cell, _ in self._pools.get(pool, ()):  # noqa: SIM110 - asked for every candidate; twice as fast
            if left[cell] < 0 < amounts[resource]:
                return True
        return False

    def would_borrow(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> bool:
        """`borrows` of a leaf, were the amounts added."""
        left = self._left[leaf]
        for resource, cell, _ in self._pools.get(pool, ()):  # noqa: SIM110 - asked at every turn; twice as fast
            if (amount := amounts[resource]) and amount > left[cell]:
                return True
        return False

    def cost(self, node: NodeIndex) -> int:
        """What the node uses beyond its quota, of all that can be lent, over its weight: in buckets; the largest over cells."""
        known = self._costs[node]
        if known is None:
            left, root, weight = self._left[node], self._subtree[ROOT], self._weights[node]
            known = 0
            for cell, amount in enumerate(left):
                if amount < 0:
                    known = max(known, -amount * self._scale // ((root[cell] or 1) * weight))
            self._costs[node] = known
        return known

    def weigh(self, node: NodeIndex, leaf: NodeIndex, pool: str, amounts: Amounts) -> tuple[bool, int]:
        """`borrows` and `cost` of a node on the leaf's path, were the amounts added at the leaf."""
        left, cost = self._left[node], self._costs[node]
        if cost is None:
            cost = self.cost(node)
        borrowing = False
        for resource, cell, _ in self._pools.get(pool, ()):
            amount = amounts[resource]
            if amount > 0:
                if node != leaf and self._guarded[leaf]:
                    amount = self._carried(leaf, node, cell, amount)
                beyond = amount - left[cell]
                if beyond > 0:
                    borrowing = True
                    more = beyond * self._scale // ((self._subtree[ROOT][cell] or 1) * self._weights[node])
                    cost = max(cost, more)
        return borrowing, cost

    def _carried(self, leaf: NodeIndex, node: NodeIndex, cell: int, amount: int) -> int:
        """What of an amount added at the leaf the node would see."""
        for below in self._paths[leaf]:
            if below == node:
                break
            if below in self._guarding:
                left, lendable = self._left[below][cell], self._lendable[below][cell]
                amount = min(left, lendable) - min(left - amount, lendable)
        return amount


def _downwards(nodes: Iterable[QueueNode]) -> list[QueueNode]:
    """Parents before children, each one's in order of name.

    Raises:
        ValueError: the nodes are no tree.
    """
    given = sorted(nodes, key=lambda node: node.name)
    if not given:
        return [QueueNode("", None)]
    roots = [node for node in given if node.parent is None]
    if len(roots) != 1:
        raise ValueError(f"the quota tree has the roots {[root.name for root in roots]}; expected exactly one without parent")
    if twice := [one.name for one, other in pairwise(given) if one.name == other.name]:
        raise ValueError(f"the quota tree has the node {twice[0]!r} twice; expected names to be unique")
    children: dict[str | None, list[QueueNode]] = {}
    for node in given:
        children.setdefault(node.parent, []).append(node)
    ordered = roots
    for node in ordered:
        ordered.extend(children.get(node.name, ()))
    if len(ordered) != len(given):
        lost = next(node for node in given if node not in ordered)
        raise ValueError(
            f"{lost.name!r} of the quota tree is not below its root; expected a parent on the way there, not {lost.parent!r}"
        )
    return ordered


def _cells(nodes: Iterable[QueueNode], capacity: Mapping[str, Amounts]) -> tuple[dict[str, tuple[_Counted, ...]], int]:
    """The cells that count, by pool, and how many: those that some node names; of a pool of which none is named, all."""
    named = {cell for node in nodes for cell in node.quotas}
    pools: dict[str, tuple[_Counted, ...]] = {}
    count = 0
    for pool in capacity:
        limited = [resource for resource in Resource if (pool, resource) in named]
        pools[pool] = tuple(_Counted(resource, count + at, bool(limited)) for at, resource in enumerate(limited or Resource))
        count += len(pools[pool])
    return pools, count
