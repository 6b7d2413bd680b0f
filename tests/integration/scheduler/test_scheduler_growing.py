"""Pools that may grow: what only nodes to come could hold waits for them, and nothing is placed on what is not there."""

from __future__ import annotations

import json

import pytest
from scheduler_world import World
from test_scheduler_rounds import rounds_of

from control_plane.settings import GrowingPool
from scheduler.growing import nodes_to_come
from scheduler.leader import Leadership
from scheduler.state import WorkerRow

POOL = GrowingPool(name="h200", accelerator_kind="h200", accelerators=8, nodes_max=3)
LEASE = "SELECT state, members FROM leases WHERE lease_id = :id"


async def asked(world: World, members: int, accelerators: int = 8) -> str:
    lease_id = await world.request(await world.job(state="RUNNING"), accelerators=accelerators, kind="h200")
    await world.execute("UPDATE leases SET members = :members WHERE lease_id = :id", id=lease_id, members=members)
    await world.execute("UPDATE leases SET shape = shape_of(leases)")
    return lease_id


@pytest.mark.parametrize(("members", "accelerators", "state"), [(3, 8, "REQUESTED"), (4, 8, "ENDED"), (1, 9, "ENDED")])
async def test_a_request_that_fits_the_grown_pool_waits(
    world: World, leader: Leadership, members: int, accelerators: int, state: str
) -> None:
    # Small ones are there, of another pool; without the setting they would be all that there ever is.
    for name in ("w1", "w2"):
        await world.worker(name, kind="h200", accelerators=2)
        await world.execute("UPDATE workers SET pool = 'small'")
    lease_id = await asked(world, members, accelerators)
    await rounds_of(world, leader, growing_pools=(POOL,)).round()
    assert (await world.row(LEASE, id=lease_id)).state == state


async def test_without_the_setting_it_ends(world: World, leader: Leadership) -> None:
    await world.worker(kind="h200", accelerators=2)
    lease_id = await asked(world, 3)
    await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=lease_id)).state == "ENDED"


async def test_nothing_is_placed_before_the_nodes_are_there(world: World, leader: Leadership) -> None:
    rounds = rounds_of(world, leader, growing_pools=(POOL,))
    lease_id = await asked(world, 1)
    await rounds.round()
    assert (await world.row(LEASE, id=lease_id)).state == "REQUESTED"
    await world.worker("w1", kind="h200", accelerators=8)
    await rounds.round()
    assert (await world.row(LEASE, id=lease_id)).state == "GRANTED"
    [held] = await world.rows("SELECT placement FROM leases WHERE lease_id = :id", id=lease_id)
    assert [node for node, *_ in json.loads(json.dumps(held.placement))] == ["w1"]


def test_a_pool_grows_by_what_is_not_there_yet() -> None:
    def worker(name: str, pool: str) -> WorkerRow:
        return WorkerRow(name, "i", "h200", 8, 0, 0, pool, False, "{}", False, nodes_to_come([POOL], [])[0].heartbeat)

    assert len(nodes_to_come([POOL], [])) == 3
    # One that names no pool is in that of its kind.
    assert len(nodes_to_come([POOL], [worker("w1", ""), worker("w2", "h200"), worker("w3", "other")])) == 1
    assert nodes_to_come([POOL], [worker(f"w{number}", "h200") for number in range(5)]) == []
