"""What could ever start: the largest node of each kind, living or silent, cordoned or not, as if nothing ran on it.

A job's lease is whole on one node; those that a pool may grow by count as well. What no node could hold is refused when it is
submitted, with the number; the scheduler says the same of requests for leases, by its own rules (`scheduler.core.refusals`),
since nodes may go later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from control_plane.capacity.offers import ANY_KIND
from control_plane.errors import FieldViolation, Reason, RefusedError
from control_plane.settings import GrowingPool

_REFRESH_SECONDS = 1.0
# Nodes without accelerators hold no lease. Jobs do not say that they bear spot nodes, so none of theirs is placed on one.
_LARGEST = """
    SELECT accelerator_kind, max(accelerators) FILTER (WHERE NOT spot), count(*) FILTER (WHERE NOT spot) FROM workers
    WHERE accelerators > 0 GROUP BY accelerator_kind
"""


class Demand(NamedTuple):
    """What each lease of a job holds on one node."""

    kind: str
    accelerators: int


class _OfKind(NamedTuple):
    largest: int
    """Accelerators of the largest node; 0: all are spot."""
    nodes: int


@dataclass(frozen=True, slots=True)
class LargestNodes:
    """The largest node of each kind."""

    kinds: Mapping[str, _OfKind] = field(default_factory=dict[str, _OfKind])

    def holds(self, demand: Demand) -> bool:
        """Whether a node could hold it. While no node is known, any might."""
        return not self.kinds or demand.accelerators <= self._largest(demand.kind)

    def refusal(self, demand: Demand, path: str) -> RefusedError:
        """Why no node could hold it.

        Args:
            demand: one that `holds` denies.
            path: where the resources stand that ask for it.
        """
        place, found = self._violation(demand)
        violation = FieldViolation(f"{path}.{place}", found)
        numbers = {"requested": str(demand.accelerators), "maximum": str(self._largest(demand.kind))}
        return RefusedError(Reason.EXCEEDS_MAXIMUM, f"{violation.path}: {found}", numbers, [violation])

    def _largest(self, kind: str) -> int:
        if kind == ANY_KIND:
            return max((known.largest for known in self.kinds.values()), default=0)
        known = self.kinds.get(kind)
        return 0 if known is None else known.largest

    def _violation(self, demand: Demand) -> tuple[str, str]:
        usable = sorted(kind for kind, known in self.kinds.items() if known.largest)
        expected = f"expected {', '.join([*usable, ANY_KIND])}" if usable else "expected to be submitted when others are there"
        if not usable and demand.kind == ANY_KIND:
            return "accelerator_kind", f"is {ANY_KIND!r}, and every node is spot, which jobs are not placed on; {expected}"
        if demand.kind not in (*self.kinds, ANY_KIND):
            return "accelerator_kind", f"is {demand.kind!r}, of which no node is registered; {expected}"
        if demand.kind not in (*usable, ANY_KIND):
            return (
                "accelerator_kind",
                f"is {demand.kind!r}, of which every node is spot, which jobs are not placed on; {expected}",
            )
        most = self._largest(demand.kind)
        if demand.kind == ANY_KIND:
            largest = f"the largest node has {most}"
        else:
            nodes = self.kinds[demand.kind].nodes
            largest = f"the largest of the {nodes:,} nodes of kind {demand.kind} has {most}"
            largest = f"the one node of kind {demand.kind} has {most}" if nodes == 1 else largest
        return "accelerators", f"is {demand.accelerators}, all on one node; {largest}; expected at most that"


class LargestNodesReader:
    """Reads the largest nodes for one process, and remembers them for a second.

    What is remembered may let through what no node holds any more; nothing is refused without a look at what is there now.
    """

    def __init__(self, growing_pools: Iterable[GrowingPool] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        growing_pools: pools whose nodes may come when they are needed.
        clock: seconds, which never go back.
        """
        self._growing_pools = tuple(growing_pools)
        self._clock = clock
        self._known: LargestNodes | None = None
        self._read_at = 0.0

    async def read(self, raw: Any, demands: Iterable[Demand]) -> LargestNodes:
        """The largest nodes, fit to judge these demands by.

        Args:
            raw: an asyncpg connection.
            demands: each distinct one once.
        """
        known = self._known
        if known is not None and self._clock() - self._read_at < _REFRESH_SECONDS and all(map(known.holds, demands)):
            return known
        read_at = self._clock()
        rows = await raw.fetch(_LARGEST)
        kinds = {kind: _OfKind(largest or 0, nodes) for kind, largest, nodes in rows}
        # While no node is known, nothing is refused.
        for pool in self._growing_pools if kinds else ():
            if not pool.spot:
                there = kinds.get(pool.accelerator_kind, _OfKind(0, 0))
                kinds[pool.accelerator_kind] = _OfKind(max(there.largest, pool.accelerators), max(there.nodes, pool.nodes_max))
        known = LargestNodes(kinds)
        self._known, self._read_at = known, read_at
        return known
