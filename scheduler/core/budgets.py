"""What may still be spent, by node of the tree, kept as a round goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scheduler.core.quota import NodeIndex, QuotaTree
from scheduler.core.types import Pool, Shape

_MICROS_AN_HOUR = 3_600_000_000
_NO_ACCELERATOR = "cpu"
"""The kind of pools whose use is never accelerator-time."""


class Price(NamedTuple):
    """What a lease reserves in every budget on the way to the root."""

    money: int
    """Millionths of the currency, rounded up."""
    accelerator_ms: int


class Overdrawn(NamedTuple):
    """The first budget on the way to the root that a lease is too much for."""

    node: NodeIndex
    unit: str
    """"money" or "accelerator_ms"."""
    requested: int
    left: int


@dataclass(slots=True)
class _Left:
    money: int | None
    accelerator_ms: int | None


class Budgets:
    """The hard budgets of the tree."""

    def __init__(self, tree: QuotaTree) -> None:
        self._tree = tree
        self._left = {
            number: _Left(node.budget.money_left, node.budget.accelerator_ms_left)
            for number, node in enumerate(tree.nodes)
            if node.budget is not None
        }
        self._holders: dict[NodeIndex, tuple[NodeIndex, ...]] = {}

    def limit(self, leaf: NodeIndex) -> bool:
        """Whether there is any budget on the way from the leaf to the root."""
        return bool(self._on_path(leaf))

    def short(self, leaf: NodeIndex, shape: Shape, run_micros: int, pool: Pool) -> Overdrawn | None:
        """The lowest node that would be overdrawn. None: everybody can pay."""
        if not (holders := self._on_path(leaf)):
            return None
        price = price_of(shape, run_micros, pool)
        for node in holders:
            left = self._left[node]
            if left.money is not None and price.money > left.money:
                return Overdrawn(node, "money", price.money, left.money)
            if left.accelerator_ms is None or pool.kind == _NO_ACCELERATOR:
                continue
            if price.accelerator_ms > left.accelerator_ms:
                return Overdrawn(node, "accelerator_ms", price.accelerator_ms, left.accelerator_ms)
        return None

    def spend(self, leaf: NodeIndex, price: Price) -> None:
        """Reserves the price in every budget on the way to the root."""
        for node in self._on_path(leaf):
            left = self._left[node]
            left.money = None if left.money is None else left.money - price.money
            left.accelerator_ms = None if left.accelerator_ms is None else left.accelerator_ms - price.accelerator_ms

    def copy(self) -> Budgets:
        """One of its own, with the same left."""
        twin = Budgets(self._tree)
        twin._left = {node: _Left(left.money, left.accelerator_ms) for node, left in self._left.items()}
        return twin

    def _on_path(self, leaf: NodeIndex) -> tuple[NodeIndex, ...]:
        """The nodes that have one, from the leaf up."""
        if not self._left:
            return ()
        found = self._holders.get(leaf)
        if found is None:
            found = self._holders[leaf] = tuple(node for node in self._tree.path(leaf) if node in self._left)
        return found


def price_of(shape: Shape, run_micros: int, pool: Pool) -> Price:
    """Of the longest run."""
    accelerator_micros = shape.accelerators * run_micros
    accelerator_ms = 0 if pool.kind == _NO_ACCELERATOR else accelerator_micros // 1000
    return Price(-(-accelerator_micros * pool.price // _MICROS_AN_HOUR), accelerator_ms)
