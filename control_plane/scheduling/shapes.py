"""Shapes between the contract's messages, the core and the database's text."""

from __future__ import annotations

from collections.abc import Mapping

from control_plane.capacity.offers import ANY_KIND, CPU_MILLIS_MAX, MEMORY_MIB_MAX, labels_of, require_label, whole
from control_plane.errors import invalid_field
from control_plane.jobs.spec import AcceleratorKind
from control_plane.rpc.convert import validated_value
from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.scheduler.v1 import snapshot_pb2
from scheduler.core.types import PriorityClass, Resource, Shape, Topology, TopologyMode

ACCELERATORS_MAX = 4_096
MEMBERS_MAX = 4_096
LABELS_CHARACTERS_MAX = 1_500
"""Of a shape's labels, names and values together: shapes are keys, and PostgreSQL indexes no more than 2,704 bytes."""

_MODES = {
    int(attempts_pb.TOPOLOGY_MODE_REQUIRED): TopologyMode.REQUIRED,
    int(attempts_pb.TOPOLOGY_MODE_PREFERRED): TopologyMode.PREFERRED,
    int(attempts_pb.TOPOLOGY_MODE_BALANCED): TopologyMode.BALANCED,
}
_MODE_NUMBERS = {mode: attempts_pb.TopologyMode.ValueType(number) for number, mode in _MODES.items()}


def shape_of_message(message: attempts_pb.Shape, path: str) -> Shape:
    """The shape that a message asks for.

    Raises:
        RefusedError: it breaks its limits.
    """
    kind = validated_value(AcceleratorKind, message.accelerator_kind or ANY_KIND, f"{path}.accelerator_kind")
    member = (
        whole(message.accelerators, ACCELERATORS_MAX, f"{path}.accelerators", 1),
        whole(message.cpu_millis, CPU_MILLIS_MAX, f"{path}.cpu_millis"),
        whole(message.memory_mib, MEMORY_MIB_MAX, f"{path}.memory_mib"),
    )
    members = whole(message.members, MEMBERS_MAX, f"{path}.members") or 1
    labels = tuple(_labels(message.labels, f"{path}.labels").items())
    topology = _topology(message.topology, f"{path}.topology") if message.HasField("topology") else None
    return Shape(kind, member, members, message.spot, labels, topology)


def _labels(labels: Mapping[str, str], path: str) -> dict[str, str]:
    checked = labels_of(labels, path)
    characters = sum(len(name) + len(value) for name, value in checked.items())
    if characters > LABELS_CHARACTERS_MAX:
        raise invalid_field(
            path, f"holds {characters:,} characters; expected at most {LABELS_CHARACTERS_MAX:,}, names and values together"
        )
    return checked


def _topology(message: attempts_pb.Topology, path: str) -> Topology:
    mode = _MODES.get(message.mode)
    if mode is None:
        raise invalid_field(f"{path}.mode", f"is {message.mode}; expected a TopologyMode")
    return Topology(require_label(message.level, f"{path}.level"), mode)


def shape_message(shape: Shape) -> attempts_pb.Shape:
    """A shape as a message."""
    topology = shape.topology
    return attempts_pb.Shape(
        accelerators=shape.member[Resource.ACCELERATORS],
        accelerator_kind=shape.kind,
        members=shape.members,
        cpu_millis=shape.member[Resource.CPU_MILLIS],
        memory_mib=shape.member[Resource.MEMORY_MIB],
        spot=shape.spot,
        labels=dict(shape.labels),
        topology=None if topology is None else attempts_pb.Topology(level=topology.level, mode=_MODE_NUMBERS[topology.mode]),
    )


def class_number(priority_class: int) -> snapshot_pb2.PriorityClass.ValueType:
    """A class of priority as the wire has it."""
    return snapshot_pb2.PriorityClass.Value(f"PRIORITY_CLASS_{PriorityClass(priority_class).name}")
