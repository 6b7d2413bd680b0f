"""One leader at a time, and a stale one writes nothing."""

from __future__ import annotations

import asyncio

import pytest
from scheduler_world import World
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from control_plane.settings import SchedulerSettings
from scheduler.leader import DeposedError, Leadership
from scheduler.loop import RoundLoop
from tests.waiting import until

END_TERM = "UPDATE leaders SET expires_at = now() - interval '1 second'"


async def test_one_of_many_leads(world: World) -> None:
    candidates = [Leadership(world.engine, f"candidate {number}", 60) for number in range(6)]
    elected = await asyncio.gather(*(candidate.campaign() for candidate in candidates))
    assert sum(elected) == 1
    leader = candidates[elected.index(True)]
    assert leader.epoch == 1
    assert await leader.campaign(), "a renewal keeps the term"
    assert leader.epoch == 1


async def test_the_epoch_grows_with_every_change_of_leader(world: World) -> None:
    first, second = Leadership(world.engine, "first", 60), Leadership(world.engine, "second", 60)
    assert await first.campaign()
    assert not await second.campaign()
    await first.resign()
    assert first.epoch is None
    assert await second.campaign()
    assert second.epoch == 2
    assert not await first.campaign()


async def test_a_leader_stops_trusting_itself_before_the_database_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    leader = Leadership(world.engine, "leader", 60)
    assert await leader.campaign()
    clock[0] += 47.9
    assert leader.epoch == 1
    clock[0] += 0.2
    assert leader.epoch is None
    still = await world.row("SELECT expires_at > clock_timestamp() + interval '10 seconds' AS held FROM leaders")
    assert still.held


async def test_a_stale_leader_writes_nothing(world: World) -> None:
    stale, successor = Leadership(world.engine, "stale", 60), Leadership(world.engine, "successor", 60)
    assert await stale.campaign()
    await world.execute(END_TERM)
    assert await successor.campaign()
    job_id = await world.job()

    assert stale.epoch == 1, "it was never told, and trusts itself"
    settings = SchedulerSettings()
    await RoundLoop(world.engine, stale, settings, asyncio.Event()).round()
    assert await world.state(job_id) == "QUEUED"
    assert stale.epoch is None, "now it knows"

    await RoundLoop(world.engine, successor, settings, asyncio.Event()).round()
    assert await world.state(job_id) == "STARTING"


async def test_an_expired_term_writes_nothing_even_without_a_successor(world: World) -> None:
    leader = Leadership(world.engine, "leader", 60)
    assert await leader.campaign()
    await world.execute(END_TERM)
    async with world.engine.begin() as connection:
        with pytest.raises(DeposedError, match="epoch 1 is over"):
            await leader.fence(connection)


async def test_a_take_over_waits_for_the_transaction_that_holds_the_fence(world: World, leader: Leadership) -> None:
    successor = Leadership(world.engine, "successor", 60)
    job_id = await world.job()
    async with world.engine.begin() as connection:
        await leader.fence(connection)
        await world.rows("SELECT 1")
        # The term ends while the leader writes. It holds the row, so only it can say so here.
        await connection.execute(text(END_TERM))
        taking_over = asyncio.create_task(successor.campaign())
        await until(lambda: _somebody_waits(world), "the successor waits for the row")
        await connection.execute(text("UPDATE jobs SET name = 'written by epoch 1'"))
    assert await taking_over
    assert successor.epoch == 2
    assert (await world.row("SELECT name FROM jobs WHERE job_id = :id", id=job_id)).name == "written by epoch 1"


async def test_a_leader_stalled_in_a_transaction_is_cut_off(world: World) -> None:
    """As one that is stopped between two statements: its lock must not outlive its term for long."""
    stalled, successor = Leadership(world.engine, "stalled", 0.5), Leadership(world.engine, "successor", 60)
    assert await stalled.campaign()
    async with world.engine.connect() as connection:
        await connection.begin()
        await stalled.fence(connection)
        await until(successor.campaign, "the successor takes over")
        with pytest.raises(DBAPIError):
            await connection.execute(text("UPDATE jobs SET name = 'too late'"))
        await connection.invalidate()


async def _somebody_waits(world: World) -> bool:
    return bool(await world.rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
