"""The leases of one pool that could yield, so kept that what a request may displace is known before any lease is looked at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from typing import NamedTuple, TypeAlias

from scheduler.core.potential import Alike
from scheduler.core.quota import NodeIndex, QuotaTree
from scheduler.core.types import Amounts, Lease, Micros, PriorityClass

_ANY: Amounts = (1, 1, 1)
"""Takes something of every resource."""


class Victim(NamedTuple):
    """A lease that may have to yield. The lowest class comes first, then what loses least an accelerator, then the newest."""

    priority_class: PriorityClass
    unsafe_micros: int
    """Since its work was last safe."""
    newest_first: int
    lease_id: str
    lease: Lease
    alike: Alike

    @property
    def lost_ms(self) -> int:
        """Accelerator-milliseconds of work that is lost with it."""
        return self.lease.shape.accelerators * self.unsafe_micros // 1000


class _Group:
    """Leases that are alike."""

    __slots__ = ("_sorted", "_victims", "alike")

    def __init__(self, alike: Alike) -> None:
        self.alike = alike
        self._victims: list[Victim] = []
        self._sorted = False

    def __len__(self) -> int:
        return len(self._victims)

    def add(self, lease: Lease, now: Micros) -> None:
        unsafe = now - max(lease.granted, lease.checkpointed or lease.granted)
        self._victims.append(Victim(self.alike.priority_class, unsafe, -lease.granted, lease.lease_id, lease, self.alike))
        self._sorted = False

    def discard(self, victim: Victim) -> None:
        self._victims.remove(victim)

    def in_order(self, waste_ms: int) -> Sequence[Victim]:
        """Those that lose no more; they lose more and more, since they hold the same."""
        if not self._sorted:
            self._victims.sort()
            self._sorted = True
        return self._victims[: bisect_right(self._victims, waste_ms, key=lambda victim: victim.lost_ms)]


_Siblings: TypeAlias = Sequence[tuple[int, NodeIndex]]
"""The children of one node that borrow anything of the pool, and below which something could yield: the costliest first."""
_Groups: TypeAlias = dict[Alike, _Group]


class Candidates:
    """Leases by who they are alike with, and these by node of the tree."""

    def __init__(self, tree: QuotaTree, pool: str, leases: Iterable[tuple[Lease, Alike]], now: Micros) -> None:
        """`tree`: is looked at when it is asked; whoever changes it for good calls `changed`."""
        self._tree, self._pool = tree, pool
        self._groups: _Groups = {}
        self._below: dict[NodeIndex, _Groups] = {}
        self._siblings: dict[NodeIndex, _Siblings] = {}
        for lease, alike in leases:
            self._group(alike).add(lease, now)

    def __bool__(self) -> bool:
        return bool(self._groups)

    def _group(self, alike: Alike) -> _Group:
        found = self._groups.get(alike)
        if found is None:
            found = self._groups[alike] = _Group(alike)
            for node in self._tree.path(alike.leaf):
                self._below.setdefault(node, {})[alike] = found
        return found

    def changed(self, gone: Iterable[Victim]) -> None:
        """These yield from now on, and the use in the tree is another."""
        for victim in gone:
            group = self._groups[victim.alike]
            group.discard(victim)
            if not len(group):
                del self._groups[victim.alike]
                for node in self._tree.path(victim.alike.leaf):
                    del self._below[node][victim.alike]
        self._siblings.clear()

    def in_order(self, asking: Alike, waste_ms: int) -> Iterator[Victim]:
        """Those that a request which is not in the tree might displace, if it were and all of them were still there; none that
        alone would lose more."""
        path = self._tree.path(asking.leaf)
        siblings = [self._siblings_below(parent) for parent in path[1:]]
        self._tree.add(asking.leaf, asking.pool, asking.amounts)
        found = [group.in_order(waste_ms) for group in self._displaceable(asking, siblings)]
        self._tree.remove(asking.leaf, asking.pool, asking.amounts)
        return merge(*found)

    def _displaceable(self, asking: Alike, siblings: Sequence[_Siblings]) -> Iterator[_Group]:
        for alike, group in self._below.get(asking.leaf, {}).items():
            if alike.priority_class < asking.priority_class:
                yield group
        for ours, beside in zip(self._tree.path(asking.leaf), siblings, strict=False):
            yield from self._beside(asking, ours, beside)

    def _beside(self, asking: Alike, ours: NodeIndex, siblings: _Siblings) -> Iterator[_Group]:
        within = not self._tree.borrows(ours, asking.pool, asking.amounts)
        cost = self._tree.cost(ours)
        for their_cost, theirs in siblings:
            if not within and their_cost <= cost:
                break
            if theirs != ours:
                for alike, group in self._below[theirs].items():
                    allowed = within or alike.priority_class <= asking.priority_class
                    if allowed and self._tree.borrows(theirs, alike.pool, alike.amounts):
                        yield group

    def _siblings_below(self, parent: NodeIndex) -> _Siblings:
        found = self._siblings.get(parent)
        if found is None:
            children = [child for child in self._tree.children(parent) if self._below.get(child)]
            borrowing = [child for child in children if self._tree.borrows(child, self._pool, _ANY)]
            found = self._siblings[parent] = sorted(((self._tree.cost(child), child) for child in borrowing), reverse=True)
        return found
