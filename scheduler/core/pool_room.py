"""The nodes of one pool: what is held of each, what fits, and where by labels and topology."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple, TypeAlias

from scheduler.core.node_use import NodeUse, plus, times
from scheduler.core.room import ALL, NOTHING, Counts, Nodes, Room, nodes_of, numbers_of, slots
from scheduler.core.types import Amounts, Micros, Node, Placement, Reservation, Shape, TopologyMode


class _Level(NamedTuple):
    """The domains of one topology label."""

    names: Sequence[str]
    """In order."""
    members: Sequence[Nodes]
    """The nodes of each domain; last: those that do not carry the label."""
    of_nodes: Sequence[int]
    """The number of each node's domain; -1: none."""


class PoolRoom:
    """Nodes by number, in order of name."""

    def __init__(self, nodes: Sequence[Node], lost: Set[str]) -> None:
        self.nodes = nodes
        self.uses = [NodeUse(node.total) for node in nodes]
        self.known = _sum(node.total for node in nodes)
        """What all nodes have."""
        self.living = _sum(node.total for node in nodes if node.name not in lost)
        """What the nodes that are not lost have."""
        self.reservation: Reservation | None = None
        free = [None if node.cordoned or node.name in lost else node.total for node in nodes]
        self._takers = nodes_of(at for at, total in enumerate(free) if total is not None)
        self._room = Room(free)
        self._empty = Room([node.total for node in nodes])
        self._lasting: Room | None = None
        """What is free beside the reservation for what runs into it; only with a reservation."""
        self._at_start: dict[int, NodeUse] = {}
        """The use of reserved nodes, as it will be when the reservation starts and holds them."""
        self._labelled: Mapping[tuple[str, str], Nodes] = _labelled(nodes)
        self._levels: dict[str, _Level] = {}

    # Who holds what

    def hold(self, at: int, amounts: Amounts, ends: Micros, yields_to: str | None) -> None:
        """So much more of the node is held until then; less, where amounts are below 0."""
        self.uses[at].hold(amounts, yields_to)
        if self.reservation is not None and at in self._at_start and ends > self.reservation.starts:
            self._at_start[at].hold(amounts, yields_to)
        self._refresh(at)

    def claim(self, at: int, request_id: str, amounts: Amounts) -> None:
        """So much more of the node is kept for the request; less, where amounts are below 0."""
        self.uses[at].claim(request_id, amounts)
        if at in self._at_start:
            self._at_start[at].claim(request_id, amounts)
        self._refresh(at)

    def reserve(self, reservation: Reservation, member: Amounts) -> None:
        """See `Cluster.reserve`."""
        self.drop_reservation()
        self.reservation = reservation
        self._lasting = self._room.copy()
        numbers = {node.name: at for at, node in enumerate(self.nodes)}
        for name, count in reservation.placement:
            at = numbers[name]
            self._at_start[at] = self.uses[at].copy()
            self._at_start[at].hold(times(member, count), None)
            self._refresh(at)

    def drop_reservation(self) -> None:
        """Nothing is reserved any more."""
        self.reservation, self._lasting = None, None
        self._at_start.clear()

    def _refresh(self, at: int) -> None:
        free = self.uses[at].free()
        self._room.set(at, free)
        if self._lasting is not None:
            if at in self._at_start:
                later = self._at_start[at].free()
                free = min(free[0], later[0]), min(free[1], later[1]), min(free[2], later[2])
            self._lasting.set(at, free)

    # What fits

    def eligible(self, labels: Sequence[tuple[str, str]]) -> Nodes:
        """The nodes that take something new and carry these."""
        return self._carrying(labels) & self._takers

    def place(self, shape: Shape, *, lasting: bool) -> Placement | None:
        """All members, tightest first."""
        room, among = self._view(lasting=lasting), self._carrying(shape.labels)
        if shape.topology is None:
            taken = room.fill(shape.member, shape.members, among)
            return self._named(taken) if sum(taken.values()) == shape.members else None
        if not room.fits(shape.member, shape.members, among):
            return None
        level = self._level(shape.topology.level)
        counts = self._counts(room, shape, level, among)
        holding = [domain for domain in range(len(level.names)) if counts.slots[domain] >= shape.members]
        if holding:
            sign = -1 if shape.topology.mode is TopologyMode.BALANCED else 1
            domain = min(holding, key=lambda domain: (sign * counts.free[domain], domain))
            return self._named(room.fill(shape.member, shape.members, level.members[domain] & among))
        if shape.topology.mode is not TopologyMode.PREFERRED:
            return None
        roomiest_first = sorted(range(len(level.names)), key=lambda domain: (-counts.slots[domain], domain))
        return self._spread(shape, [level.members[domain] & among for domain in (*roomiest_first, -1)], room.fill)

    def place_plainly(self, shape: Shape) -> Placement | None:
        """All members, in order of name."""
        room, among = self._room, self._carrying(shape.labels)
        if not room.fits(shape.member, shape.members, among):
            return None
        if shape.topology is None:
            return self._named(room.fill_by_name(shape.member, shape.members, among))
        level = self._level(shape.topology.level)
        counts = self._counts(room, shape, level, among)
        for domain in range(len(level.names)):
            if counts.slots[domain] >= shape.members:
                return self._named(room.fill_by_name(shape.member, shape.members, level.members[domain] & among))
        if shape.topology.mode is not TopologyMode.PREFERRED:
            return None
        return self._spread(shape, [members & among for members in level.members], room.fill_by_name)

    def fits(self, shape: Shape, *, lasting: bool) -> bool:
        """Whether all members find places."""
        return self._placeable(self._view(lasting=lasting), shape) >= shape.members

    def domains(self, shape: Shape, *, lasting: bool) -> Iterator[Sequence[str]]:
        """See `Cluster.domains`."""
        eligible = self.eligible(shape.labels)
        if (label := _one_domain_of(shape)) is None:
            yield self._names(eligible)
            return
        level = self._level(label)
        held = self._counts(self._view(lasting=lasting), shape, level, self._carrying(shape.labels)).slots
        for domain in sorted(range(len(level.names)), key=lambda domain: (-held[domain], domain)):
            yield self._names(level.members[domain] & eligible)

    def members_on(self, at: int, shape: Shape, *, lasting: bool) -> int:
        """How many members a node holds now."""
        return slots(self._view(lasting=lasting)[at] or NOTHING, shape.member)

    def enough_for_one(self, at: int, shape: Shape, held: Sequence[tuple[Amounts, int]], *, lasting: bool) -> int:
        """See `Cluster.enough_for_one`; `held`: by each lease of the node, and when it ends."""
        wanted = self.members_on(at, shape, lasting=lasting) + 1
        if slots(self.uses[at].free(less=_sum(amounts for amounts, _ in held)), shape.member) < wanted:
            return 0
        kept = self.reservation if lasting and at in self._at_start else None
        less = less_at_start = NOTHING
        for count, (amounts, ends) in enumerate(held, 1):
            less = plus(less, amounts)
            members = slots(self.uses[at].free(less=less), shape.member)
            if kept is not None:
                less_at_start = plus(less_at_start, amounts) if ends > kept.starts else less_at_start
                members = min(members, slots(self._at_start[at].free(less=less_at_start), shape.member))
            if members >= wanted:
                return count
        return 0

    def _names(self, nodes: Nodes) -> Sequence[str]:
        return [self.nodes[at].name for at in numbers_of(nodes, nodes.bit_count())]

    def placeable(self, shape: Shape) -> int:
        """Members that find places, at most all; in one domain where the topology insists on it."""
        return self._placeable(self._room, shape)

    def placeable_empty(self, shape: Shape) -> int:
        """`placeable`, were nothing held on any known node."""
        return self._placeable(self._empty, shape)

    def _placeable(self, room: Room, shape: Shape) -> int:
        among = self._carrying(shape.labels)
        found = room.slots(shape.member, shape.members, among)
        if found and (label := _one_domain_of(shape)) is not None:
            in_domains = self._counts(room, shape, self._level(label), among).slots[:-1]
            return min(max(in_domains, default=0), shape.members)
        return found

    def free(self, shape: Shape) -> Amounts:
        """Of the nodes that members may be placed on."""
        return self._room.total(self._carrying(shape.labels))

    def total(self, shape: Shape) -> Amounts:
        """What the nodes that members may be placed on have."""
        return self._empty.total(self.eligible(shape.labels))

    def totals(self, labels: Sequence[tuple[str, str]]) -> list[Amounts]:
        """What each known node that carries the labels has."""
        carrying = self._carrying(labels)
        return [node.total for at, node in enumerate(self.nodes) if carrying >> at & 1]

    def _view(self, *, lasting: bool) -> Room:
        return self._lasting if lasting and self._lasting is not None else self._room

    def _named(self, taken: Mapping[int, int]) -> Placement:
        return tuple((self.nodes[at].name, taken[at]) for at in sorted(taken))

    def _carrying(self, labels: Sequence[tuple[str, str]]) -> Nodes:
        carrying = ALL
        for label in labels:
            carrying &= self._labelled.get(label, 0)
        return carrying

    def _level(self, label: str) -> _Level:
        """The domains by a label."""
        found = self._levels.get(label)
        if found is None:
            of_names = [dict(node.labels).get(label) for node in self.nodes]
            names = sorted({name for name in of_names if name is not None})
            numbers = {name: number for number, name in enumerate(names)}
            of_nodes = [-1 if name is None else numbers[name] for name in of_names]
            members: list[list[int]] = [[] for _ in (*names, None)]
            for at, domain in enumerate(of_nodes):
                members[domain].append(at)
            found = self._levels[label] = _Level(names, [nodes_of(those) for those in members], of_nodes)
        return found

    def _counts(self, room: Room, shape: Shape, level: _Level, among: Nodes) -> Counts:
        return room.counts(shape.member, among, level.of_nodes, len(level.names))

    def _spread(self, shape: Shape, domains: Iterable[Nodes], fill: _Fill) -> Placement | None:
        """Members into one domain after the other."""
        taken: dict[int, int] = {}
        left = shape.members
        for domain in domains:
            into = fill(shape.member, left, domain)
            taken |= into
            left -= sum(into.values())
            if not left:
                return self._named(taken)
        return None


_Fill: TypeAlias = Callable[[Amounts, int, Nodes], dict[int, int]]


def _one_domain_of(shape: Shape) -> str | None:
    """The label by which all members must share a domain. None: they need not."""
    topology = shape.topology
    return None if topology is None or topology.mode is TopologyMode.PREFERRED else topology.level


def _labelled(nodes: Sequence[Node]) -> dict[tuple[str, str], Nodes]:
    """The nodes that carry each label."""
    carrying: dict[tuple[str, str], list[int]] = {}
    for at, node in enumerate(nodes):
        for label in node.labels:
            carrying.setdefault(label, []).append(at)
    return {label: nodes_of(those) for label, those in carrying.items()}


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    accelerators = cpu_millis = memory_mib = 0
    for each in amounts:
        accelerators += each[0]
        cpu_millis += each[1]
        memory_mib += each[2]
    return accelerators, cpu_millis, memory_mib
