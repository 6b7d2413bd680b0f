"""The cluster of a scenario: pools, nodes from templates, the quota tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from scheduler.core.types import Amounts, Budget, Cell, Micros, Node, Pool, QueueNode, Quota, Resource

PATH_SEPARATOR = "/"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
ResourceName = Literal["accelerators", "cpu_millis", "memory_mib"]

RESOURCES: dict[ResourceName, Resource] = {
    "accelerators": Resource.ACCELERATORS,
    "cpu_millis": Resource.CPU_MILLIS,
    "memory_mib": Resource.MEMORY_MIB,
}


class Spec(BaseModel):
    """A part of a scenario file: nothing coerced, nothing unknown."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class PoolSpec(Spec):
    """As `scheduler.core.types.Pool`."""

    name: Name
    kind: Name
    spot: bool = False
    price: Amount = 0
    """Millionths of the currency for an accelerator-hour."""

    def pool(self) -> Pool:
        """The core's value of it."""
        return Pool(self.name, self.kind, self.spot, self.price)


class NodeSpec(Spec):
    """A template of `count` nodes, named NAME-0000 and so on."""

    name: Name
    pool: Name
    count: Count = 1
    accelerators: Amount = 0
    cpu_millis: Amount = 0
    memory_mib: Amount = 0
    labels: dict[str, str] = {}
    """The same on all."""
    domains: dict[str, Count] = {}
    """By label, how many nodes in a row share a value: {rack: 64} puts 64 nodes into rack-0, the next 64 into rack-1."""

    def nodes(self, heartbeat: Micros) -> Iterator[Node]:
        """The nodes of the template, in order of name."""
        total: Amounts = (self.accelerators, self.cpu_millis, self.memory_mib)
        for index in range(self.count):
            numbered = {label: f"{label}-{index // size}" for label, size in self.domains.items()}
            labels = tuple(sorted((self.labels | numbered).items()))
            yield Node(f"{self.name}-{index:04d}", "1", self.pool, total, heartbeat, labels=labels)


class QuotaSpec(Spec):
    """As `scheduler.core.types.Quota`."""

    nominal: Amount = 0
    borrowing_limit: Amount | None = None
    lending_limit: Amount | None = None

    def quota(self) -> Quota:
        """The core's value of it."""
        return Quota(self.nominal, self.borrowing_limit, self.lending_limit)


class BudgetSpec(Spec):
    """As `scheduler.core.types.Budget`."""

    money_left: Amount | None = None
    """Millionths of the currency."""
    accelerator_ms_left: Amount | None = None

    def budget(self) -> Budget:
        """The core's value of it."""
        return Budget(self.money_left, self.accelerator_ms_left)


class QueueSpec(Spec):
    """A node of the quota tree with all below it.

    Below the root a node's name is its path, "research/vision"; with a count there are so many, numbered: "team-0/queue-3".
    """

    name: Name
    count: Count | None = None
    weight: Count = 1_000
    quotas: dict[Name, dict[ResourceName, QuotaSpec]] = {}
    """By pool and resource."""
    budget: BudgetSpec | None = None
    demoted: bool = False
    children: tuple[QueueSpec, ...] = ()

    def tree(self) -> Iterator[QueueNode]:
        """This node as the root, and all below it, parents first."""
        yield self._node(self.name, None)
        yield from self._below(self.name, "")

    def _below(self, parent: str, prefix: str) -> Iterator[QueueNode]:
        for child in self.children:
            for numbered in [child.name] if child.count is None else [f"{child.name}-{index}" for index in range(child.count)]:
                name = prefix + numbered
                yield child._node(name, parent)
                yield from child._below(name, name + PATH_SEPARATOR)

    def _node(self, name: str, parent: str | None) -> QueueNode:
        quotas: dict[Cell, Quota] = {
            (pool, RESOURCES[resource]): quota.quota()
            for pool, resources in self.quotas.items()
            for resource, quota in resources.items()
        }
        budget = self.budget.budget() if self.budget else None
        return QueueNode(name, parent, self.weight, quotas, budget=budget, demoted=self.demoted)


def leaves(tree: tuple[QueueNode, ...]) -> list[str]:
    """The queues of a tree, in its order."""
    parents = {node.parent for node in tree}
    return [node.name for node in tree if node.name not in parents]


def usable(tree: tuple[QueueNode, ...], cell: Cell, capacity: int) -> int:
    """The most of a cell that all queues together can ever hold: what the nodes have, or less where quotas never allow it."""
    children: dict[str | None, list[QueueNode]] = {}
    for node in tree:
        children.setdefault(node.parent, []).append(node)

    def nominal(node: QueueNode) -> int:
        return node.quotas.get(cell, Quota()).nominal + sum(nominal(child) for child in children.get(node.name, ()))

    def most(node: QueueNode) -> int:
        below = children.get(node.name)
        within = sum(most(child) for child in below) if below else capacity
        limit = node.quotas.get(cell, Quota()).borrowing_limit
        return within if limit is None or node.parent is None else min(within, nominal(node) + limit)

    (root,) = children[None]
    return min(most(root), capacity)
