"""A scheduler that dies at any boundary of a commit leaves nothing that its successor does not finish, once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.service import RPCError

from scheduler.failpoints import EXIT_STATUS, Failpoint
from tests.integration.scheduler.scheduler_world import World
from tests.waiting import until

ROOT = Path(__file__).parents[2]
Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(world: World, temporal: Client, temporal_address: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts schedulers on the test's database; they are killed afterwards."""
    settings = tmp_path / "settings.json"
    rules = {"leader_lease_seconds": 1.0, "poll_seconds": 0.2, "lease_seconds": 300, "worker_lost_seconds": 300}
    servers = {"postgres": {"dsn": world.dsn, "pool_size": 4}, "temporal": {"address": temporal_address}}
    settings.write_text(json.dumps({**servers, "scheduler": rules}))
    started: list[Process] = []

    async def start(failpoint: str = "") -> Process:
        with (tmp_path / f"scheduler-{len(started)}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scheduler", "--health-listen", "127.0.0.1:0"),
                env=os.environ | {"HEADWAY_SETTINGS": str(settings), "HEADWAY_SCHEDULER__FAILPOINT": failpoint},
                cwd=ROOT,
                stderr=log,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()
    # Their queue is the real one: the next worker that polls it must not find them.
    for row in await world.rows("SELECT job_id::text FROM jobs"):
        with suppress(RPCError):
            await temporal.get_workflow_handle(row.job_id).terminate()


async def under_way(world: World, jobs: int) -> bool:
    """Whether so many jobs are admitted, and everything was dispatched."""
    admitted = await world.rows("SELECT 1 FROM jobs WHERE state = 'STARTING'")
    return len(admitted) == jobs and not await world.rows("SELECT 1 FROM outbox WHERE state = 'ready'")


async def told(temporal: Client, job_id: str) -> list[str]:
    """What a workflow was started with and told, each thing once."""
    history = await temporal.get_workflow_handle(job_id).fetch_history()
    found: list[str] = []
    for event in history.events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            found.append("started")
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            found.append(event.workflow_execution_signaled_event_attributes.signal_name)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("failpoint", list(Failpoint))
async def test_a_successor_finishes_what_a_crash_left(
    world: World, temporal: Client, start: Start, failpoint: Failpoint
) -> None:
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
