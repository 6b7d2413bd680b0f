"""What falls with every grant, so that preemption comes to an end although victims ask again at once.

By (a) and (b) of rule 9 alone leases could chase each other for ever. Two queues have a nominal quota of 6 accelerators, and
use 4 of them elsewhere; on one node with 3, a HIGH job of 3 and a LOW job of 2 of each queue want to run. The LOW job of the
one queue is within nominal, and may take the place of the HIGH job of the other, which borrows. The HIGH job of its own queue
may take its place, by class, and borrows. That of the other queue's LOW job is within nominal ... and so on.

So a request that was itself preempted before (`Request.preempted`) may displace others only if the potential falls:

1. `fresh`: how many requests wait that were never preempted. Fewer is less.
2. Standing: of each node of the tree below the root, and of each pool, which of the leases in its subtree fit into its own
   nominal quota: counted by class and amounts, the highest class first, of a class the largest first, each as often as it
   fits beside those before. More is less potential, and what comes first decides. The deepest nodes decide; of one depth none
   may lose.
3. Classes: how many leases run of each class. More of the highest is less.

Proof that it ends, in a system that nothing is added to, that nothing leaves but by preemption, where victims ask again at
once:

- A grant without victims does not raise `fresh`. It adds to what may stand; and what stands is the greatest, in that order,
  of all sets that fit: with more leases there are more sets. So no standing is lost. And one more lease of a class runs. It
  falls.
- A preemption for a request that was never preempted: `fresh` falls by one, since victims are not fresh when they ask again.
- A preemption for another: checked to fall.

A finite number of requests has a finite number of potentials, so all but finitely many rounds grant nothing. None of this
depends on where something is placed, on (a) or (b), on cost, or on the order of a round: (a) and (b) alone let each demand
displace others at most once. What that costs: a job that was preempted does not displace others of its class for fair share a
second time. It takes its turn when something is free, displaces lower classes, and reclaims its nominal quota.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from scheduler.core.quota import ROOT, NodeIndex, QuotaTree
from scheduler.core.types import Amounts, PriorityClass, Resource

Vector: TypeAlias = tuple[tuple[PriorityClass, Amounts, int], ...]
"""Class, amounts, and how many of them stand; in order, so that the greater tuple is the better."""


class Alike(NamedTuple):
    """What the rules ask of a lease: leases of which all of this is the same stand, and may be displaced, alike."""

    leaf: NodeIndex
    priority_class: PriorityClass
    """Effective."""
    pool: str
    amounts: Amounts
    """Of all members."""


class Potential(NamedTuple):
    """Of a state in which all preemptions under way are done."""

    fresh: int
    standing: tuple[tuple[Vector, ...], ...]
    """By depth, deepest first; of a depth, by node and pool."""
    classes: tuple[int, ...]
    """Leases that run, of the highest class first."""

    def falls_to(self, after: Potential) -> bool:
        """Whether the potential of a later state is less. An order: nothing falls to itself, and what falls twice, falls."""
        if after.fresh != self.fresh:
            return after.fresh < self.fresh
        for before, now in zip(self.standing, after.standing, strict=True):
            if before != now:
                return all(one <= other for one, other in zip(before, now, strict=True))
        return after.classes > self.classes


class Standing:
    """The leases of a settled state by node of the tree, kept as leases come and go."""

    def __init__(self, tree: QuotaTree, running: Iterable[Alike]) -> None:
        """`tree`: for its shape and nominal quotas; who uses what counts by `running`."""
        self._tree = tree
        self._own = _nominal_of_subtrees(tree)
        self._counted = _counted(tree)
        self._running: dict[tuple[NodeIndex, str], Counter[tuple[PriorityClass, Amounts]]] = {}
        self._classes: Counter[PriorityClass] = Counter()
        self._before: dict[tuple[NodeIndex, str], Vector] = {}
        self._classes_before = self._classes.copy()
        for each in running:
            self.change(each, 1)
        self.begin()

    def change(self, lease: Alike, count: int) -> None:
        """So many more leases like this run; less, if below 0."""
        for node in self._tree.path(lease.leaf)[:-1]:
            place = node, lease.pool
            if place not in self._before:
                self._before[place] = self.vector(*place)
            self._running.setdefault(place, Counter())[lease.priority_class, lease.amounts] += count
        self._classes[lease.priority_class] += count

    def begin(self) -> None:
        """From here on `falls` compares."""
        self._before.clear()
        self._classes_before = self._classes.copy()

    def falls(self) -> bool:
        """Whether the potential has fallen since `begin`, with as many fresh requests."""
        by_depth: dict[int, list[tuple[Vector, Vector]]] = {}
        for (node, pool), before in self._before.items():
            by_depth.setdefault(-len(self._tree.path(node)), []).append((before, self.vector(node, pool)))
        for _, vectors in sorted(by_depth.items()):
            if any(before != now for before, now in vectors):
                return all(before <= now for before, now in vectors)
        return self._classes_from(self._classes) > self._classes_from(self._classes_before)

    def vector(self, node: NodeIndex, pool: str) -> Vector:
        """What stands: of the leases in the node's subtree those that fit into its own nominal quota."""
        running = self._running.get((node, pool))
        if not running:
            return ()
        resources = self._counted.get(pool, _ALL)
        left = {resource: self._own[node].get((pool, resource), 0) for resource in resources}
        found: list[tuple[PriorityClass, Amounts, int]] = []
        for (priority_class, amounts), count in sorted(running.items(), reverse=True):
            fitting = min([count, *(left[each] // amounts[each] for each in resources if amounts[each])])
            if fitting:
                found.append((priority_class, amounts, fitting))
                for each in resources:
                    left[each] -= fitting * amounts[each]
        return tuple(found)

    def potential(self, fresh: int, pools: Sequence[str]) -> Potential:
        """Of the whole state: with so many fresh requests, and these pools, always in the same order."""
        by_depth: dict[int, list[NodeIndex]] = {}
        for node in range(ROOT + 1, len(self._tree.nodes)):
            by_depth.setdefault(-len(self._tree.path(node)), []).append(node)
        standing = tuple(
            tuple(self.vector(node, pool) for node in nodes for pool in pools) for _, nodes in sorted(by_depth.items())
        )
        return Potential(fresh, standing, self._classes_from(self._classes))

    @staticmethod
    def _classes_from(counts: Mapping[PriorityClass, int]) -> tuple[int, ...]:
        return tuple(counts[each] for each in sorted(PriorityClass, reverse=True))


_ALL = tuple(Resource)


def _nominal_of_subtrees(tree: QuotaTree) -> list[Counter[tuple[str, Resource]]]:
    """By node, the nominal quota of all nodes of its subtree together."""
    own: list[Counter[tuple[str, Resource]]] = [Counter() for _ in tree.nodes]
    for number, node in enumerate(tree.nodes):
        for each in tree.path(number):
            own[each].update({cell: quota.nominal for cell, quota in node.quotas.items()})
    return own


def _counted(tree: QuotaTree) -> dict[str, tuple[Resource, ...]]:
    """By pool that the tree names a cell of, the resources named; of other pools all count."""
    named = {cell for node in tree.nodes for cell in node.quotas}
    return {pool: tuple(resource for resource in Resource if (pool, resource) in named) for pool, _ in named}
