"""What the shell keeps of the quota tree while time goes by: budgets, decayed use, brakes. Integers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from scheduler.core.types import Brakes, Budget, Cell, Micros, QueueNode, Quota
from scheduler.simulation.units import MICROS_PER_SECOND

_MICROS_PER_HOUR = 3_600 * MICROS_PER_SECOND
_FRACTION_BITS = 32


class OverdrawnError(Exception):
    """A grant reserved more than a budget has left: the plan broke its own rules."""


class Ledger:
    """The quota tree with its budgets and its past use."""

    def __init__(self, tree: tuple[QueueNode, ...], half_life_micros: int, every_micros: int) -> None:
        """Args: the tree at the start; after how long past use counts half; how often `decay` is going to be called."""
        self._nodes = {node.name: node for node in tree}
        self._tree: tuple[QueueNode, ...] | None = tree
        # Rounded so that the last bit of a machine's power function cannot change a plan.
        self._kept = round(2 ** (-every_micros / half_life_micros) * 2**_FRACTION_BITS)
        self._used: Counter[str] = Counter({node.name: node.past_use * MICROS_PER_SECOND for node in tree})
        """Decayed use by queue and all above it, in accelerator-microseconds."""

    @property
    def tree(self) -> tuple[QueueNode, ...]:
        """As it is now."""
        if self._tree is None:
            self._tree = tuple(self._nodes.values())
        return self._tree

    def reserve(self, queue: str, money: int, accelerator_ms: int) -> None:
        """Takes what a grant may cost at most from every budget on the way to the root.

        Raises:
            OverdrawnError: a budget has less.
        """
        for node in self._path(queue):
            for left, taken in _pairs(node.budget, money, accelerator_ms):
                if taken > max(left, 0):
                    raise OverdrawnError(
                        f"{queue}: {node.name} has {node.budget}; {money} and {accelerator_ms} ms were granted"
                    )
        self.settle(queue, -money, -accelerator_ms)

    def settle(self, queue: str, money: int, accelerator_ms: int) -> None:
        """Gives back what was reserved and not used; less than nothing where a lease took longer than it declared."""
        for node in self._path(queue):
            if node.budget is not None:
                left = Budget(_more(node.budget.money_left, money), _more(node.budget.accelerator_ms_left, accelerator_ms))
                self._put(replace(node, budget=left))

    def set_budget(self, name: str, budget: Budget) -> None:
        """A node has this left to spend."""
        self._put(replace(self._nodes[name], budget=budget))

    def set_quota(self, name: str, cell: Cell, quota: Quota) -> None:
        """A node has another quota of a cell."""
        node = self._nodes[name]
        self._put(replace(node, quotas={**node.quotas, cell: quota}))

    def decay(self, used_since: Counter[str]) -> None:
        """Brings past use up to date; called every `every_micros`.

        Args:
            used_since: accelerator-microseconds by queue since it was last called.
        """
        for name in self._used:
            self._used[name] = self._used[name] * self._kept >> _FRACTION_BITS
        for queue, used in used_since.items():
            for node in self._path(queue):
                self._used[node.name] += used
        for name, used in self._used.items():
            seconds = used // MICROS_PER_SECOND
            if seconds != self._nodes[name].past_use:
                self._put(replace(self._nodes[name], past_use=seconds))

    def _path(self, queue: str) -> Iterator[QueueNode]:
        name: str | None = queue
        while name is not None and name in self._nodes:
            yield self._nodes[name]
            name = self._nodes[name].parent

    def _put(self, node: QueueNode) -> None:
        self._nodes[node.name] = node
        self._tree = None


def _pairs(budget: Budget | None, money: int, accelerator_ms: int) -> Iterator[tuple[int, int]]:
    if budget is not None and budget.money_left is not None:
        yield budget.money_left, money
    if budget is not None and budget.accelerator_ms_left is not None:
        yield budget.accelerator_ms_left, accelerator_ms


def _more(left: int | None, given: int) -> int | None:
    return None if left is None else left + given


class BrakeBuckets:
    """Preemptions and work thrown away: two buckets that begin full, hold an hour's worth each, and fill evenly."""

    def __init__(self, preemptions_per_hour: int, waste_ms_per_hour: int, now: Micros, left: Brakes | None = None) -> None:
        """Args: how they fill; when; what is in them. None: they are full."""
        self._per_hour = (preemptions_per_hour, waste_ms_per_hour)
        levels = self._per_hour if left is None else (left.preemptions_left, left.waste_ms_left)
        # In units of one part in the microseconds of an hour, so that filling is exact.
        self._levels = [level * _MICROS_PER_HOUR for level in levels]
        self._filled = now

    def brakes(self, now: Micros) -> Brakes:
        """What is left."""
        for index, per_hour in enumerate(self._per_hour):
            full = per_hour * _MICROS_PER_HOUR
            self._levels[index] = min(full, self._levels[index] + per_hour * (now - self._filled))
        self._filled = now
        return Brakes(self._levels[0] // _MICROS_PER_HOUR, self._levels[1] // _MICROS_PER_HOUR)

    def take(self, preemptions: int, lost_ms: int) -> None:
        """What a round has decided to preempt."""
        self._levels[0] -= preemptions * _MICROS_PER_HOUR
        self._levels[1] -= lost_ms * _MICROS_PER_HOUR
