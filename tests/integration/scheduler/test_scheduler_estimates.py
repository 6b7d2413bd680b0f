"""What jobs are foretold to cost is stored soon after their first grant, whoever led then and whatever else was granted."""

from __future__ import annotations

import pytest
from scheduler_world import World
from test_scheduler_rounds import rounds_of

from scheduler import estimates
from scheduler.estimates import EstimateRecorder
from scheduler.leader import Leadership

LOOK_AGAIN_SECONDS = 2.0
WITH_ESTIMATE = "SELECT job_id::text FROM job_estimates"


def recorder_of(world: World, leader: Leadership) -> EstimateRecorder:
    return EstimateRecorder(world.engine, leader, "EUR")


async def granted(world: World, leader: Leadership, count: int) -> list[str]:
    """Jobs that hold a lease, which reserved what it may cost."""
    await world.worker(accelerators=count)
    jobs = [await world.job(state="RUNNING") for _ in range(count)]
    for job_id in jobs:
        await world.request(job_id)
    await rounds_of(world, leader).round()
    assert len(await world.rows("SELECT 1 FROM reservations")) == count
    return jobs


async def estimated(world: World) -> set[str]:
    return {row.job_id for row in await world.rows(WITH_ESTIMATE)}


async def as_if_reserved(world: World, jobs: list[str], when: str) -> None:
    """Moves reservations in time, which nobody else can."""
    await world.execute("ALTER TABLE reservations DISABLE TRIGGER USER")
    await world.execute(
        "UPDATE reservations SET created_at = now() + CAST(CAST(:at AS text) AS interval)"
        " WHERE job_id = ANY(CAST(:ids AS uuid[]))",
        at=when,
        ids=jobs,
    )
    await world.execute("ALTER TABLE reservations ENABLE TRIGGER USER")


async def test_each_job_gets_its_estimate_once(world: World, leader: Leadership) -> None:
    jobs = await granted(world, leader, 2)
    recorder = recorder_of(world, leader)
    assert await recorder.record() == LOOK_AGAIN_SECONDS
    assert await estimated(world) == set(jobs)
    [row] = await world.rows("SELECT DISTINCT held_ms_low, held_ms_high FROM job_estimates")
    assert 0 < row.held_ms_low <= row.held_ms_high
    await world.execute("UPDATE job_estimates SET held_ms_low = 0")
    await recorder.record()
    assert (await world.row("SELECT max(held_ms_low) AS most FROM job_estimates")).most == 0


async def test_a_standby_records_nothing(world: World, leader: Leadership) -> None:
    await granted(world, leader, 1)
    assert await recorder_of(world, Leadership(world.engine, "standby", 60)).record() == LOOK_AGAIN_SECONDS
    assert await estimated(world) == set()


async def test_a_new_leader_makes_up_for_what_nobody_came_to(world: World, leader: Leadership) -> None:
    jobs = await granted(world, leader, 2)
    await as_if_reserved(world, jobs, "-3 days")
    recorder = recorder_of(world, leader)
    await recorder.record()
    assert await estimated(world) == set(jobs)
    # From then on it looks at what is new only.
    await world.execute("DELETE FROM job_estimates")
    await recorder.record()
    assert await estimated(world) == set()


async def test_specs_that_cannot_be_planned_hold_nobody_up(
    world: World, leader: Leadership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "_BATCH", 2)
    jobs = await granted(world, leader, 5)
    # The newest, so that they come first.
    broken = jobs[:3]
    await world.execute("UPDATE jobs SET spec = '{}' WHERE job_id = ANY(CAST(:ids AS uuid[]))", ids=broken)
    await as_if_reserved(world, broken, "1 minute")
    recorder = recorder_of(world, leader)
    pauses = [await recorder.record() for _ in range(3)]
    assert await estimated(world) == set(jobs[3:])
    assert pauses == [0.1, 0.1, LOOK_AGAIN_SECONDS]
