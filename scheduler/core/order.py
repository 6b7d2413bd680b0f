"""The fair order: whose turn it is, by heaps over the nodes of the tree.

The child of smallest cost with its head goes first, from the root down: what is within quota before what borrows. After a
turn the keys of one path change, and no others: the cost of a node depends on nothing but its own use and its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from scheduler.core.backlog import LineKey
from scheduler.core.quota import ROOT, NodeIndex, QuotaTree
from scheduler.core.types import Amounts


class Head(NamedTuple):
    """What a queue would do next, and is compared with others for."""

    line_key: LineKey
    pool: str
    """Where it would be placed; "" where nowhere is allowed."""
    amounts: Amounts


_Entry: TypeAlias = tuple[bool, int, int, LineKey, NodeIndex]
"""Borrows with its head, cost with its head, past use, the head's place in line; the node. Line keys end in an id, so no
two are alike."""


class FairOrder:
    """A tournament among queues; each has one head or is out."""

    def __init__(self, tree: QuotaTree, heads: Mapping[NodeIndex, Head]) -> None:
        """Of these heads, by leaf. The tree may change by what their queues use, as long as `update` is told of it."""
        self._tree = tree
        self._heads = dict(heads)
        self._ahead: dict[NodeIndex, NodeIndex] = {leaf: leaf for leaf in heads}
        """The leaf whose head is the best below each node that has any."""
        self._entries: dict[NodeIndex, _Entry] = {}
        self._heaps: dict[NodeIndex, list[_Entry]] = {}
        above = {node for leaf in heads for node in tree.path(leaf)}
        for node in sorted(above, reverse=True):
            if heap := self._heaps.get(node):
                heapify(heap)
                self._ahead[node] = self._ahead[heap[0][-1]]
            if node != ROOT:
                entry = self._entries[node] = self._entry(node, self._ahead[node])
                self._heaps.setdefault(tree.parent(node), []).append(entry)

    def first(self) -> NodeIndex | None:
        """The leaf whose turn it is; None when all are out."""
        return self._ahead.get(ROOT)

    def update(self, leaf: NodeIndex, head: Head | None) -> None:
        """The queue has another head, and perhaps uses more; None: it is out."""
        if head is None:
            del self._heads[leaf]
            self._ahead.pop(leaf)
        else:
            self._heads[leaf] = head
        ahead_of, entries = self._ahead, self._entries
        path = self._tree.path(leaf)
        for node, parent in pairwise(path):
            heap = self._heaps[parent]
            if (ahead := ahead_of.get(node)) is None:
                del entries[node]
            else:
                entry = entries[node] = self._entry(node, ahead)
                if heap and heap[0][-1] == node:
                    heapreplace(heap, entry)
                else:
                    heappush(heap, entry)
            # What a node was before stays in the heap until it comes up.
            while heap and entries.get(heap[0][-1]) is not heap[0]:
                heappop(heap)
            if heap:
                ahead_of[parent] = ahead_of[heap[0][-1]]
            else:
                ahead_of.pop(parent, None)

    def _entry(self, node: NodeIndex, ahead: NodeIndex) -> _Entry:
        head = self._heads[ahead]
        borrows, cost = self._tree.weigh(node, ahead, head.pool, head.amounts)
        return borrows, cost, self._tree.nodes[node].past_use, head.line_key, node
