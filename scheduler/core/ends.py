"""Which leases are over, whatever their holders think."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scheduler.core.types import EndCause, EndLease, Lease, Limits, Micros, Node, Placement


def living(nodes: Iterable[Node], database_started: Micros, now: Micros, limits: Limits) -> dict[str, Node]:
    """The nodes that were heard of lately, by name."""
    # While the database was down no heartbeat could be stored: that silence is not the node's.
    oldest = now - limits.node_lost_micros
    if database_started >= oldest:
        return {node.name: node for node in nodes}
    return {node.name: node for node in nodes if node.heartbeat >= oldest}


def ends(leases: Iterable[Lease], alive: Mapping[str, Node], now: Micros) -> tuple[EndLease, ...]:
    """The leases to end, in order of id. Of several causes a lost node is named first, then a restarted one."""
    incarnations = {node.name: node.incarnation for node in alive.values()}
    # Many leases are on the same nodes.
    lost: dict[tuple[Placement, tuple[str, ...]], EndCause | None] = {}
    found: list[EndLease] = []
    for lease in leases:
        where = lease.placement, lease.incarnations
        if where not in lost:
            lost[where] = _lost(lease, incarnations)
        cause = lost[where] or (EndCause.EXPIRED if lease.expires < now else None)
        if cause is not None:
            found.append(EndLease(lease.lease_id, lease.job_id, cause))
    return tuple(sorted(found, key=lambda end: end.lease_id))


def _lost(lease: Lease, incarnations: Mapping[str, str]) -> EndCause | None:
    restarted = False
    for (node, _), granted_on in zip(lease.placement, lease.incarnations, strict=True):
        incarnation = incarnations.get(node)
        if incarnation is None:
            return EndCause.NODE_LOST
        restarted = restarted or incarnation != granted_on
    return EndCause.NODE_RESTARTED if restarted else None
