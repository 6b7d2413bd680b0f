"""How long it takes to decide who yields to a gang of 63 whole nodes, in a full cluster of 500 nodes with 8 accelerators each.

All of the cluster is lent: 4,000 leases of one accelerator, of 95 queues in 19 teams. The gang's team has the quota for it. The
decision must take less than 200 ms. Ceiling: the time to take the victims out of cluster and quota and put them back, known who
they are. Besides: members placed a second, one after the other, in clusters of 1,000 and 10,000 nodes that were empty.
"""

from __future__ import annotations

import time
from random import Random
from statistics import median

from benchmarks.figure import Figure
from scheduler.core.cluster import Cluster
from scheduler.core.preemption import Preemption
from scheduler.core.quota import QuotaTree
from scheduler.core.types import Brakes, Lease, Limits, Micros, Node, Pool, QueueNode, Quota, Request, Resource, Shape

NOW = Micros(10**9)
GANG = Shape("h100", (8, 88_000, 800_000), members=63)
ONE = Shape("h100", (1, 11_000, 100_000))
_NODES, _TEAMS, _QUEUES = 500, 20, 5


async def run(quick: bool) -> Figure:
    """Three decisions when `quick`, else ten; the median."""
    times = [_reclaim(seed) for seed in range(3 if quick else 10)]
    rates = {f"placed_on_{nodes}_nodes_per_s": _placements(nodes) for nodes in (1_000, 10_000)}
    decided_ms, known_ms = (median(each) * 1_000 for each in zip(*times, strict=True))
    return Figure("gang_reclaim", decided_ms, "ms", known_ms, "ms to take the known victims out and put them back", rates)


def _cluster(nodes: int) -> Cluster:
    made = [Node(f"node-{number:05}", "1", "gpu", (8, 96_000, 1_000_000), NOW) for number in range(nodes)]
    return Cluster((Pool("gpu", "h100"),), made, frozenset(), NOW)


def _tree(cluster: Cluster) -> QuotaTree:
    cell = "gpu", Resource.ACCELERATORS
    nodes = [QueueNode("organisation", None)]
    for team in range(_TEAMS):
        nodes.append(QueueNode(f"team-{team}", "organisation", quotas={cell: Quota(100 if team else 600)}))
        nodes += [QueueNode(f"queue-{team}-{queue}", f"team-{team}") for queue in range(_QUEUES)]
    return QuotaTree(nodes, (), {"gpu": cluster.capacity("gpu")}, buckets=Limits().cost_buckets)


def _reclaim(seed: int) -> tuple[float, float]:
    """Seconds to decide, and to take the victims out and put them back."""
    cluster = _cluster(_NODES)
    tree, leases = _tree(cluster), _lent(cluster, Random(seed))  # noqa: S311 - the same leases each time.
    for lease in leases:
        tree.add(tree.leaf(lease.queue), lease.pool, lease.shape.total)
    request = Request("gang", "gang", "queue-0-0", GANG, 500, NOW, run_micros=10**9)
    brakes = Brakes(preemptions_left=10**6, waste_ms_left=10**15)

    began = time.perf_counter()
    eviction = Preemption(cluster, tree, leases, (), brakes, Limits(), NOW).evict(request, ["gpu"])
    decided = time.perf_counter() - began
    if eviction is None or len(eviction.preemptions) != GANG.accelerators:
        raise RuntimeError(f"{eviction} yields to the gang; expected {GANG.accelerators} leases of one accelerator")

    yielding = {preempt.lease_id for preempt in eviction.preemptions}
    known = [(tree.leaf(lease.queue), lease) for lease in leases if lease.lease_id in yielding]
    began = time.perf_counter()
    for leaf, lease in known:
        tree.remove(leaf, lease.pool, lease.shape.total)
        cluster.give_lease(lease)
    for leaf, lease in known:
        tree.add(leaf, lease.pool, lease.shape.total)
        cluster.take_lease(lease)
    return decided, time.perf_counter() - began


def _lent(cluster: Cluster, random: Random) -> list[Lease]:
    """Leases of one accelerator until the cluster is full."""
    leases: list[Lease] = []
    while (placement := cluster.place(ONE, "gpu")) is not None:
        name = f"lease-{len(leases):05}"
        queue = f"queue-{random.randrange(1, _TEAMS)}-{random.randrange(_QUEUES)}"
        granted = Micros(random.randrange(NOW // 2))
        leases.append(Lease(name, name, queue, ONE, 500, granted, 10**12, "gpu", placement, ("1",), granted, NOW))
        cluster.take_lease(leases[-1])
    return leases


def _placements(nodes: int) -> float:
    cluster, placed = _cluster(nodes), 0
    began = time.perf_counter()
    while (placement := cluster.place(ONE, "gpu")) is not None:
        cluster.take(placement, ONE.member, NOW)
        placed += 1
    return placed / (time.perf_counter() - began)
