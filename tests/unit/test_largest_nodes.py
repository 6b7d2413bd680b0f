"""What could ever start: by the largest node of a kind, read anew before anything is refused."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.capacity.largest import Demand, LargestNodesReader
from control_plane.settings import GrowingPool

MIXED = [("cpu", 4, 2), ("h100", 8, 3), ("b200", None, 5)]
"""Kind, accelerators of the largest node that is not spot, and how many such nodes."""


class Database:
    """Answers the one query, and counts how often."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.reads = 0

    async def fetch(self, _query: str) -> list[Any]:
        self.reads += 1
        return self.rows


@pytest.mark.parametrize(
    ("rows", "demand", "held"),
    [
        ([], Demand("h100", 4_096), True),
        (MIXED, Demand("h100", 8), True),
        (MIXED, Demand("h100", 9), False),
        (MIXED, Demand("any", 8), True),
        (MIXED, Demand("any", 9), False),
        (MIXED, Demand("tpu", 1), False),
        (MIXED, Demand("b200", 1), False),
        ([("b200", None, 5)], Demand("any", 1), False),
    ],
)
async def test_a_node_of_the_kind_holds_it_whole(rows: list[Any], demand: Demand, held: bool) -> None:
    assert (await LargestNodesReader().read(Database(rows), [demand])).holds(demand) is held


@pytest.mark.parametrize(
    ("demand", "field", "says", "maximum"),
    [
        (Demand("h100", 64), "accelerators", "is 64, all on one node; the largest of the 3 nodes of kind h100 has 8", "8"),
        (Demand("any", 64), "accelerators", "is 64, all on one node; the largest node has 8", "8"),
        (Demand("tpu", 1), "accelerator_kind", "is 'tpu', of which no node is registered; expected cpu, h100, any", "0"),
        (Demand("b200", 1), "accelerator_kind", "is 'b200', of which every node is spot", "0"),
    ],
)
async def test_a_refusal_has_the_field_and_the_number(demand: Demand, field: str, says: str, maximum: str) -> None:
    refusal = (await LargestNodesReader().read(Database(MIXED), [demand])).refusal(demand, "spec.fine_tune.resources")
    assert refusal.violations[0].path == f"spec.fine_tune.resources.{field}"
    assert refusal.violations[0].description.startswith(says)
    assert dict(refusal.metadata) == {"requested": str(demand.accelerators), "maximum": maximum}


async def test_it_is_read_once_a_second_and_before_every_refusal() -> None:
    seconds = 100.0
    database = Database([("h100", 8, 1)])
    reader = LargestNodesReader(clock=lambda: seconds)
    for _ in range(3):
        await reader.read(database, [Demand("h100", 8)])
    assert database.reads == 1
    database.rows = [("h100", 8, 1), ("h200", 16, 1)]
    assert (await reader.read(database, [Demand("h100", 1), Demand("h200", 16)])).holds(Demand("h200", 16))
    assert database.reads == 2
    seconds += 1.5
    await reader.read(database, [Demand("h100", 8)])
    assert database.reads == 3


GROWING = [
    GrowingPool(name="big", accelerator_kind="h200", accelerators=16, nodes_max=4),
    GrowingPool(name="more", accelerator_kind="h100", accelerators=4, nodes_max=2),
    GrowingPool(name="b200-spot", accelerator_kind="b200", accelerators=8, nodes_max=2, spot=True),
]


@pytest.mark.parametrize(
    ("demand", "held"),
    [
        (Demand("h200", 16), True),
        (Demand("h200", 17), False),
        (Demand("any", 16), True),
        (Demand("h100", 8), True),
        (Demand("b200", 1), False),
        (Demand("tpu", 1), False),
    ],
)
async def test_a_node_that_may_come_holds_it_too(demand: Demand, held: bool) -> None:
    reader = LargestNodesReader(GROWING)
    assert (await reader.read(Database(MIXED), [demand])).holds(demand) is held


async def test_pools_that_grow_refuse_nothing_while_no_node_is_known() -> None:
    assert (await LargestNodesReader(GROWING).read(Database([]), [Demand("tpu", 64)])).holds(Demand("tpu", 64))
