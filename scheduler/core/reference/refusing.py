"""What can never be granted, with the numbers that say so (§6)."""

from __future__ import annotations

from scheduler.core.reasons import ExceedsMaximum
from scheduler.core.reference.fitting import first_resource, place, placeable
from scheduler.core.reference.state import State, amounts_of, pools_for
from scheduler.core.reference.tree import Used, cells_of
from scheduler.core.types import Pool, Resource, Shape

IDLE: Used = Used()


def exceeds(state: State, queue: str, shape: Shape) -> ExceedsMaximum | None:
    """Why the queue can never be granted a lease of the shape. None: it can, or there is nothing yet of what it asks for."""
    pools = pools_for(shape, state.snapshot.pools)
    domains = state.domains(shape)
    empty = {pool: {node.name: node.total for node in state.known(shape, pool)} for pool in pools}
    holding = [pool for pool in pools if place(shape, empty[pool], domains) is not None]
    if not holding:
        return _cluster_exceeded(state, shape, max((placeable(shape, empty[pool], domains) for pool in pools), default=0))
    exceeded = [quota_exceeded(state, queue, shape, pool) for pool in holding]
    limits = [(reason.maximum, pool.name, reason) for pool, reason in zip(holding, exceeded, strict=True) if reason is not None]
    if len(limits) < len(holding):
        return None
    reason = min(limits, key=lambda limit: (-limit[0], limit[1]))[2]
    return reason if reason.maximum > 0 else None


def _cluster_exceeded(state: State, shape: Shape, members: int) -> ExceedsMaximum | None:
    if members > 0:
        resource = first_resource(shape)
        return _reason(shape, resource, members * shape.member[resource], "cluster")
    nodes = [node for pool in pools_for(shape, state.snapshot.pools) for node in state.known(shape, pool)]
    for resource in Resource:
        if shape.member[resource] > 0:
            enough = [node for node in nodes if node.total[resource] >= shape.member[resource]]
            if not enough:
                most = max((node.total[resource] for node in nodes), default=0)
                return _reason(shape, resource, most, "cluster") if most > 0 else None
            nodes = enough
    return None


def quota_exceeded(state: State, queue: str, shape: Shape, pool: Pool) -> ExceedsMaximum | None:
    """Why quota never allows the shape in a pool. None: it does when nothing else runs."""
    tree = state.whole_tree
    cell = tree.short(queue, cells_of(pool.name, amounts_of(shape)), IDLE)
    if cell is None:
        return None
    return _reason(shape, cell[1], max(0, tree.available(queue, cell, IDLE)), tree.limiting(queue, cell, IDLE))


def _reason(shape: Shape, resource: Resource, maximum: int, limited_by: str) -> ExceedsMaximum:
    return ExceedsMaximum(amounts_of(shape)[resource], maximum, shape.kind, resource_name(resource), limited_by)


def resource_name(resource: Resource) -> str:
    """As reasons spell it."""
    return resource.name.lower()
