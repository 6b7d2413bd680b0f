"""What workers offer, between the contract's messages and what is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from control_plane.errors import invalid_field
from control_plane.jobs.spec import AcceleratorKind, ProjectName
from control_plane.rpc.convert import identifier, timestamp, validated_value
from headway.capacity.v1 import capacity_service_pb2 as pb

ACCELERATORS_MAX = 1_024
CPU_MILLIS_MAX = 2**20 * 1_000
MEMORY_MIB_MAX = 2**30
LABELS_MAX = 32
ANY_KIND = "any"

# ASCII only, and all of it (`fullmatch`).
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9./-]{0,61}[a-z0-9])?")
_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def offer_of(worker: pb.Worker, path: str) -> dict[str, Any]:
    """The columns of `workers` that a worker says itself, by name.

    Args:
        worker: as it was sent.
        path: where it stands in the request.

    Raises:
        RefusedError: it breaks its limits.
    """
    kind = validated_value(AcceleratorKind, worker.accelerator_kind, f"{path}.accelerator_kind")
    if kind == ANY_KIND:
        raise invalid_field(f"{path}.accelerator_kind", "is 'any', which only a request may say; expected the kind offered")
    return {
        # A worker's name obeys the rules of a project's.
        "name": validated_value(ProjectName, worker.name, f"{path}.name"),
        "incarnation": identifier(worker.incarnation, f"{path}.incarnation"),
        "accelerator_kind": kind,
        "accelerators": whole(worker.accelerators, ACCELERATORS_MAX, f"{path}.accelerators"),
        "pool": validated_value(AcceleratorKind, worker.pool, f"{path}.pool") if worker.pool else "",
        "spot": worker.spot,
        "cpu_millis": whole(worker.cpu_millis, CPU_MILLIS_MAX, f"{path}.cpu_millis"),
        "memory_mib": whole(worker.memory_mib, MEMORY_MIB_MAX, f"{path}.memory_mib"),
        "labels": labels_of(worker.labels, f"{path}.labels"),
    }


def whole(value: int, most: int, path: str, least: int = 0) -> int:
    """A number held against its limits.

    Raises:
        RefusedError: it breaks them.
    """
    if not least <= value <= most:
        raise invalid_field(path, f"is {value}; expected {least} to {most:,}")
    return value


def labels_of(labels: Mapping[str, str], path: str) -> dict[str, str]:
    """Labels held against their limits, in order.

    Raises:
        RefusedError: they break them.
    """
    if len(labels) > LABELS_MAX:
        raise invalid_field(path, f"holds {len(labels)}; expected at most {LABELS_MAX}")
    for name, value in labels.items():
        require_label(name, f"{path} key")
        if not _VALUE.fullmatch(value):
            raise invalid_field(f"{path}[{name}]", f"is {value[:80]!r}; expected 1 to 63 characters of [A-Za-z0-9._-]")
    return dict(sorted(labels.items()))


def require_label(name: str, path: str) -> str:
    """The name of a label.

    Raises:
        RefusedError: it is none.
    """
    if not _LABEL.fullmatch(name):
        raise invalid_field(path, f"is {name[:80]!r}; expected 1 to 63 characters of [a-z0-9./-]")
    return name


def worker_message(row: Mapping[Any, Any]) -> pb.Worker:
    """A row of `repository.workers_query` as a message."""
    return pb.Worker(
        name=row["name"],
        incarnation=row["incarnation"],
        accelerator_kind=row["accelerator_kind"],
        accelerators=row["accelerators"],
        accelerators_leased=int(row["accelerators_leased"]),
        alive=row["alive"],
        heartbeat_time=timestamp(row["heartbeat_at"]),
        pool=row["pool"],
        spot=row["spot"],
        cpu_millis=row["cpu_millis"],
        memory_mib=row["memory_mib"],
        labels=row["labels"],
        cordoned=row["cordoned"],
        draining=row["draining"],
        drain_reason=row["drain_reason"],
        leases_held=row["leases_held"],
    )
