"""What budgets make the scheduler do: stop what a lowered limit does not cover, and put last what has used up its own."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler_world import World

from control_plane.budgets.standing import demoting_scope
from control_plane.budgets.store import set_budget
from control_plane.budgets.verify import verify
from control_plane.db.engine import in_transaction
from control_plane.db.leases import end_lease
from control_plane.scheduling.explain import explain_job
from control_plane.settings import SchedulerSettings
from governance.budgets import AtHardLimit, Budget, Scope, ScopeKind
from governance.periods import PeriodKind
from governance.policies import TypePolicies
from governance.values import Limits
from scheduler.budget_stops import stop_uncovered
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop, limits_of

LEASE_MS = 3_600_000
"""What a lease of one accelerator reserves."""
RED = Scope(ScopeKind.PROJECT, "red")


def rounds_of(world: World, leader: Leadership, **settings: Any) -> RoundLoop:
    return RoundLoop(world.engine, leader, SchedulerSettings(**settings), asyncio.Event())


async def budget(world: World, hard_ms: int, at_hard_limit: AtHardLimit = AtHardLimit.STOP) -> None:
    await world.execute("INSERT INTO projects (project, creator) VALUES ('red', 'x') ON CONFLICT DO NOTHING")
    found = Budget(RED, PeriodKind.MONTH, Limits(None, hard_ms), at_hard_limit)
    await in_transaction(world.engine, lambda connection: set_budget(connection, found, "user:ada"))


async def lease(world: World, lease_id: str) -> Any:
    return await world.row("SELECT * FROM leases WHERE lease_id = :id", id=lease_id)


async def granted(world: World, rounds: RoundLoop, *, project: str = "red", priority: int = 500) -> tuple[str, str]:
    """A job and its lease, granted in a round of its own."""
    job_id = await world.job(project=project, state="RUNNING", priority=priority)
    lease_id = await world.request(job_id, priority=priority)
    await rounds.round()
    assert (await lease(world, lease_id)).state == "GRANTED"
    return job_id, lease_id


async def test_a_lowered_limit_stops_the_newest_and_its_job_waits_for_the_budget(world: World, leader: Leadership) -> None:
    await world.worker(accelerators=3, kind="h100")
    rounds = rounds_of(world, leader)
    await budget(world, 3 * LEASE_MS)
    _, first = await granted(world, rounds)
    job_id, second = await granted(world, rounds)
    # Of the second a few milliseconds will be spent.
    await budget(world, LEASE_MS + 60_000)
    assert await stop_uncovered(world.engine, leader) == 1
    assert await stop_uncovered(world.engine, leader) == 0, "each is asked once"
    assert [(await lease(world, one)).preempted_at is None for one in (first, second)] == [True, False]
    (order,) = await world.rows("SELECT job_id::text, payload FROM outbox WHERE kind = 'signal_preempt'")
    reason = "the budget of project red does not cover it any more"
    assert (order.job_id, order.payload) == (job_id, {"lease_id": second, "reason": reason})
    assert await world.events(job_id) == ["LEASE_GRANTED 1", "PREEMPTION_REQUESTED 1"]

    # It yields and asks again: there is capacity, and no money.
    assert await in_transaction(world.engine, lambda connection: end_lease(connection, second, "preempted")) is not None
    again = await world.request(job_id)
    await rounds.round()
    assert (await lease(world, again)).state == "REQUESTED"
    assert (await world.waiting_reason(job_id)).startswith("budget: ")
    assert await stop_uncovered(world.engine, leader) == 0
    await budget(world, 3 * LEASE_MS)
    await rounds.round()
    assert (await lease(world, again)).state == "GRANTED"
    assert await verify(world.engine) == []


async def test_a_job_that_is_over_is_asked_nothing(world: World, leader: Leadership) -> None:
    await world.worker(accelerators=1, kind="h100")
    await budget(world, LEASE_MS)
    job_id, held = await granted(world, rounds_of(world, leader))
    await budget(world, 1)
    await world.execute("UPDATE jobs SET state = 'CANCELLING' WHERE job_id = :id", id=job_id)
    assert await stop_uncovered(world.engine, leader) == 0
    assert (await lease(world, held)).preempted_at is None


async def test_work_of_a_demoted_project_runs_on_what_nobody_else_wants(world: World, leader: Leadership) -> None:
    await world.worker(accelerators=2, kind="h100")
    rounds = rounds_of(world, leader)
    await budget(world, 1, AtHardLimit.DEMOTE)
    await granted(world, rounds, priority=950)
    waiting = await world.job(state="RUNNING", priority=950)
    red = await world.request(waiting, priority=950)
    blue = await world.request(await world.job(project="blue", state="RUNNING", priority=150), priority=150)
    await rounds.round()
    assert [(await lease(world, one)).state for one in (red, blue)] == ["REQUESTED", "GRANTED"]
    async with world.engine.connect() as connection:
        said = await explain_job(connection, waiting, 1, lambda _: True, limits_of(SchedulerSettings()), TypePolicies())
        assert said.demoted_by == "red"
        assert (await demoting_scope(connection, "blue")) is None
    await in_transaction(world.engine, lambda connection: end_lease(connection, blue, "completed"))
    await rounds.round()
    assert (await lease(world, red)).state == "GRANTED"


async def test_a_round_stops_what_is_not_covered_and_no_brake_holds_it(world: World, leader: Leadership) -> None:
    await world.worker(accelerators=3, kind="h100")
    rounds = rounds_of(world, leader, preemptions_burst=1, preemptions_per_hour=1)
    await budget(world, 3 * LEASE_MS)
    held = [await granted(world, rounds) for _ in range(3)]
    await budget(world, 1)
    assert await rounds.round() == 0, "another round follows at once"
    assert await rounds.round() > 0
    assert [(await lease(world, lease_id)).preempted_at is not None for _, lease_id in held] == [True, True, True]
    assert len(await world.rows("SELECT 1 FROM outbox WHERE kind = 'signal_preempt'")) == 3
    waiting = await world.request(held[0][0])
    for _, lease_id in held:
        await in_transaction(world.engine, lambda connection, ended=lease_id: end_lease(connection, ended, "preempted"))
    await rounds.round()
    assert (await lease(world, waiting)).state == "REQUESTED"
    assert (await world.waiting_reason(held[0][0])).startswith("budget: ")


async def test_a_lease_that_does_not_yield_to_its_budget_is_ended(world: World, leader: Leadership) -> None:
    await world.worker(kind="h100")
    rounds = rounds_of(world, leader, yield_seconds=60)
    await budget(world, LEASE_MS)
    _, held = await granted(world, rounds)
    await budget(world, 1)
    await rounds.round()
    await world.execute("UPDATE leases SET preempted_at = preempted_at - interval '61 seconds' WHERE lease_id = :id", id=held)
    await rounds_of(world, leader, yield_seconds=60).round()
    assert (await lease(world, held)).outcome == "lost"
