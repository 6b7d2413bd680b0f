"""What a round writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scheduler_world import TRACE_ID, World

from control_plane.db.engine import in_transaction
from control_plane.db.leases import end_lease
from control_plane.jobs.workflows import waiting_without_workflow
from control_plane.settings import SchedulerSettings
from scheduler import loop
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Limits, Micros, Plan
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop, plan
from scheduler.snapshot import Reading, SnapshotReader
from workers.workflows.contracts import LeaseGrant

LEASE = "SELECT * FROM leases WHERE lease_id = :id"
JOB = "SELECT * FROM jobs WHERE job_id = :id"
HISTORY = "SELECT * FROM waiting_reasons ORDER BY since"
SENT = "SELECT * FROM outbox WHERE job_id = :id AND kind <> 'start_workflow' ORDER BY outbox_id"


def rounds_of(world: World, leader: Leadership, **settings: Any) -> RoundLoop:
    return RoundLoop(world.engine, leader, SchedulerSettings(**settings), asyncio.Event())


async def granted(world: World, leader: Leadership) -> tuple[str, str]:
    """A running job and its granted lease."""
    await world.worker()
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id)
    await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=lease_id)).state == "GRANTED"
    return job_id, lease_id


async def test_admits_the_most_urgent_jobs_into_the_window(world: World, leader: Leadership) -> None:
    low = await world.job(priority=1)
    high = await world.job(priority=900)
    middle = await world.job(priority=500)
    other_project = await world.job(project="blue", priority=0)
    await rounds_of(world, leader, prepare_ahead_per_project=2).round()

    assert [await world.state(job) for job in (high, middle, other_project)] == ["STARTING"] * 3
    assert await world.events(high) == ["STATE_CHANGED 0"]
    start = await world.row("SELECT * FROM outbox WHERE job_id = :id", id=high)
    assert start.state == "ready"
    assert TRACE_ID in start.trace_parent
    waiting = await world.row(JOB, id=low)
    assert waiting.state == "QUEUED"
    assert await world.waiting_reason(low) == "admission: 2 of the project's jobs are under way; at most 2 may be"
    assert await world.rows("SELECT state FROM outbox WHERE job_id = :id", id=low) == []


async def test_jobs_that_nothing_runs_wait_and_are_in_nobodys_way(world: World, leader: Leadership) -> None:
    waiting = [await world.job(priority=900, job_type="hpo") for _ in range(3)]
    runs = await world.job(priority=1)
    await rounds_of(world, leader, prepare_ahead_per_project=1).round()

    assert await world.state(runs) == "STARTING"
    assert [await world.state(job) for job in waiting] == ["QUEUED"] * 3
    assert [await world.waiting_reason(job) for job in waiting] == [waiting_without_workflow("hpo")] * 3


async def test_a_grant_is_the_next_attempt_and_one_signal(world: World, leader: Leadership) -> None:
    incarnation = await world.worker("gpu-1", accelerators=2, kind="h100")
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id, accelerators=2, kind="h100")
    rounds = rounds_of(world, leader, lease_seconds=30)
    await rounds.round()
    await rounds.round()

    lease = await world.row(LEASE, id=lease_id)
    assert (lease.state, lease.attempt, lease.worker, lease.granted_kind) == ("GRANTED", 1, "gpu-1", "h100")
    assert (str(lease.worker_incarnation), lease.leader_epoch) == (incarnation, leader.epoch)
    assert (lease.expires_at - lease.granted_at).total_seconds() == 30
    assert (await world.row(JOB, id=job_id)).attempt == 1
    assert await world.events(job_id) == ["LEASE_GRANTED 1"]
    (signal,) = await world.rows(SENT, id=job_id)
    assert (signal.kind, signal.dedupe_key, signal.state) == ("signal_lease_granted", f"grant/{lease_id}", "ready")
    assert signal.payload == {
        "lease_id": lease_id,
        "attempt": 1,
        "worker": "gpu-1",
        "accelerators": 2,
        "accelerator_kind": "h100",
        "placement": [{"node": "gpu-1", "members": 1}],
    }
    assert TRACE_ID in signal.trace_parent


async def test_a_grant_names_every_node_of_a_gang(world: World, leader: Leadership) -> None:
    for name in ("gpu-1", "gpu-2"):
        await world.worker(name, accelerators=2, kind="h100")
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id, accelerators=1, kind="h100")
    await world.execute("UPDATE leases SET members = 3 WHERE lease_id = :id", id=lease_id)
    await world.execute("UPDATE leases SET shape = shape_of(leases)")
    await rounds_of(world, leader).round()
    (signal,) = await world.rows(SENT, id=job_id)
    grant = LeaseGrant.model_validate(signal.payload)
    assert [(part.node, part.members) for part in grant.placement] == [("gpu-1", 2), ("gpu-2", 1)]
    assert (grant.worker, grant.accelerators) == ("gpu-1", 3)
    (event,) = await world.rows("SELECT detail FROM job_events WHERE job_id = :id AND type = 'LEASE_GRANTED'", id=job_id)
    assert event.detail["placement"] == [["gpu-1", 2], ["gpu-2", 1]]


async def test_what_waits_says_why_and_only_once(world: World, leader: Leadership) -> None:
    await granted(world, leader)
    job_id = await world.job(state="RUNNING")
    await world.request(job_id, kind="cpu")
    rounds = rounds_of(world, leader)
    await rounds.round()
    before = await world.row(JOB, id=job_id)
    assert await world.waiting_reason(job_id) == "capacity: asks for 1 accelerator of kind cpu; 0 of 1 are free"
    await rounds.round()
    assert (await world.row(JOB, id=job_id)).version == before.version, "a reason is no change of the job"
    assert len(await world.rows(HISTORY)) == 1, "nothing new was written"
    # A successor goes on from what is stored.
    await rounds_of(world, leader).round()
    assert len(await world.rows(HISTORY)) == 1

    await world.execute("UPDATE workers SET accelerators = 2")
    await rounds.round()
    assert await world.waiting_reason(job_id) == ""
    await rounds.round()
    told = [[reason["code"] for reason in row.reasons] for row in await world.rows(HISTORY)]
    assert told == [["CAPACITY"], []], "its history stays"


async def test_what_is_alike_shares_its_reason(world: World, leader: Leadership) -> None:
    alike = [await world.job(priority=500 + number) for number in range(5)]
    other = await world.job(priority=950)
    larger = await world.job(priority=500, accelerators=2)
    await world.job(state="RUNNING")
    await rounds_of(world, leader, prepare_ahead_per_project=1).round()
    for job_id in (*alike, other, larger):
        assert await world.waiting_reason(job_id) == "admission: 1 of the project's jobs is under way; at most 1 may be"
    assert len(await world.rows(HISTORY)) == 3


async def test_the_quota_holds(world: World, leader: Leadership) -> None:
    await world.worker(accelerators=4)
    await world.quota("red", "cpu", nominal=1, borrowing_limit=0)
    jobs = [await world.job(state="RUNNING") for _ in range(2)]
    leases = [await world.request(job) for job in jobs]
    await rounds_of(world, leader).round()
    assert [(await world.row(LEASE, id=lease)).state for lease in leases] == ["GRANTED", "REQUESTED"]
    assert await world.waiting_reason(jobs[1]) == "quota: asks for 1 accelerator of pool cpu; red uses 1 of at most 1"


async def test_a_lease_that_expires_ends_as_lost_and_is_settled(world: World, leader: Leadership) -> None:
    job_id, lease_id = await granted(world, leader)
    await world.execute(
        "UPDATE leases SET granted_at = now() - interval '90 seconds', expires_at = now() - interval '1 second'"
    )
    await rounds_of(world, leader).round()

    lease = await world.row(LEASE, id=lease_id)
    assert (lease.state, lease.outcome) == ("ENDED", "lost")
    assert 90_000 <= lease.accelerator_ms < 100_000
    assert (await world.row(JOB, id=job_id)).accelerator_ms == {"cpu": lease.accelerator_ms}
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "LEASE_ENDED 1", "ATTEMPT_LOST 1"]
    told = await world.rows("SELECT detail FROM job_events WHERE job_id = :id AND type <> 'LEASE_GRANTED'", id=job_id)
    assert [row.detail["reason"] for row in told] == ["the lease was not renewed in time"] * 2
    signals = await world.rows(SENT, id=job_id)
    assert [signal.kind for signal in signals] == ["signal_lease_granted", "signal_lease_lost"]
    assert signals[1].payload == {"lease_id": lease_id, "reason": "the lease was not renewed in time"}


@pytest.mark.parametrize("restarted", [False, True], ids=["silent", "restarted"])
async def test_leases_of_a_worker_that_is_gone_end_and_their_place_is_taken(
    world: World, leader: Leadership, restarted: bool
) -> None:
    job_id, lease_id = await granted(world, leader)
    if restarted:
        await world.worker()
    else:
        # Silence is counted from the start of the database at the earliest, which was a moment ago.
        await world.execute("UPDATE workers SET heartbeat_at = now() - interval '1 hour'")
        await world.worker("w2")
        await world.execute("UPDATE workers SET heartbeat_at = now() + interval '1 hour' WHERE name = 'w2'")
    again = await world.request(job_id)
    await rounds_of(world, leader, worker_lost_seconds=60 if restarted else 0.001).round()

    assert (await world.row(LEASE, id=lease_id)).outcome == "lost"
    reason = "the node was restarted" if restarted else "the node is silent"
    assert (await world.rows(SENT, id=job_id))[1].payload["reason"] == reason
    successor = await world.row(LEASE, id=again)
    assert (successor.state, successor.attempt) == ("GRANTED", 2), "in the same round"


async def test_a_lease_renewed_while_the_round_was_planned_does_not_end(
    world: World, leader: Leadership, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, lease_id = await granted(world, leader)
    await world.execute("UPDATE leases SET expires_at = now() - interval '1 second'")
    waiting = await world.request(job_id)
    seen: list[Plan] = []

    def watched_plan(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        seen.append(plan(snapshot, now, limits))
        return seen[-1]

    async def read_then_renew(reader: SnapshotReader) -> Reading:
        reading = await read(reader)
        await world.execute("UPDATE leases SET expires_at = now() + interval '1 hour' WHERE state = 'GRANTED'")
        return reading

    read = SnapshotReader.read
    monkeypatch.setattr(loop, "plan", watched_plan)
    monkeypatch.setattr(SnapshotReader, "read", read_then_renew)
    assert await rounds_of(world, leader).round() == 0, "another round follows at once"
    assert [end.lease_id for end in seen[0].ends] == [lease_id]
    assert [grant.request.request_id for grant in seen[0].grants] == [waiting]
    assert (await world.row(LEASE, id=lease_id)).state == "GRANTED"
    assert (await world.row(LEASE, id=waiting)).state == "REQUESTED", "its accelerator was not free after all"


async def test_a_request_that_can_never_be_granted_is_refused_with_the_number(world: World, leader: Leadership) -> None:
    await world.worker(accelerators=2)
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id, accelerators=8)
    await rounds_of(world, leader).round()
    lease = await world.row(LEASE, id=lease_id)
    assert (lease.state, lease.outcome, lease.accelerator_ms) == ("ENDED", "refused", 0)
    (signal,) = await world.rows(SENT, id=job_id)
    assert signal.kind == "signal_lease_lost"
    assert signal.payload["reason"] == ("exceeds maximum: asks for 8 accelerators of any kind; the cluster can hold at most 2")


async def test_a_request_withdrawn_while_the_round_was_planned_moves_no_attempt(
    world: World, leader: Leadership, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.worker()
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id)
    read = SnapshotReader.read

    async def read_then_withdraw(reader: SnapshotReader) -> Reading:
        reading = await read(reader)
        await world.execute("UPDATE leases SET state = 'ENDED', ended_at = now(), outcome = 'cancelled'")
        return reading

    monkeypatch.setattr(SnapshotReader, "read", read_then_withdraw)
    await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=lease_id)).state == "ENDED"
    assert (await world.row(JOB, id=job_id)).attempt == 0
    assert await world.events(job_id) == []
    assert await world.rows(SENT, id=job_id) == []


@pytest.mark.parametrize("flag", ["cordoned", "draining"])
async def test_a_grant_does_not_land_on_a_node_taken_out_of_service_while_the_round_was_planned(
    world: World, leader: Leadership, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    await world.worker()
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id)
    read = SnapshotReader.read

    async def read_then_cordon(reader: SnapshotReader) -> Reading:
        reading = await read(reader)
        await world.execute(f"UPDATE workers SET {flag} = true")  # noqa: S608 - the test's own words
        return reading

    with monkeypatch.context() as patched:
        patched.setattr(SnapshotReader, "read", read_then_cordon)
        await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=lease_id)).state == "REQUESTED"
    assert await world.rows(SENT, id=job_id) == []
    await world.execute(f"UPDATE workers SET {flag} = false")  # noqa: S608 - the test's own words
    await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=lease_id)).state == "GRANTED"


async def test_a_job_that_is_being_stopped_is_given_nothing(world: World, leader: Leadership) -> None:
    await world.worker()
    lease_id = await world.request(await world.job(state="CANCELLING"))
    await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=lease_id)).state == "REQUESTED"


@pytest.mark.parametrize("state", ["PAUSING", "PAUSED"])
async def test_a_job_that_is_paused_or_about_to_be_is_given_nothing(world: World, leader: Leadership, state: str) -> None:
    await world.worker()
    lease_id = await world.request(await world.job(state=state))
    await rounds_of(world, leader).round()
    assert (await world.row(LEASE, id=lease_id)).state == "REQUESTED"


async def test_a_paused_job_takes_no_place_in_the_window(world: World, leader: Leadership) -> None:
    await world.job(state="PAUSED")
    paused_before_admission = await world.job(priority=900)
    await world.execute("UPDATE jobs SET state = 'PAUSED' WHERE job_id = :id", id=paused_before_admission)
    first, second = await world.job(priority=500), await world.job(priority=400)
    await rounds_of(world, leader, prepare_ahead_per_project=1).round()
    assert await world.state(first) == "STARTING"
    await world.execute("UPDATE jobs SET state = 'PAUSING' WHERE job_id = :id", id=first)
    await rounds_of(world, leader, prepare_ahead_per_project=1).round()
    assert [await world.state(job) for job in (second, paused_before_admission)] == ["QUEUED", "PAUSED"]
    await world.execute("UPDATE jobs SET state = 'PAUSED' WHERE job_id = :id", id=first)
    await rounds_of(world, leader, prepare_ahead_per_project=1).round()
    assert await world.state(second) == "STARTING"


async def test_a_job_without_resources_stops_no_other(world: World, leader: Leadership) -> None:
    odd, sound = await world.job(), await world.job()
    await world.execute("UPDATE jobs SET spec = '{}' WHERE job_id = :id", id=odd)
    await world.execute("UPDATE jobs SET shape = shape_of(jobs)")
    await rounds_of(world, leader).round()
    assert [await world.state(job) for job in (odd, sound)] == ["STARTING", "STARTING"]


async def test_a_lease_is_settled_once_however_many_end_it(world: World, leader: Leadership) -> None:
    job_id, lease_id = await granted(world, leader)
    await world.execute("UPDATE leases SET granted_at = now() - interval '2 seconds'")
    outcomes = ["completed", "failed", "lost", "cancelled"] * 2

    async def end(outcome: str) -> int | None:
        return await in_transaction(world.engine, lambda connection: end_lease(connection, lease_id, outcome))

    used = [number for number in await asyncio.gather(*(end(outcome) for outcome in outcomes)) if number is not None]
    assert len(used) == 1
    assert used[0] >= 2_000
    assert (await world.row(JOB, id=job_id)).accelerator_ms == {"cpu": used[0]}
    assert len([event for event in await world.events(job_id) if event.startswith("LEASE_ENDED")]) == 1


async def test_a_withdrawn_request_used_nothing_and_waits_no_more(world: World, leader: Leadership) -> None:
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id)
    await rounds_of(world, leader).round()
    assert (await world.waiting_reason(job_id)).startswith("capacity")
    assert await in_transaction(world.engine, lambda connection: end_lease(connection, lease_id, "cancelled")) == 0
    assert await world.waiting_reason(job_id) == ""
    assert (await world.row(JOB, id=job_id)).accelerator_ms == {}
    assert await in_transaction(world.engine, lambda connection: end_lease(connection, lease_id, "lost")) is None
