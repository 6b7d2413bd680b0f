"""Where the members of a shape go: nodes with what is free of each, in; a placement, out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from scheduler.core.types import Amounts, Placement, Resource, Shape, TopologyMode

Room: TypeAlias = Mapping[str, Amounts]
"""What may be used of each node."""
Domains: TypeAlias = Mapping[str, str]
"""The domain of each node that carries the label of the topology."""


def times(amounts: Amounts, count: int) -> Amounts:
    """So much for each of `count`."""
    return (amounts[0] * count, amounts[1] * count, amounts[2] * count)


def plus(one: Amounts, other: Amounts) -> Amounts:
    """The sum."""
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def minus(one: Amounts, other: Amounts) -> Amounts:
    """The difference, nowhere below 0."""
    return (max(0, one[0] - other[0]), max(0, one[1] - other[1]), max(0, one[2] - other[2]))


def lesser(one: Amounts, other: Amounts) -> Amounts:
    """The lesser of each."""
    return (min(one[0], other[0]), min(one[1], other[1]), min(one[2], other[2]))


def first_resource(shape: Shape) -> Resource:
    """The one that a shape is spoken of by: the first that it takes any of."""
    return next((resource for resource in Resource if shape.member[resource] > 0), Resource.ACCELERATORS)


def slots(free: Amounts, shape: Shape) -> int:
    """How many of the shape's members fit into so much."""
    fits = [free[resource] // shape.member[resource] for resource in Resource if shape.member[resource] > 0]
    return min([shape.members, *fits])


def place(shape: Shape, room: Room, domains: Domains) -> Placement | None:
    """All members, tightest first; in the domain that the topology asks for. None: they do not fit."""
    if shape.topology is None:
        return _whole(shape, _tightest_first(shape, room, shape.members))

    by_domain = _by_domain(room, domains)
    roomy = [domain for domain, nodes in by_domain.items() if _slots(shape, nodes) >= shape.members]
    if roomy:
        balanced = shape.topology.mode is TopologyMode.BALANCED
        measure = Resource.ACCELERATORS if shape.accelerators > 0 else Resource.CPU_MILLIS

        def by_what_is_left(domain: str) -> tuple[int, str]:
            free = sum(amounts[measure] for amounts in by_domain[domain].values())
            return (-free if balanced else free, domain)

        return _whole(shape, _tightest_first(shape, by_domain[min(roomy, key=by_what_is_left)], shape.members))
    if shape.topology.mode is not TopologyMode.PREFERRED:
        return None
    order = sorted(by_domain, key=lambda domain: (-_slots(shape, by_domain[domain]), domain))
    return _whole(shape, _one_after_another(shape, [*(by_domain[d] for d in order), _without(room, domains)], _tightest_first))


def place_plainly(shape: Shape, room: Room, domains: Domains) -> Placement | None:
    """As `place`, but nodes and domains in order of name: what is reserved so stays where it is when other room is taken."""
    if shape.topology is None:
        return _whole(shape, _by_name(shape, room, shape.members))

    by_domain = _by_domain(room, domains)
    for domain in sorted(by_domain):
        if _slots(shape, by_domain[domain]) >= shape.members:
            return _whole(shape, _by_name(shape, by_domain[domain], shape.members))
    if shape.topology.mode is not TopologyMode.PREFERRED:
        return None
    return _whole(
        shape, _one_after_another(shape, [*(by_domain[d] for d in sorted(by_domain)), _without(room, domains)], _by_name)
    )


def placeable(shape: Shape, room: Room, domains: Domains) -> int:
    """How many members fit, if not all have to."""
    if shape.topology is None or shape.topology.mode is TopologyMode.PREFERRED:
        return min(shape.members, _slots(shape, room))
    return min(shape.members, max((_slots(shape, nodes) for nodes in _by_domain(room, domains).values()), default=0))


def _slots(shape: Shape, room: Room) -> int:
    return sum(slots(free, shape) for free in room.values())


def _by_domain(room: Room, domains: Domains) -> dict[str, Room]:
    names = sorted({domains[node] for node in room if node in domains})
    return {name: {node: free for node, free in room.items() if domains.get(node) == name} for name in names}


def _without(room: Room, domains: Domains) -> Room:
    return {node: free for node, free in room.items() if node not in domains}


def _tightest_first(shape: Shape, room: Room, members: int) -> dict[str, int]:
    """Up to so many members, each on the node with least room that holds it."""
    left, taken = dict(room), dict[str, int]()
    for _ in range(members):
        holding = [node for node, free in left.items() if slots(free, shape) > 0]
        if not holding:
            break
        # A shape without accelerators goes by CPU, then memory.
        first, second = (0, 1) if shape.accelerators > 0 else (1, 2)
        node = min(holding, key=lambda name: (left[name][first], left[name][second], name))
        left[node] = minus(left[node], shape.member)
        taken[node] = taken.get(node, 0) + 1
    return taken


def _by_name(shape: Shape, room: Room, members: int) -> dict[str, int]:
    """Up to so many members, each node filled up before the next."""
    taken: dict[str, int] = {}
    for node in sorted(room):
        if (count := min(slots(room[node], shape), members - sum(taken.values()))) > 0:
            taken[node] = count
    return taken


def _one_after_another(
    shape: Shape, rooms: Iterable[Room], fill: Callable[[Shape, Room, int], dict[str, int]]
) -> dict[str, int]:
    taken: dict[str, int] = {}
    for room in rooms:
        taken |= fill(shape, room, shape.members - sum(taken.values()))
    return taken


def _whole(shape: Shape, taken: dict[str, int]) -> Placement | None:
    return tuple(sorted(taken.items())) if sum(taken.values()) == shape.members else None
