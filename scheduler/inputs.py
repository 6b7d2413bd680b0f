"""All that a round was decided on, as bytes: from them alone it can be decided again, anywhere, and must come out the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import zstandard
from pydantic import TypeAdapter, ValidationError

from scheduler.core.backlog import Backlog
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Brakes,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Node,
    Pool,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Resource,
)


class InputsError(Exception):
    """Bytes are not the inputs of a round, or of another version of Headway."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A snapshot, time and limits, in what JSON has."""

    now: Micros
    limits: Limits
    requests: tuple[Request, ...]
    jobs: tuple[QueuedJob, ...]
    leases: tuple[Lease, ...]
    pools: tuple[Pool, ...]
    nodes: tuple[Node, ...]
    tree: tuple[QueueNode, ...]
    """Without their quotas: JSON has no keys of two parts."""
    quotas: tuple[tuple[str, str, Resource, Quota], ...]
    """Node of the tree, pool, resource and quota."""
    admitted: dict[str, int]
    brakes: Brakes
    database_started: Micros
    carried_over: tuple[GroupKey, ...]


_JSON = TypeAdapter(_Inputs)


def encode(snapshot: Snapshot, now: Micros, limits: Limits) -> bytes:
    """What `plan` is given. It costs about as much as planning a full round, so not every round's is kept."""
    inputs = _Inputs(
        now=now,
        limits=limits,
        requests=tuple(snapshot.requests),
        jobs=tuple(snapshot.jobs),
        leases=snapshot.leases,
        pools=snapshot.pools,
        nodes=snapshot.nodes,
        tree=tuple(replace(node, quotas={}) for node in snapshot.tree),
        quotas=tuple(
            (node.name, pool, resource, quota)
            for node in snapshot.tree
            for (pool, resource), quota in sorted(node.quotas.items())
        ),
        admitted=dict(snapshot.admitted),
        brakes=snapshot.brakes,
        database_started=snapshot.database_started,
        carried_over=snapshot.carried_over,
    )
    return zstandard.compress(_JSON.dump_json(inputs))


def decode(data: bytes) -> tuple[Snapshot, Micros, Limits]:
    """What `plan` was given.

    Raises:
        InputsError: they are not what `encode` made.
    """
    try:
        inputs = _JSON.validate_json(zstandard.decompress(data))
    except (zstandard.ZstdError, ValidationError) as error:
        raise InputsError(
            f"the inputs of the round cannot be read; expected those of this version of Headway: {error}"
        ) from error
    quotas: dict[str, dict[tuple[str, Resource], Quota]] = {}
    for name, pool, resource, quota in inputs.quotas:
        quotas.setdefault(name, {})[pool, resource] = quota
    aging_micros = inputs.limits.aging_micros
    snapshot = Snapshot(
        requests=Backlog(inputs.requests, aging_micros=aging_micros),
        jobs=Backlog(inputs.jobs, aging_micros=aging_micros),
        leases=inputs.leases,
        pools=inputs.pools,
        nodes=inputs.nodes,
        tree=tuple(replace(node, quotas=quotas.get(node.name, {})) for node in inputs.tree),
        admitted=inputs.admitted,
        brakes=inputs.brakes,
        database_started=inputs.database_started,
        carried_over=inputs.carried_over,
    )
    return snapshot, inputs.now, inputs.limits
