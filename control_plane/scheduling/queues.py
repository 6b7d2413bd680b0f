"""The quota tree and pools as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from control_plane.quotas.wire import RESOURCE_NUMBERS
from control_plane.scheduling.cluster import Cluster, free_of
from headway.quotas.v1 import quota_service_pb2 as quotas_pb
from headway.scheduler.v1 import snapshot_pb2 as pb
from scheduler.core.quota import NodeIndex
from scheduler.core.types import QueueNode, Quota, Resource
from scheduler.tree import ROOT, node_name

_TEAM_PREFIX = node_name("TEAM", "")
_NO_QUOTA = Quota()


def queue_state(cluster: Cluster, node: NodeIndex, waiting: Mapping[str, tuple[int, int]]) -> pb.QueueState:
    """A node of the tree, what it has and what it uses.

    Args:
        cluster: where it is.
        node: by number.
        waiting: by project, jobs and leases that wait.
    """
    queue = cluster.tree.nodes[node]
    jobs, leases = waiting.get(queue.name, (0, 0))
    return pb.QueueState(
        **_naming(queue.name),
        parent=(queue.parent or "").removeprefix(_TEAM_PREFIX) if queue.parent != ROOT else "",
        weight=queue.weight,
        cells=_cells(cluster, node, queue),
        past_use_accelerator_seconds=queue.past_use,
        jobs_waiting=jobs,
        leases_waiting=leases,
        cost=cluster.tree.cost(node),
    )


def _naming(name: str) -> dict[str, Any]:
    if name == ROOT:
        return {"organisation": True}
    if name.startswith(_TEAM_PREFIX):
        return {"team": name.removeprefix(_TEAM_PREFIX)}
    return {"project": name}


def _cells(cluster: Cluster, node: NodeIndex, queue: QueueNode) -> list[pb.CellUsage]:
    tree = cluster.tree
    cells: list[pb.CellUsage] = []
    for pool in cluster.pools:
        for resource in Resource:
            use, available = tree.of(node, pool, resource), tree.available(node, pool, resource)
            quota = queue.quotas.get((pool, resource))
            if quota is None and not use.used:
                continue
            cells.append(
                pb.CellUsage(
                    quota=quota_cell(pool, resource, quota or _NO_QUOTA),
                    used=use.used,
                    borrowed=max(0, use.used - use.quota),
                    available=available,
                )
            )
    # Quotas of pools that no node is in yet.
    cells += [
        pb.CellUsage(quota=quota_cell(pool, resource, quota))
        for (pool, resource), quota in sorted(queue.quotas.items())
        if pool not in cluster.pools
    ]
    return cells


def quota_cell(pool: str, resource: Resource, quota: Quota) -> quotas_pb.QuotaCell:
    """A cell of a quota as a message."""
    return quotas_pb.QuotaCell(
        pool=pool,
        resource=RESOURCE_NUMBERS[resource.name.lower()],
        nominal=quota.nominal,
        borrowing_limit=quota.borrowing_limit,
        lending_limit=quota.lending_limit,
    )


def pool_messages(cluster: Cluster) -> list[pb.Pool]:
    """The pools by name."""
    return [_pool(cluster, name) for name in cluster.pools]


def _pool(cluster: Cluster, name: str) -> pb.Pool:
    pool = cluster.pools[name]
    nodes = [node for node in cluster.nodes if node.pool == name]
    living = [node for node in nodes if node.name in cluster.living]
    available = [node for node in living if not node.cordoned]
    free = [free_of(cluster, node) for node in available]
    return pb.Pool(
        name=name,
        accelerator_kind=pool.kind,
        spot=pool.spot,
        nodes=len(nodes),
        nodes_available=len(available),
        resources=[
            pb.PoolResource(
                resource=RESOURCE_NUMBERS[resource.name.lower()],
                total=sum(node.total[resource] for node in living),
                held=sum(cluster.held.get(node.name, (0, 0, 0))[resource] for node in nodes),
                free=sum(amounts[resource] for amounts in free),
            )
            for resource in Resource
            if any(node.total[resource] for node in nodes)
        ],
    )
