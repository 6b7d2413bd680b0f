"""GetSnapshot: nodes and leases by the page, pools and the quota tree on the first one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.capacity import repository
from control_plane.capacity.offers import worker_message
from control_plane.db.tables import workers
from control_plane.rpc.convert import timestamp
from control_plane.scheduling.cluster import Cluster
from control_plane.scheduling.queues import pool_messages, queue_state
from control_plane.scheduling.shapes import shape_message
from headway.scheduler.v1 import scheduler_service_pb2 as pb
from headway.scheduler.v1 import snapshot_pb2
from scheduler.shapes import shape_of

_WAITING = text(
    """
    SELECT project, sum(jobs)::bigint AS jobs, sum(leases)::bigint AS leases FROM (
        SELECT project, count(*) AS jobs, 0 AS leases FROM jobs WHERE state = 'QUEUED' GROUP BY 1
        UNION ALL
        SELECT leases.project, 0, count(*) FROM leases JOIN jobs USING (job_id)
        WHERE leases.state = 'REQUESTED' AND jobs.state IN ('STARTING','RUNNING') GROUP BY 1
    ) AS counted GROUP BY 1
    """
)
_LEASES = text(
    """
    SELECT lease_id::text, job_id::text, project, shape, coalesce(pool, granted_kind) AS pool, priority, granted_at, expires_at,
        coalesce(preempted_for::text, '') AS preempted_for,
        coalesce(placement, jsonb_build_array(jsonb_build_array(worker, members))) AS placement
    FROM leases WHERE state = 'GRANTED' AND (:after = '' OR lease_id > CAST(nullif(:after, '') AS uuid))
    ORDER BY lease_id LIMIT :most
    """
)

_NODES, _GRANTED = "nodes", "leases"
START = (_NODES, "")
"""Where the first page begins."""


async def waiting_by_project(connection: AsyncConnection) -> dict[str, tuple[int, int]]:
    """Jobs and leases that wait, by project."""
    return {row.project: (row.jobs, row.leases) for row in await connection.execute(_WAITING)}


def first_page(cluster: Cluster, waiting: Mapping[str, tuple[int, int]]) -> pb.GetSnapshotResponse:
    """What only the first page holds."""
    return pb.GetSnapshotResponse(
        pools=pool_messages(cluster),
        queues=[queue_state(cluster, node, waiting) for node in range(len(cluster.tree.nodes))],
    )


async def fill_page(
    connection: AsyncConnection,
    response: pb.GetSnapshotResponse,
    start: tuple[str, str],
    size: int,
    worker_lost_seconds: float,
) -> tuple[str, str] | None:
    """Adds nodes, and leases where there are no more nodes; returns where the next page begins, None if this is the last.

    Args:
        connection: one whose transaction sees one moment.
        response: what it is added to.
        start: what kind of thing comes first, and after which one.
        size: most of both.
        worker_lost_seconds: how long a worker outlives its heartbeat.
    """
    kind, after = start
    if kind == _NODES:
        query = repository.workers_query(worker_lost_seconds).where(workers.c.name > after).order_by(workers.c.name)
        rows = (await connection.execute(query.limit(size + 1))).mappings().all()
        response.nodes.extend(map(_node, rows[:size]))
        if len(rows) > size:
            return _NODES, rows[size - 1]["name"]
        after = ""
    left = size - len(response.nodes)
    leases = (await connection.execute(_LEASES, {"after": after, "most": left + 1})).mappings().all()
    response.leases.extend(map(_lease, leases[:left]))
    if len(leases) <= left:
        return None
    return _GRANTED, leases[left - 1]["lease_id"] if left else after


def _node(row: Mapping[Any, Any]) -> snapshot_pb2.NodeState:
    return snapshot_pb2.NodeState(
        worker=worker_message(row),
        accelerators_free=max(0, row["accelerators"] - row["accelerators_leased"]),
        cpu_millis_free=max(0, row["cpu_millis"] - row["cpu_millis_held"]),
        memory_mib_free=max(0, row["memory_mib"] - row["memory_mib_held"]),
    )


def _lease(row: Mapping[Any, Any]) -> snapshot_pb2.LeaseState:
    return snapshot_pb2.LeaseState(
        lease_id=row["lease_id"],
        job_id=row["job_id"],
        project=row["project"],
        shape=shape_message(shape_of(row["shape"])),
        pool=row["pool"],
        placement=[snapshot_pb2.MembersOnNode(node=node, members=members) for node, members, *_ in row["placement"]],
        priority=row["priority"],
        grant_time=timestamp(row["granted_at"]),
        expire_time=timestamp(row["expires_at"]),
        preempted_for=row["preempted_for"],
    )
