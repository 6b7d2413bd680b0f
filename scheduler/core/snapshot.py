"""Everything that a round decides on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.backlog import Backlog
from scheduler.core.types import Brakes, GroupKey, Lease, Micros, Node, Pool, QueuedJob, QueueNode, Request

_NO_PREEMPTION = Brakes(preemptions_left=0, waste_ms_left=0)
_LONG_AGO = Micros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of one moment. The order of what it holds means nothing, and a round changes nothing of it."""

    requests: Backlog[Request]
    jobs: Backlog[QueuedJob]
    leases: tuple[Lease, ...] = ()
    """Granted and not ended; those being preempted too."""
    pools: tuple[Pool, ...] = ()
    nodes: tuple[Node, ...] = ()
    """All that are known, cordoned and lost ones too: they say what the cluster can be."""
    tree: tuple[QueueNode, ...] = ()
    """With one root. A queue that is not in it is below the root, without quotas."""
    admitted: Mapping[str, int] = field(default_factory=dict[str, int])
    """Jobs admitted and not final, by queue."""
    brakes: Brakes = _NO_PREEMPTION
    database_started: Micros = _LONG_AGO
    """Nobody can have stored a heartbeat before this: silence is counted from here at the earliest."""
    carried_over: tuple[GroupKey, ...] = ()
    """Groups that the last round did not get to; they go before others of their class."""
