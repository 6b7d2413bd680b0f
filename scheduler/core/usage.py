"""Who uses how much: now, and when every preemption under way is done."""

from __future__ import annotations

from typing import NamedTuple

from scheduler.core.quota import NodeIndex, QuotaTree
from scheduler.core.types import Amounts, Resource


class Short(NamedTuple):
    """What a request is too much for."""

    tree: QuotaTree
    """In which of the two states."""
    resource: Resource


class Usage:
    """Two states of use of the same quotas. As long as nobody yields to anybody they are one.

    Quota allows what is within quota in both: so what is claimed is given to nobody else while its owner waits, and nothing is
    exceeded meanwhile. What is fair goes by where things are heading.
    """

    def __init__(self, held: QuotaTree) -> None:
        self.held = held
        """What leases hold, those that yield too."""
        self.settled = held
        """What leases that do not yield hold, and what is claimed."""

    def copy(self) -> Usage:
        """One of its own."""
        twin = Usage(self.held.copy())
        if self.settled is not self.held:
            twin.settled = self.settled.copy()
        return twin

    def short(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> Short | None:
        """The first resource, now or then, of which the queue may not use so much more. None: it is within quota."""
        resource = self.held.short(leaf, pool, amounts)
        if resource is not None:
            return Short(self.held, resource)
        if self.settled is not self.held and (resource := self.settled.short(leaf, pool, amounts)) is not None:
            return Short(self.settled, resource)
        return None

    def within_own_limits(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> bool:
        """Whether it is others' use alone, if anything, that quota holds against it."""
        if self.held.short(leaf, pool, amounts, apart_from_root=True) is not None:
            return False
        return self.settled is self.held or self.settled.short(leaf, pool, amounts, apart_from_root=True) is None

    def grant(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> None:
        """A lease is held from now on."""
        self.held.add(leaf, pool, amounts)
        if self.settled is not self.held:
            self.settled.add(leaf, pool, amounts)

    def release(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> None:
        """A lease yields: it is held, and will not be."""
        self._split().remove(leaf, pool, amounts)

    def claim(self, leaf: NodeIndex, pool: str, amounts: Amounts) -> None:
        """A request waits for leases to yield: it is not held, and will be."""
        self._split().add(leaf, pool, amounts)

    def _split(self) -> QuotaTree:
        if self.settled is self.held:
            self.settled = self.held.copy()
        return self.settled
