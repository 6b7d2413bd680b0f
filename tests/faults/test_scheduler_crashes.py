"""A scheduler that dies at any boundary of a commit leaves nothing that its successor does not finish, once."""

from __future__ import annotations

import asyncio
import signal

import pytest
from temporalio.client import Client

from scheduler.failpoints import EXIT_STATUS, Failpoint
from tests.faults.crashes import Start, budgeted, require_books_in_order, told, under_way
from tests.faults.test_scheduler_end_crashes import DRAIN, FORCED_END, GIVING_UP, RAISE, REPAIR, STOP
from tests.integration.scheduler.scheduler_world import World
from tests.waiting import until

IN_ANY_ROUND = [
    Failpoint.BEFORE_TAKE_OVER,
    Failpoint.AFTER_TAKE_OVER,
    Failpoint.BEFORE_COMMIT,
    Failpoint.AFTER_COMMIT,
    Failpoint.BEFORE_DISPATCH,
    Failpoint.AFTER_DISPATCH,
]


@pytest.mark.parametrize("failpoint", IN_ANY_ROUND)
async def test_a_successor_finishes_what_a_crash_left(
    world: World, temporal: Client, start: Start, failpoint: Failpoint
) -> None:
    await budgeted(world)
    await world.worker(accelerators=2)
    running = [await world.job(priority=900) for _ in range(3)]
    first = await start()
    await until(lambda: under_way(world, 3), "the first jobs are admitted", seconds=60)
    first.send_signal(signal.SIGTERM)
    await first.wait()
    requests = [await world.request(job_id) for job_id in running]
    queued = [await world.job() for _ in range(2)]

    dying = await start(failpoint)
    assert await asyncio.wait_for(dying.wait(), 60) == EXIT_STATUS
    await start()

    async def settled() -> bool:
        return await under_way(world, 5) and len(await world.rows("SELECT 1 FROM leases WHERE state = 'GRANTED'")) == 2

    await until(settled, "the successor has finished it", seconds=60)
    granted = await world.rows("SELECT * FROM leases WHERE state = 'GRANTED'")
    assert {str(lease.lease_id) for lease in granted} < set(requests)
    for job_id in running:
        held = [lease for lease in granted if str(lease.job_id) == job_id]
        assert (await world.row("SELECT attempt FROM jobs WHERE job_id = :id", id=job_id)).attempt == len(held)
        assert await world.events(job_id) == ["STATE_CHANGED 0", *("LEASE_GRANTED 1" for _ in held)]
        assert await told(temporal, job_id) == ["started", *("lease_granted" for _ in held)]
    for job_id in queued:
        assert await world.events(job_id) == ["STATE_CHANGED 0"]
        assert await told(temporal, job_id) == ["started"]
    reserved = await world.rows("SELECT lease_id FROM reservations")
    assert {row.lease_id for row in reserved} == {lease.lease_id for lease in granted}, "what is reserved is what is held"
    assert len(reserved) == 2
    await require_books_in_order(world)


def test_every_failpoint_is_died_at_somewhere() -> None:
    at_an_end = {point for points in (FORCED_END, REPAIR, GIVING_UP, DRAIN, RAISE, STOP) for point in points}
    assert at_an_end | set(IN_ANY_ROUND) == set(Failpoint)
