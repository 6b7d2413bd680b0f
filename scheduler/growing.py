"""Nodes that a pool may grow by: known to the rules as nodes out of service are, so that work which needs them waits.

What could ever run is judged by all nodes that are known, living or not. A pool that was scaled to nothing has none left, and
what asks for it would be refused as something that no node could ever hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from control_plane.settings import GrowingPool
from scheduler.core.types import Micros
from scheduler.state import WorkerRow

_NO_INCARNATION = ""
_NEVER = Micros(0)


def nodes_to_come(pools: Iterable[GrowingPool], workers: Iterable[WorkerRow]) -> Sequence[WorkerRow]:
    """The nodes that these pools may still grow by: silent and cordoned, so nothing is placed on them.

    Args:
        pools: as configured.
        workers: those that registered.
    """
    there = Counter(row.pool or (f"{row.kind}-spot" if row.spot else row.kind) for row in workers)
    return [
        WorkerRow(
            # No worker is called so: a name has no space.
            name=f"{pool.name} {number}",
            incarnation=_NO_INCARNATION,
            kind=pool.accelerator_kind,
            accelerators=pool.accelerators,
            cpu_millis=pool.cpu_millis,
            memory_mib=pool.memory_mib,
            pool=pool.name,
            spot=pool.spot,
            labels="{}",
            cordoned=True,
            heartbeat=_NEVER,
        )
        for pool in pools
        for number in range(there[pool.name], pool.nodes_max)
    ]
