"""Jobs whose deadline is near rise by one class, once, and everybody sees it."""

from __future__ import annotations

from scheduler_world import World
from test_scheduler_rounds import rounds_of

from scheduler.leader import Leadership

PRIORITY = "SELECT priority, raised_at FROM jobs WHERE job_id = :id"


async def due_in(world: World, job_id: str, hours: float, ceiling: int = 1_000) -> None:
    """Gives a job a latest start, and its project a ceiling."""
    await world.execute(
        "INSERT INTO projects (project, priority_max, creator) VALUES ('red', :ceiling, 'user:admin') ON CONFLICT DO NOTHING",
        ceiling=ceiling,
    )
    await world.execute(
        "UPDATE jobs SET start_by = now() + make_interval(secs => :seconds) WHERE job_id = :id",
        id=job_id,
        seconds=hours * 3_600,
    )


async def test_a_job_rises_when_its_latest_start_is_near_and_goes_first(world: World, leader: Leadership) -> None:
    near = await world.job(priority=500)
    later = await world.job(priority=510)
    await due_in(world, near, 0.9)
    await due_in(world, later, 1.1)
    rounds = rounds_of(world, leader, prepare_ahead_per_project=1)
    # One that raises is followed by another at once.
    assert await rounds.round() == 0.0
    assert (await world.row(PRIORITY, id=near)).priority == 700
    assert (await world.row(PRIORITY, id=later)) == (510, None)
    event = await world.row("SELECT type, detail FROM job_events WHERE job_id = :id", id=near)
    assert event.type == "UPDATED"
    assert event.detail == {"priority": 700, "by": "system:scheduler", "reason": "its deadline is near"}
    await rounds.round()
    assert [await world.state(job) for job in (near, later)] == ["STARTING", "QUEUED"]


async def test_what_it_asked_for_rises_with_it(world: World, leader: Leadership) -> None:
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id, accelerators=4)
    await due_in(world, job_id, -5)
    rounds = rounds_of(world, leader)
    await rounds.round()
    assert (await world.row("SELECT priority FROM leases WHERE lease_id = :id", id=lease_id)).priority == 700


async def test_who_lowers_it_afterwards_has_the_last_word(world: World, leader: Leadership) -> None:
    job_id = await world.job(priority=50)
    await due_in(world, job_id, 0)
    rounds = rounds_of(world, leader)
    await rounds.round()
    assert (await world.row(PRIORITY, id=job_id)).priority == 100
    await world.execute("UPDATE jobs SET priority = 10 WHERE job_id = :id", id=job_id)
    await rounds.round()
    assert (await world.row(PRIORITY, id=job_id)).priority == 10


async def test_the_ceiling_holds_and_what_ended_is_left_alone(world: World, leader: Leadership) -> None:
    bound = await world.job(priority=500)
    ended = await world.job(state="RUNNING")
    await due_in(world, bound, 0, ceiling=600)
    await due_in(world, ended, 0)
    await world.execute("UPDATE jobs SET state = 'FAILED', ended_at = now() WHERE job_id = :id", id=ended)
    await rounds_of(world, leader).round()
    assert (await world.row(PRIORITY, id=bound)).priority == 600
    assert (await world.row(PRIORITY, id=ended)) == (500, None)
