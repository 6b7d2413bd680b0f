"""Pools, the quota tree and what is held of them, as of one moment: what the core would make of the same rows.

Only what is small is read: no queued job.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler.core.quota import QuotaTree
from scheduler.core.types import Amounts, Limits, Micros, Node, Pool, QueueNode, Resource
from scheduler.decay import decayed
from scheduler.shapes import shape_of
from scheduler.state import WorkerRow, pools_and_nodes
from scheduler.tree import Books, QueueRow, build

_CLOCK = text(
    """
    SELECT (extract(epoch FROM now()) * 1000000)::bigint AS now,
        (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started
    """
)
_WORKERS = text(
    """
    SELECT name, incarnation::text, accelerator_kind, accelerators, cpu_millis, memory_mib, pool, spot, labels::text,
        cordoned OR draining, (extract(epoch FROM heartbeat_at) * 1000000)::bigint
    FROM workers
    """
)
_QUEUE_NODES = text("SELECT kind, name, parent, weight, quotas::text FROM queue_nodes")
_PAST_USE = text("SELECT project, accelerator_ms, (extract(epoch FROM as_of) * 1000000)::bigint FROM past_use")
_HELD = text(
    """
    SELECT project, pool, shape, coalesce(placement, jsonb_build_array(jsonb_build_array(worker, members)))::text
    FROM leases WHERE state = 'GRANTED'
    """
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is and who holds it.

    Attributes:
        now: of when, by the database's clock.
        pools: by name, in order.
        nodes: in order of name.
        living: the names of nodes whose heartbeat is recent.
        held: by node.
        tree: with the use of all that is held.
        queues: the nodes of the tree by name.
    """

    now: Micros
    pools: Mapping[str, Pool]
    nodes: tuple[Node, ...]
    living: frozenset[str]
    held: Mapping[str, Amounts]
    tree: QuotaTree
    queues: Mapping[str, QueueNode]


async def read_cluster(
    connection: AsyncConnection, limits: Limits, half_life_micros: int, projects: Iterable[str] = ()
) -> Cluster:
    """Reads it, on a connection whose transaction sees one moment.

    Args:
        connection: where to read.
        limits: the scheduler's.
        half_life_micros: of past use.
        projects: further ones that will be asked about.
    """
    clock = (await connection.execute(_CLOCK)).one()
    now = Micros(clock.now)
    workers = [WorkerRow(*row) for row in await connection.execute(_WORKERS)]
    rows = [
        QueueRow(kind, name, parent, weight, from_json(quotas))
        for kind, name, parent, weight, quotas in await connection.execute(_QUEUE_NODES)
    ]
    past_use = {
        project: decayed(amount, now - as_of, half_life_micros)
        for project, amount, as_of in await connection.execute(_PAST_USE)
    }
    leases = (await connection.execute(_HELD)).all()
    # What anything costs in money is not asked here.
    pools, nodes = pools_and_nodes(workers, lambda _kind, _spot: 0)
    living = frozenset(node.name for node in nodes if now - max(node.heartbeat, clock.started) <= limits.node_lost_micros)
    capacity = {
        pool.name: _total(node.total for node in nodes if node.pool == pool.name and node.name in living) for pool in pools
    }
    nodes_of_tree = build(rows, Books(past_use_ms=past_use))
    tree = QuotaTree(nodes_of_tree, {*projects, *(row[0] for row in leases)}, capacity, buckets=limits.cost_buckets)
    held: dict[str, Amounts] = defaultdict(lambda: (0, 0, 0))
    for project, pool, shape_text, placement in leases:
        member = shape_of(shape_text).member
        for node, members, *_ in from_json(placement):
            held[node] = _sum(held[node], _times(member, members))
            tree.add(tree.leaf(project), pool or "", _times(member, members))
    return Cluster(
        now, {pool.name: pool for pool in pools}, nodes, living, dict(held), tree, {node.name: node for node in tree.nodes}
    )


def _times(member: Amounts, members: int) -> Amounts:
    accelerators, cpu_millis, memory_mib = member
    return accelerators * members, cpu_millis * members, memory_mib * members


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _total(amounts: Iterable[Amounts]) -> Amounts:
    total: Amounts = (0, 0, 0)
    for each in amounts:
        total = _sum(total, each)
    return total


def free_of(cluster: Cluster, node: Node) -> Amounts:
    """What of a node is under no lease, whether or not it takes new work; of a resource that it does not count, 0."""
    held = cluster.held.get(node.name, (0, 0, 0))
    return tuple(max(0, node.total[resource] - held[resource]) for resource in Resource)  # pyright: ignore[reportReturnType]  one for each of the three resources
