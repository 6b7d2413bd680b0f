"""What is free of the nodes of one pool, kept so that the tightest place is found without looking at all of them.

A set of nodes is an integer with a bit for each node, in order of name; its lowest bit is the first by name. All nodes of which
the same amounts are free are one set: a full cluster has few such sets, however many nodes there are, and what fits nowhere is
known after a look at each set. (Best fit of vector bin packing, as Borg and Kubernetes' MostAllocated score it; here exact.)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from scheduler.core.types import Amounts, Resource

Nodes: TypeAlias = int
"""A set of nodes, by their numbers."""

ALL: Nodes = -1
NOTHING: Amounts = (0, 0, 0)
_UNLIMITED = 1 << 30
"""Members of nothing that a node holds."""


class Room:
    """Free amounts by node, and the nodes by free amounts. Nodes that take nothing new are left out."""

    def __init__(self, free: Sequence[Amounts | None]) -> None:
        """Of each node by number; None: it takes nothing new."""
        self._free = list(free)
        alike: dict[Amounts, list[int]] = {}
        for node, of in enumerate(free):
            if of is not None:
                alike.setdefault(of, []).append(node)
        self._nodes: dict[Amounts, Nodes] = {of: nodes_of(numbers) for of, numbers in alike.items()}
        self._amounts = sorted(self._nodes)
        self._changed: list[int] = []
        """Every node whose free amounts changed since somebody first counted."""
        self._counts: dict[object, Counts] = {}

    def copy(self) -> Room:
        """One of its own."""
        twin = Room(())
        twin._free, twin._nodes, twin._amounts = list(self._free), dict(self._nodes), list(self._amounts)
        return twin

    def __getitem__(self, node: int) -> Amounts | None:
        return self._free[node]

    def set(self, node: int, free: Amounts) -> None:
        """So much is free of it now. Of a node that takes nothing new nothing changes."""
        before = self._free[node]
        if before is None or before == free:
            return
        nodes, bit = self._nodes, 1 << node
        if left := nodes[before] ^ bit:
            nodes[before] = left
        else:
            del nodes[before], self._amounts[bisect_left(self._amounts, before)]
        if free in nodes:
            nodes[free] |= bit
        else:
            nodes[free] = bit
            insort(self._amounts, free)
        self._free[node] = free
        if self._counts:
            self._changed.append(node)

    def fits(self, member: Amounts, members: int, among: Nodes) -> bool:
        """Whether so many members find places."""
        return self.slots(member, members, among) >= members

    def slots(self, member: Amounts, at_most: int, among: Nodes) -> int:
        """How many members would find places, counted no further than `at_most`."""
        found = 0
        for nodes, each in self._tightest(member, among):
            found += each * nodes.bit_count()
            if found >= at_most:
                return at_most
        return found

    def fill(self, member: Amounts, members: int, among: Nodes) -> dict[int, int]:
        """Up to so many members: by node, how many. Each is on the node that is tightest when its turn comes: the one with the
        fewest free accelerators that holds it, then the least free CPU, then by name; without accelerators: CPU, memory, name.

        A node that has got a member is the tightest of all that hold one more. So node after node is filled up.
        """
        taken: dict[int, int] = {}
        left = members
        for nodes, each in self._tightest(member, among):
            for node in numbers_of(nodes, -(-left // each)):
                taken[node] = min(each, left)
                left -= taken[node]
            if not left:
                break
        return taken

    def fill_by_name(self, member: Amounts, members: int, among: Nodes) -> dict[int, int]:
        """As `fill`, but one node after another in order of name."""
        holding = 0
        for nodes, _ in self._tightest(member, among):
            holding |= nodes
        taken: dict[int, int] = {}
        left = members
        for node in numbers_of(holding, members):
            if not left:
                break
            taken[node] = min(left, slots(self._free[node] or NOTHING, member))
            left -= taken[node]
        return taken

    def total(self, among: Nodes) -> Amounts:
        """What is free of all these together."""
        accelerators = cpu_millis = memory_mib = 0
        for free, nodes in self._nodes.items():
            count = (nodes & among).bit_count()
            accelerators += free[0] * count
            cpu_millis += free[1] * count
            memory_mib += free[2] * count
        return accelerators, cpu_millis, memory_mib

    def counts(self, member: Amounts, among: Nodes, domains: Sequence[int], count: int) -> Counts:
        """For who asks again and again: counts by domain that cost only what has changed. Node by node the domain's number, or
        -1; and how many domains there are. The same sequence must be passed each time."""
        key = (member, among, id(domains))
        found = self._counts.get(key)
        if found is None:
            if len(self._counts) >= _COUNTS_MAX:
                del self._counts[next(iter(self._counts))]
            found = self._counts[key] = Counts(self._free, self._changed, member, among, domains, count)
        found.catch_up()
        return found

    def _tightest(self, member: Amounts, among: Nodes) -> Iterator[tuple[Nodes, int]]:
        """Sets of nodes, tightest first, and how many members each node of the set holds (at least one)."""
        by_cpu = not member[Resource.ACCELERATORS]
        for _, alike in groupby(self._holding(member), lambda free: free[1:] if by_cpu else free[:2]):
            free = list(alike)
            if len(free) == 1 or by_cpu:
                nodes = 0
                for each in free:
                    nodes |= self._nodes[each]
                if nodes := nodes & among:
                    yield nodes, slots(free[0], member)
            else:
                # Equally tight though their memory differs: the name decides.
                together = sum(self._nodes[each] for each in free) & among
                for node in numbers_of(together, together.bit_count()):
                    yield 1 << node, slots(self._free[node] or NOTHING, member)

    def _holding(self, member: Amounts) -> Iterator[Amounts]:
        """Free amounts that hold a member, tightest first."""
        accelerators, cpu_millis, memory_mib = member
        if not accelerators:
            holding = (free for free in self._amounts if free[1] >= cpu_millis and free[2] >= memory_mib)
            yield from sorted(holding, key=lambda free: free[1:])
            return
        amounts = self._amounts
        at = bisect_left(amounts, member)
        while at < len(amounts):
            free = amounts[at]
            if free[1] < cpu_millis:
                at = bisect_left(amounts, (free[0], cpu_millis, 0), at)
                continue
            if free[2] >= memory_mib:
                yield free
            at += 1


_COUNTS_MAX = 256
"""Shapes that are counted by domain at the same time: each costs some bytes a node."""


class Counts:
    """Members that find places and what is free, by domain, of one shape."""

    def __init__(
        self,
        free: Sequence[Amounts | None],
        changed: Sequence[int],
        member: Amounts,
        among: Nodes,
        domains: Sequence[int],
        count: int,
    ) -> None:
        self.slots = [0] * (count + 1)
        """Members that find places in each domain; the last: on nodes without one."""
        self.free = [0] * (count + 1)
        """Free accelerators of each domain; CPU, for shapes without."""
        self._of_nodes, self._changed, self._member, self._domains = free, changed, member, domains
        self._measure = Resource.ACCELERATORS if member[Resource.ACCELERATORS] else Resource.CPU_MILLIS
        self._seen = len(changed)
        self._known: dict[int, tuple[int, int]] = {}
        for node, of in enumerate(free):
            if of is not None and among >> node & 1:
                self._known[node] = (0, 0)
                self._count(node)

    def catch_up(self) -> None:
        """With what has changed."""
        changed = self._changed[self._seen :]
        self._seen += len(changed)
        for node in dict.fromkeys(changed):
            if node in self._known:
                self._count(node)

    def _count(self, node: int) -> None:
        free = self._of_nodes[node] or NOTHING
        now = (slots(free, self._member), free[self._measure])
        before = self._known[node]
        domain = self._domains[node]
        self.slots[domain] += now[0] - before[0]
        self.free[domain] += now[1] - before[1]
        self._known[node] = now


def slots(free: Amounts, member: Amounts) -> int:
    """How many members so much holds."""
    found = _UNLIMITED
    # Written out: this is asked for every node and lease that is weighed.
    if need := member[0]:
        found = free[0] // need
    if (need := member[1]) and free[1] < found * need:
        found = free[1] // need
    if (need := member[2]) and free[2] < found * need:
        found = free[2] // need
    return found


def nodes_of(numbers: Iterable[int]) -> Nodes:
    """The set of these."""
    bits = bytearray()
    for number in numbers:
        at = number >> 3
        if at >= len(bits):
            bits.extend(bytes(at + 1 - len(bits)))
        bits[at] |= 1 << (number & 7)
    return int.from_bytes(bits, "little")


def numbers_of(nodes: Nodes, first: int) -> Iterator[int]:
    """The first so many of a set, in order."""
    if first > _MANY:
        at, bits = -1, f"{nodes:b}"[::-1]
        while first and (at := bits.find("1", at + 1)) >= 0:
            yield at
            first -= 1
        return
    while nodes and first:
        lowest = nodes & -nodes
        yield lowest.bit_length() - 1
        nodes ^= lowest
        first -= 1


_MANY = 16
"""From here on it is cheaper to spell a set out than to take its lowest bit again and again."""
