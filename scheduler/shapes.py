"""Shapes as the database writes them: one text each, in the column `shape` of jobs and of leases."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from scheduler.core.types import ANY_KIND, Shape, Topology, TopologyMode

_FALLBACK = Shape(ANY_KIND, (1, 0, 0))


@lru_cache(maxsize=65_536)
def shape_of(text: str) -> Shape:
    """The shape that a text stands for; equal texts give the same object.

    A job whose resources make no sense is none of the scheduler's: it counts as the smallest shape, is admitted, and fails at
    its dispatch with the reason, alone.
    """
    try:
        kind, accelerators, cpu_millis, memory_mib, members, spot, rest = text.split(" ", 6)
        labels, end = _DECODER.raw_decode(rest)
        topology = json.loads(rest[end:])
        return Shape(
            kind,
            (int(accelerators), int(cpu_millis), int(memory_mib)),
            max(1, int(members)),
            spot == "true",
            tuple(sorted((str(label), str(value)) for label, value in labels.items())),
            None if topology is None else Topology(str(topology["level"]), TopologyMode(topology["mode"])),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return _FALLBACK


def text_of(shape: Shape) -> str:
    """The text of a shape, as PostgreSQL writes it."""
    accelerators, cpu_millis, memory_mib = shape.member
    topology = None if shape.topology is None else {"mode": str(shape.topology.mode), "level": shape.topology.level}
    return (
        f"{shape.kind} {accelerators} {cpu_millis} {memory_mib} {shape.members} {'true' if shape.spot else 'false'} "
        f"{_jsonb(dict(shape.labels))} {_jsonb(topology)}"
    )


_DECODER = json.JSONDecoder()


def _jsonb(value: dict[str, str] | None) -> str:
    """As jsonb's output: keys by length, then by bytes."""
    if value is None:
        return "null"
    ordered: dict[str, Any] = dict(sorted(value.items(), key=lambda item: (len(item[0].encode()), item[0].encode())))
    return json.dumps(ordered, ensure_ascii=False)
