"""A world that begins as a live snapshot, for looking ahead. The snapshot stays as it is."""

from __future__ import annotations

from dataclasses import replace

from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Limits, Micros, Node
from scheduler.simulation.world import ALWAYS, World


def world_of(snapshot: Snapshot, now: Micros, limits: Limits) -> World:
    """Its nodes, leases and what waits, as copies; nodes that live now go on living, and their leases are renewed."""
    nodes = (_alive(node, snapshot, now, limits) for node in snapshot.nodes)
    world = World(snapshot.pools, nodes, limits, snapshot.requests, snapshot.jobs)
    for lease in snapshot.leases:
        world.hold(lease if lease.expires < now else replace(lease, expires=ALWAYS))
    world.admitted.update(snapshot.admitted)
    world.carried_over = snapshot.carried_over
    return world


def _alive(node: Node, snapshot: Snapshot, now: Micros, limits: Limits) -> Node:
    silent = now - max(node.heartbeat, snapshot.database_started)
    return node if silent > limits.node_lost_micros else replace(node, heartbeat=ALWAYS)
