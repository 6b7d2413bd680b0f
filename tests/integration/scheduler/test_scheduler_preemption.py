"""What preemption writes, and what becomes of a lease that is asked to yield."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from scheduler_world import World

from control_plane.attempts import repository
from control_plane.attempts.leasing import LeaseRequest, request_leases
from control_plane.attempts.retention import RetentionPolicy
from control_plane.db.engine import in_transaction
from control_plane.db.leases import end_lease
from control_plane.jobs.states import JobPhase
from control_plane.settings import SchedulerSettings
from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Limits, Micros, Plan, Shape
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop
from scheduler.replay import replay

LEASE = "SELECT * FROM leases WHERE lease_id = :id"


def rounds_of(world: World, leader: Leadership, **settings: Any) -> RoundLoop:
    return RoundLoop(world.engine, leader, SchedulerSettings(preempt_after_seconds=0.000_001, **settings), asyncio.Event())


async def preempted(world: World, rounds: RoundLoop) -> tuple[str, str, str]:
    """A job, its lease that was asked to yield, and the request of a higher class it yields to."""
    await world.worker()
    victim_job = await world.job(state="RUNNING", priority=200)
    victim = await world.request(victim_job, priority=200)
    await rounds.round()
    request = await world.request(await world.job(state="RUNNING", priority=950), priority=950)
    await rounds.round()
    return victim_job, victim, request


async def test_a_victim_is_asked_to_yield_once_and_its_place_is_kept(world: World, leader: Leadership) -> None:
    rounds = rounds_of(world, leader)
    job_id, victim, request = await preempted(world, rounds)
    lease = await world.row(LEASE, id=victim)
    assert (lease.state, str(lease.preempted_for)) == ("GRANTED", request)
    assert (await world.row(LEASE, id=request)).claim == [["w1", 1]]
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "PREEMPTION_REQUESTED 1"]
    waiting = await world.row("SELECT job_id::text FROM leases WHERE lease_id = :id", id=request)
    assert await world.waiting_reason(waiting.job_id) == "preemption: 1 lease is asked to yield to it"
    await rounds.round()
    (order,) = await world.rows("SELECT payload FROM outbox WHERE kind = 'signal_preempt'")
    assert order.payload["lease_id"] == victim

    # It yields, asks again, and does not take back what was made free.
    assert await in_transaction(world.engine, lambda connection: end_lease(connection, victim, "preempted")) is not None
    again = await world.request(job_id, priority=200)
    await rounds.round()
    assert [(await world.row(LEASE, id=lease_id)).state for lease_id in (request, again)] == ["GRANTED", "REQUESTED"]


async def test_a_victim_that_does_not_yield_in_time_loses_its_lease(world: World, leader: Leadership) -> None:
    rounds = rounds_of(world, leader, yield_seconds=60)
    job_id, victim, request = await preempted(world, rounds)
    await world.execute("UPDATE leases SET preempted_at = preempted_at - interval '61 seconds' WHERE lease_id = :id", id=victim)
    successor = rounds_of(world, leader, yield_seconds=60)
    assert await successor.round() == 0, "another round follows at once"
    await successor.round()
    assert [(await world.row(LEASE, id=lease_id)).outcome for lease_id in (victim, request)] == ["lost", None]
    assert (await world.row(LEASE, id=request)).state == "GRANTED"
    told = await world.row("SELECT payload FROM outbox WHERE kind = 'signal_lease_lost'")
    assert told.payload == {"lease_id": victim, "reason": "it did not yield within 60 s of being asked to"}
    assert (await world.events(job_id))[-2:] == ["LEASE_ENDED 1", "ATTEMPT_LOST 1"]


async def test_the_brakes_outlive_the_leader(world: World, leader: Leadership) -> None:
    await preempted(world, rounds_of(world, leader, preemptions_burst=1, preemptions_per_hour=1))
    await world.worker("w2", kind="h100")
    other = await world.request(await world.job(state="RUNNING", priority=200), kind="h100", priority=200)
    successor = rounds_of(world, leader, preemptions_burst=1, preemptions_per_hour=1)
    await successor.round()
    await world.request(await world.job(state="RUNNING", priority=950), kind="h100", priority=950)
    await successor.round()
    lease = await world.row(LEASE, id=other)
    assert (lease.state, lease.preempted_for) == ("GRANTED", None), "the bucket is empty"


async def test_what_a_preempted_job_asks_for_next_has_waited_since_its_first_request(world: World, leader: Leadership) -> None:
    job_id, victim, _ = await preempted(world, rounds_of(world, leader))
    await world.execute("UPDATE leases SET waiting_since = now() - interval '1 hour' WHERE lease_id = :id", id=victim)
    since = (await world.row(LEASE, id=victim)).waiting_since

    async def ask(lease_id: str) -> None:
        await in_transaction(
            world.engine,
            lambda connection: request_leases(
                connection, [LeaseRequest(lease_id, job_id, 1, JobPhase.TRAIN, Shape("any", (1, 0, 0)), max_run_seconds=60)]
            ),
        )

    await in_transaction(world.engine, lambda connection: end_lease(connection, victim, "preempted"))
    again = "00000000-0000-4000-8000-000000000001"
    await ask(again)
    assert (await world.row(LEASE, id=again)).waiting_since == since


async def test_a_checkpoint_counts_as_safe_from_then_on(world: World, leader: Leadership) -> None:
    await world.worker()
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id)
    await rounds_of(world, leader).round()
    await in_transaction(
        world.engine,
        lambda connection: repository.commit_checkpoint(
            connection,
            job_id,
            1,
            step=1,
            manifest_uri=f"s3://headway/projects/red/manifests/{'0' * 64}.json",
            manifest_sha256="0" * 64,
            metric=None,
            policy=RetentionPolicy(),
        ),
    )
    assert (await world.row(LEASE, id=lease_id)).checkpointed_at is not None


async def test_a_grant_that_the_budget_has_no_room_for_is_left_out(world: World, leader: Leadership) -> None:
    await world.worker(accelerators=2, kind="h100")
    await world.execute(
        "INSERT INTO budgets (kind, scope, period, hard_ms, at_hard_limit, alert_percents, setter)"
        " VALUES ('PROJECT', 'red', 'MONTH', 4000000, 'STOP', '{}', 'x')"
    )
    jobs = [await world.job(state="RUNNING") for _ in range(2)]
    leases = [await world.request(job_id) for job_id in jobs]
    await rounds_of(world, leader).round()
    assert [(await world.row(LEASE, id=lease_id)).state for lease_id in leases] == ["GRANTED", "REQUESTED"]
    assert (await world.waiting_reason(jobs[1])).startswith("budget: needs 1.00 accelerator-hours at most; red has 0.11")
    assert await in_transaction(world.engine, lambda connection: end_lease(connection, leases[0], "completed")) is not None
    await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=leases[1])).state == "GRANTED", "what was not used is there again"


async def test_a_recorded_round_comes_out_the_same_from_its_record_alone(world: World, leader: Leadership) -> None:
    await world.quota("red", "cpu", nominal=1, borrowing_limit=4, lending_limit=0)
    await world.execute(
        "INSERT INTO budgets (kind, scope, period, hard_ms, at_hard_limit, alert_percents, setter)"
        " VALUES ('PROJECT', 'red', 'MONTH', 1000000000, 'STOP', '{}', 'x')"
    )
    for _ in range(3):
        await world.job(priority=100)
    rounds = rounds_of(world, leader, record_inputs_every_rounds=1)
    await preempted(world, rounds)
    recorded = [row.round_id for row in await world.rows("SELECT round_id FROM scheduling_rounds ORDER BY round_id")]
    assert len(recorded) == 2
    assert await replay(world.engine) == dict.fromkeys(recorded, True)

    def without_preemption(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        return plan(snapshot, now, replace(limits, run_minimum_micros=10**12))

    assert await replay(world.engine, planner=without_preemption) == {recorded[0]: True, recorded[1]: False}
    assert await replay(world.engine, recorded[1:]) == {recorded[1]: True}


async def test_inputs_are_recorded_as_often_as_is_set(world: World, leader: Leadership) -> None:
    for every, kept in ((0, [False, False]), (2, [True, False])):
        await world.execute("DELETE FROM scheduling_rounds")
        rounds = rounds_of(world, leader, record_inputs_every_rounds=every)
        for _ in kept:
            await world.job()
            await rounds.round()
        query = "SELECT inputs IS NOT NULL AS kept FROM scheduling_rounds ORDER BY round_id"
        assert [row.kept for row in await world.rows(query)] == kept


async def test_each_round_that_decides_is_recorded(world: World, leader: Leadership) -> None:
    rounds = rounds_of(world, leader)
    await preempted(world, rounds)
    await rounds.round()
    records = await world.rows("SELECT * FROM scheduling_rounds ORDER BY round_id")
    assert [record.decision_count for record in records] == [1, 2]
    assert len({record.snapshot_sha256 for record in records}) == 2
    assert {record.leader_epoch for record in records} == {leader.epoch}
