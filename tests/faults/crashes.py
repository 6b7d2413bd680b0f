"""Schedulers as processes of their own, to be killed, and what is looked at afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.service import RPCError

from control_plane.budgets.verify import verify
from scheduler.failpoints import EXIT_STATUS, Failpoint
from tests.integration.scheduler.scheduler_world import World

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


async def budgeted(world: World) -> None:
    """Gives the project a budget of accelerator time, so that every lease is in the ledger."""
    await world.execute(
        "INSERT INTO budgets (kind, scope, period, hard_ms, at_hard_limit, alert_percents, setter)"
        " VALUES ('PROJECT', 'red', 'MONTH', 1000000000, 'STOP', '{}', 'x')"
    )


async def dies(start: Start, failpoint: Failpoint) -> None:
    """Starts a scheduler that is to die at the failpoint, and sees it do so."""
    dying = await start(failpoint)
    assert await asyncio.wait_for(dying.wait(), 60) == EXIT_STATUS


async def require_books_in_order(world: World) -> None:
    """Holds the ledger to its rules, and what is reserved in it to what is held."""
    assert await verify(world.engine) == []
    unbalanced = "SELECT ledger_id FROM ledger_entries GROUP BY ledger_id HAVING sum(micros) <> 0 OR sum(accelerator_ms) <> 0"
    assert await world.rows(unbalanced) == []
    reserved = (
        "SELECT lease_id FROM reservations WHERE NOT EXISTS"
        " (SELECT 1 FROM settlements WHERE settlements.lease_id = reservations.lease_id)"
    )
    held = await world.rows("SELECT lease_id FROM leases WHERE state = 'GRANTED'")
    assert {row.lease_id for row in await world.rows(reserved)} == {row.lease_id for row in held}
    assert await world.rows("SELECT 1 FROM ledger_entries LIMIT 1"), "there is a ledger to look at"
