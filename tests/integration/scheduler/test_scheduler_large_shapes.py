"""The largest shape that may be asked for is a key like any other: what waits for it gets its reasons, and fails no round."""

from __future__ import annotations

import json
import random
import string

import pytest
from scheduler_world import World
from sqlalchemy.exc import DBAPIError
from test_scheduler_rounds import rounds_of

from control_plane.errors import RefusedError
from control_plane.scheduling.shapes import LABELS_CHARACTERS_MAX, shape_of_message
from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from scheduler.core.types import Shape
from scheduler.leader import Leadership
from scheduler.shapes import text_of


def labels(characters: int) -> dict[str, str]:
    """Labels of so many characters by chance, which does not compress; at most 32, each of at most 63 and 63."""
    chance = random.Random(1)  # noqa: S311 - not a secret
    lengths = [characters // 32 + (number < characters % 32) for number in range(32)]
    return {
        "".join(chance.choices(string.ascii_lowercase + string.digits, k=length // 2)): "".join(
            chance.choices(string.ascii_letters + string.digits, k=length - length // 2)
        )
        for length in lengths
    }


def largest(characters: int) -> Shape:
    topology = attempts_pb.Topology(level="l" * 63, mode=attempts_pb.TOPOLOGY_MODE_PREFERRED)
    asked = attempts_pb.Shape(
        accelerators=4_096,
        accelerator_kind="a" * 32,
        members=4_096,
        cpu_millis=1_000_000,
        memory_mib=1_000_000,
        labels=labels(characters),
        topology=topology,
    )
    return shape_of_message(asked, "shape")


async def asked_for(world: World, shape: Shape, project: str) -> str:
    job_id = await world.job(state="RUNNING", project=project)
    lease_id = await world.request(job_id, accelerators=4_096, kind=shape.kind)
    assert shape.topology is not None
    await world.execute(
        "UPDATE leases SET labels = CAST(:labels AS jsonb), members = :members, cpu_millis = 1000000, memory_mib = 1000000,"
        " topology = CAST(:topology AS jsonb) WHERE lease_id = :id",
        id=lease_id,
        labels=json.dumps(dict(shape.labels)),
        members=shape.members,
        topology=json.dumps({"level": shape.topology.level, "mode": shape.topology.mode.value}),
    )
    return job_id


async def test_a_round_writes_why_the_largest_shape_waits(world: World, leader: Leadership) -> None:
    # No node is known, so it waits.
    job_id = await asked_for(world, largest(LABELS_CHARACTERS_MAX), "p" * 63)
    await rounds_of(world, leader).round()
    assert await world.waiting_reason(job_id)


def test_one_character_more_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"shape.labels: holds 1,501 characters; expected at most 1,500") as refused:
        largest(LABELS_CHARACTERS_MAX + 1)
    assert [violation.path for violation in refused.value.violations] == ["shape.labels"]


async def test_what_labels_could_hold_otherwise_is_no_key(world: World) -> None:
    """Why there is the limit: 32 labels of 63 and 63 characters are too long for the index."""
    shape = text_of(Shape("any", (1, 0, 0), labels=tuple(sorted(labels(32 * 126).items()))))
    with pytest.raises(DBAPIError, match="index row size"):
        await world.execute(
            "INSERT INTO waiting_reasons (kind, project, priority_class, shape, reasons)"
            " VALUES ('job', 'red', 2, :shape, '[]')",
            shape=shape,
        )
