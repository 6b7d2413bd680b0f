"""Kills where a lease or a job is ended by the scheduler: it ends once, is settled once, and what waited goes on."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import Client

from control_plane.budgets.store import set_budget
from control_plane.db.engine import in_transaction
from control_plane.settings import SchedulerSettings
from governance.budgets import AtHardLimit, Budget, Scope, ScopeKind
from governance.periods import PeriodKind
from governance.values import Limits
from scheduler.failpoints import Failpoint
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop
from tests.faults.crashes import Start, budgeted, dies, require_books_in_order, told
from tests.integration.scheduler.scheduler_world import World
from tests.waiting import until

FORCED_END = (Failpoint.BEFORE_FORCED_END, Failpoint.AFTER_FORCED_END)
REPAIR = (Failpoint.BEFORE_REPAIR, Failpoint.AFTER_REPAIR)
GIVING_UP = (Failpoint.BEFORE_GIVING_UP, Failpoint.AFTER_GIVING_UP)
DRAIN = (Failpoint.BEFORE_DRAIN, Failpoint.AFTER_DRAIN)
STOP = (Failpoint.BEFORE_STOP, Failpoint.AFTER_STOP)
RAISE = (Failpoint.BEFORE_RAISE, Failpoint.AFTER_RAISE)

LEASE = "SELECT * FROM leases WHERE lease_id = :id"


async def holding(world: World, temporal: Client | None) -> tuple[str, str]:
    """A running job, its lease, and, where Temporal is given, a workflow of its own that waits for a worker."""
    job_id = await world.job(state="RUNNING", priority=200)
    lease_id = await world.request(job_id, priority=200)
    leader = Leadership(world.engine, "the one before", 60)
    assert await leader.campaign()
    await RoundLoop(world.engine, leader, SchedulerSettings(lease_seconds=300), asyncio.Event()).round()
    await leader.resign()
    await world.execute("UPDATE outbox SET state = 'done', done_at = now()")
    if temporal is not None:
        await temporal.start_workflow("FineTuneWorkflow", id=job_id, task_queue="cpu")
    return job_id, lease_id


async def dispatched(world: World) -> bool:
    """Whether nothing is left to be told."""
    return not await world.rows("SELECT 1 FROM outbox WHERE state = 'ready'")


@pytest.mark.parametrize("failpoint", FORCED_END)
async def test_a_lease_that_did_not_yield_ends_once(world: World, temporal: Client, start: Start, failpoint: Failpoint) -> None:
    await budgeted(world)
    await world.worker()
    victim_job, victim = await holding(world, temporal)
    job_id = await world.job(state="RUNNING", priority=950)
    await temporal.start_workflow("FineTuneWorkflow", id=job_id, task_queue="cpu")
    request = await world.request(job_id, priority=950)
    await world.execute(
        "UPDATE leases SET preempted_for = :request, preempted_at = now() - interval '1 hour' WHERE lease_id = :victim",
        request=request,
        victim=victim,
    )
    await dies(start, failpoint)
    await start()

    async def settled() -> bool:
        return (await world.row(LEASE, id=request)).state == "GRANTED" and await dispatched(world)

    await until(settled, "the request has what the victim held", seconds=60)
    lease = await world.row(LEASE, id=victim)
    assert (lease.state, lease.outcome) == ("ENDED", "lost")
    assert await world.events(victim_job) == ["LEASE_GRANTED 1", "LEASE_ENDED 1", "ATTEMPT_LOST 1"]
    assert await told(temporal, victim_job) == ["started", "lease_lost"]
    assert await told(temporal, job_id) == ["started", "lease_granted"]
    await require_books_in_order(world)


@pytest.mark.parametrize("failpoint", REPAIR)
async def test_a_job_whose_workflow_is_unknown_is_started_anew_once(
    world: World, temporal: Client, start: Start, failpoint: Failpoint
) -> None:
    await budgeted(world)
    await world.worker()
    job_id, lease_id = await holding(world, None)
    await dies(start, failpoint)
    await start()

    async def anew() -> bool:
        return (await world.row(LEASE, id=lease_id)).state == "ENDED" and await dispatched(world)

    await until(anew, "its workflow is started anew", seconds=60)
    assert (await world.row("SELECT attempt FROM jobs WHERE job_id = :id", id=job_id)).attempt == 2, "the lease's, and one more"
    assert (await world.events(job_id)).count("LEASE_ENDED 1") == 1
    assert await told(temporal, job_id) == ["started"]
    assert await world.state(job_id) == "RUNNING"
    await require_books_in_order(world)


@pytest.mark.parametrize("failpoint", REPAIR)
async def test_a_job_whose_workflow_was_terminated_fails_once(
    world: World, temporal: Client, start: Start, failpoint: Failpoint
) -> None:
    await budgeted(world)
    await world.worker()
    job_id, lease_id = await holding(world, temporal)
    await temporal.get_workflow_handle(job_id).terminate()
    await dies(start, failpoint)
    await start()

    async def failed() -> bool:
        return await world.state(job_id) == "FAILED"

    await until(failed, "the job has failed", seconds=60)
    assert (await world.row(LEASE, id=lease_id)).state == "ENDED"
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "LEASE_ENDED 1", "STATE_CHANGED 1"]
    await require_books_in_order(world)


@pytest.mark.parametrize("failpoint", GIVING_UP)
async def test_a_job_that_is_given_up_fails_once(world: World, temporal: Client, start: Start, failpoint: Failpoint) -> None:
    await budgeted(world)
    await world.worker()
    job_id, lease_id = await holding(world, temporal)
    await world.send(job_id, "signal_pause", {"pause": "no number"})
    await dies(start, failpoint)
    await start()

    async def failed() -> bool:
        return await world.state(job_id) == "FAILED" and await dispatched(world)

    await until(failed, "the job has failed", seconds=60)
    assert (await world.row(LEASE, id=lease_id)).state == "ENDED"
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "LEASE_ENDED 1", "STATE_CHANGED 1"]
    await require_books_in_order(world)


@pytest.mark.parametrize("failpoint", DRAIN)
async def test_a_lease_on_a_draining_node_is_asked_once(
    world: World, temporal: Client, start: Start, failpoint: Failpoint
) -> None:
    await budgeted(world)
    await world.worker()
    job_id, lease_id = await holding(world, temporal)
    await world.execute("UPDATE workers SET cordoned = true, draining = true")
    await dies(start, failpoint)
    await start()

    async def asked() -> bool:
        lease = await world.row(LEASE, id=lease_id)
        return lease.preempted_at is not None and await dispatched(world)

    await until(asked, "its holder is asked to yield", seconds=60)
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "PREEMPTION_REQUESTED 1"]
    assert await told(temporal, job_id) == ["started", "preempt"]
    assert (await world.row(LEASE, id=lease_id)).state == "GRANTED"
    await require_books_in_order(world)


@pytest.mark.parametrize("failpoint", STOP)
async def test_a_lease_that_its_budget_does_not_cover_is_asked_once(
    world: World, temporal: Client, start: Start, failpoint: Failpoint
) -> None:
    await world.execute("INSERT INTO projects (project, creator) VALUES ('red', 'x')")
    await budgeted(world)
    await world.worker(kind="h100")
    job_id, lease_id = await holding(world, temporal)
    lowered = Budget(Scope(ScopeKind.PROJECT, "red"), PeriodKind.MONTH, Limits(None, 1), AtHardLimit.STOP)
    await in_transaction(world.engine, lambda connection: set_budget(connection, lowered, "user:ada"))
    await dies(start, failpoint)
    await start()

    async def asked() -> bool:
        lease = await world.row(LEASE, id=lease_id)
        return lease.preempted_at is not None and await dispatched(world)

    await until(asked, "its holder is asked to yield", seconds=60)
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "PREEMPTION_REQUESTED 1"]
    assert await told(temporal, job_id) == ["started", "preempt"]
    await require_books_in_order(world)


@pytest.mark.parametrize("failpoint", RAISE)
async def test_a_job_whose_deadline_is_near_rises_once(world: World, start: Start, failpoint: Failpoint) -> None:
    await world.execute("INSERT INTO projects (project, priority_max, creator) VALUES ('red', 1000, 'user:admin')")
    # Of a type that nothing runs, so that it stays queued.
    job_id = await world.job(priority=200, job_type="none that runs")
    await world.execute("UPDATE jobs SET start_by = now()")
    await dies(start, failpoint)
    await start()

    async def raised() -> bool:
        return (await world.row("SELECT raised_at FROM jobs")).raised_at is not None

    await until(raised, "the job is raised", seconds=60)
    assert (await world.row("SELECT priority FROM jobs")).priority == 400
    assert await world.events(job_id) == ["UPDATED 0"]
