"""A node that is drained becomes empty, whatever was on it or came later."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler_world import World

from control_plane.attempts.leasing import LeaseRequest, request_leases
from control_plane.db.engine import in_transaction
from control_plane.db.leases import end_lease
from control_plane.jobs.states import JobPhase
from control_plane.settings import SchedulerSettings
from scheduler.core.types import Shape
from scheduler.drain import Drain
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop

LEASE = "SELECT * FROM leases WHERE lease_id = :id"
ORDERS = "SELECT payload FROM outbox WHERE kind = 'signal_preempt'"
PERIOD_SECONDS = 7.0


def rounds_of(world: World, leader: Leadership, **settings: Any) -> RoundLoop:
    return RoundLoop(world.engine, leader, SchedulerSettings(preempt_after_seconds=0.000_001, **settings), asyncio.Event())


def drain_of(world: World, leader: Leadership) -> Drain:
    return Drain(world.engine, leader, PERIOD_SECONDS)


async def granted(world: World, rounds: RoundLoop, priority: int = 500) -> tuple[str, str]:
    """A running job and its lease."""
    job_id = await world.job(state="RUNNING", priority=priority)
    lease_id = await world.request(job_id, priority=priority)
    await rounds.round()
    return job_id, lease_id


async def out_of_service(world: World, name: str) -> None:
    """Says that the node drains, and asks nobody."""
    await world.execute("UPDATE workers SET cordoned = true, draining = true WHERE name = :name", name=name)


async def test_whoever_was_not_asked_is_asked_once(world: World, leader: Leadership) -> None:
    await world.worker()
    rounds = rounds_of(world, leader)
    job_id, lease_id = await granted(world, rounds)
    await world.worker("w2")
    await granted(world, rounds)
    drain = drain_of(world, leader)
    assert await drain.ask() == PERIOD_SECONDS
    assert await world.rows(ORDERS) == [], "no node drains"
    await out_of_service(world, "w1")
    for _ in range(3):
        assert await drain.ask() == PERIOD_SECONDS
    assert [row.payload for row in await world.rows(ORDERS)] == [{"lease_id": lease_id, "reason": "node w1 is being drained"}]
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "PREEMPTION_REQUESTED 1"]


async def test_who_is_asked_later_hears_the_reason_of_the_drain(world: World, leader: Leadership) -> None:
    await world.worker()
    _, lease_id = await granted(world, rounds_of(world, leader))
    await out_of_service(world, "w1")
    await world.execute("UPDATE workers SET drain_reason = 'a fan is loud'")
    await drain_of(world, leader).ask()
    assert [row.payload for row in await world.rows(ORDERS)] == [{"lease_id": lease_id, "reason": "a fan is loud"}]


async def test_what_does_not_leave_in_time_loses_its_lease(world: World, leader: Leadership) -> None:
    await world.worker()
    rounds = rounds_of(world, leader, yield_seconds=60)
    job_id, lease_id = await granted(world, rounds)
    await out_of_service(world, "w1")
    await drain_of(world, leader).ask()
    await rounds.round()
    assert (await world.row(LEASE, id=lease_id)).state == "GRANTED"
    # The leader hears of it, although all that changed is since when it was asked.
    await world.execute("UPDATE leases SET preempted_at = preempted_at - interval '61 seconds'")
    assert await rounds.round() == 0, "another round follows at once"
    lease = await world.row(LEASE, id=lease_id)
    assert (lease.state, lease.outcome) == ("ENDED", "lost")
    assert (await world.events(job_id))[-2:] == ["LEASE_ENDED 1", "ATTEMPT_LOST 1"]


async def test_a_job_that_is_being_stopped_is_not_asked_and_loses_its_lease_all_the_same(
    world: World, leader: Leadership
) -> None:
    await world.worker()
    rounds = rounds_of(world, leader, yield_seconds=60)
    job_id, lease_id = await granted(world, rounds)
    await world.execute("UPDATE jobs SET state = 'CANCELLING' WHERE job_id = :id", id=job_id)
    await out_of_service(world, "w1")
    await drain_of(world, leader).ask()
    assert await world.rows(ORDERS) == []
    await world.execute("UPDATE leases SET preempted_at = preempted_at - interval '61 seconds'")
    await rounds.round()
    assert (await world.row(LEASE, id=lease_id)).state == "ENDED"


async def test_one_who_was_asked_for_another_reason_is_not_told_twice(world: World, leader: Leadership) -> None:
    await world.worker()
    job_id, lease_id = await granted(world, rounds_of(world, leader))
    await world.execute(
        "INSERT INTO outbox (kind, job_id, dedupe_key, payload, trace_parent, state)"
        " VALUES ('signal_preempt', :job_id, 'preempt/' || :lease_id, '{}', '', 'done')",
        job_id=job_id,
        lease_id=lease_id,
    )
    await out_of_service(world, "w1")
    await drain_of(world, leader).ask()
    assert len(await world.rows(ORDERS)) == 1
    assert await world.events(job_id) == ["LEASE_GRANTED 1"]
    assert (await world.row(LEASE, id=lease_id)).preempted_at is not None, "its time began all the same"


async def test_one_who_leaves_waits_with_the_age_it_had(world: World, leader: Leadership) -> None:
    await world.worker()
    job_id, lease_id = await granted(world, rounds_of(world, leader))
    await world.execute("UPDATE leases SET waiting_since = now() - interval '1 hour'")
    since = (await world.row(LEASE, id=lease_id)).waiting_since
    await out_of_service(world, "w1")
    await drain_of(world, leader).ask()
    await in_transaction(world.engine, lambda connection: end_lease(connection, lease_id, "preempted"))
    again = "00000000-0000-4000-8000-000000000001"
    await in_transaction(
        world.engine,
        lambda connection: request_leases(
            connection, [LeaseRequest(again, job_id, 1, JobPhase.TRAIN, Shape("any", (1, 0, 0)), max_run_seconds=60)]
        ),
    )
    assert (await world.row(LEASE, id=again)).waiting_since == since


async def test_a_lease_that_leaves_a_node_may_be_needed_by_another_as_well(world: World, leader: Leadership) -> None:
    await world.worker()
    rounds = rounds_of(world, leader)
    _, victim = await granted(world, rounds, priority=200)
    await out_of_service(world, "w1")
    await drain_of(world, leader).ask()
    asked = (await world.row(LEASE, id=victim)).preempted_at
    # The node is put back; whoever was asked leaves all the same.
    await world.execute("UPDATE workers SET cordoned = false, draining = false")
    request = await world.request(await world.job(state="RUNNING", priority=950), priority=950)
    await rounds.round()
    lease = await world.row(LEASE, id=victim)
    assert (str(lease.preempted_for), lease.preempted_at) == (request, asked), "and has no more time for it"
    assert len(await world.rows(ORDERS)) == 1


async def test_a_drain_does_not_wear_the_brakes_of_preemption(world: World, leader: Leadership) -> None:
    await world.worker()
    await granted(world, rounds_of(world, leader))
    await out_of_service(world, "w1")
    await drain_of(world, leader).ask()
    await world.worker("w2", kind="h100")
    successor = rounds_of(world, leader, preemptions_burst=1, preemptions_per_hour=1)
    victim = await world.request(await world.job(state="RUNNING", priority=200), kind="h100", priority=200)
    await successor.round()
    await world.request(await world.job(state="RUNNING", priority=950), kind="h100", priority=950)
    await successor.round()
    assert (await world.row(LEASE, id=victim)).preempted_for is not None


async def test_a_standby_asks_nobody(world: World, leader: Leadership) -> None:
    await world.worker()
    await granted(world, rounds_of(world, leader))
    await out_of_service(world, "w1")
    assert await drain_of(world, Leadership(world.engine, "standby", 60)).ask() == PERIOD_SECONDS
    assert await world.rows(ORDERS) == []
