"""The scheduler as a process: `python -m scheduler`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from scheduler_world import Gate, World
from temporalio.client import Client
from temporalio.service import RPCError

from tests.waiting import until

ROOT = Path(__file__).parents[3]
_Status = health_pb2.HealthCheckResponse


class Running:
    """A scheduler process and its health port."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self._port = port

    async def serving(self) -> bool:
        """Whether it says that it serves."""
        return await self._status() == _Status.SERVING

    async def not_serving(self) -> bool:
        """Whether it answers that it does not serve."""
        return await self._status() == _Status.NOT_SERVING

    async def _status(self) -> int | None:
        async with aio.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                return (await check(health_pb2.HealthCheckRequest(), timeout=1)).status
            except aio.AioRpcError:
                return None


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(world: World, temporal: Client, temporal_address: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts schedulers on the test's database; they are killed afterwards."""
    started: list[Running] = []

    async def start(dsn: str = world.dsn, **scheduler: Any) -> Running:
        number = len(started)
        settings = tmp_path / f"settings-{number}.json"
        sections = {"postgres": {"dsn": dsn, "pool_size": 4}, "temporal": {"address": temporal_address}}
        settings.write_text(json.dumps(sections | {"scheduler": {"leader_lease_seconds": 1.0} | scheduler}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = (tmp_path / f"scheduler-{number}.log").open("wb")
        with log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scheduler", "--health-listen", f"127.0.0.1:{port}"),
                env=os.environ | {"HEADWAY_SETTINGS": str(settings)},
                cwd=ROOT,
                stderr=log,
            )
        running = Running(process, port)
        started.append(running)
        await until(running.serving, "the scheduler serves", seconds=60)
        return running

    yield start
    for running in started:
        if running.process.returncode is None:
            running.process.kill()
            await running.process.wait()
    # Their queue is the real one: the next worker that polls it must not find them.
    for row in await world.rows("SELECT job_id::text FROM jobs"):
        with suppress(RPCError):
            await temporal.get_workflow_handle(row.job_id).terminate()


def under_way(world: World, job_id: str) -> Callable[[], Awaitable[bool]]:
    """Whether the job was admitted and its workflow started."""

    async def holds() -> bool:
        query = "SELECT jobs.state, outbox.state AS sent FROM jobs LEFT JOIN outbox USING (job_id) WHERE job_id = :id"
        row = await world.row(query, id=job_id)
        return (row.state, row.sent) == ("STARTING", "done")

    return holds


async def test_serves_and_stops_cleanly(world: World, start: Start) -> None:
    running = await start()
    job_id = await world.job()
    await until(under_way(world, job_id), "the job is admitted and its workflow started")
    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(running.process.wait(), 20) == 0
    leaders = await world.row("SELECT epoch, expires_at <= clock_timestamp() AS over FROM leaders")
    assert (leaders.epoch, leaders.over) == (1, True), "it resigned"


async def test_a_notification_wakes_it_before_its_time(world: World, start: Start) -> None:
    await start(poll_seconds=3600)
    await until(lambda: _listens(world), "it listens")
    job_id = await world.job()
    await world.execute("SELECT pg_notify('headway_scheduler', '')")
    await until(under_way(world, job_id), "the notification brings a round")


async def test_a_lost_notification_is_made_up_for_by_polling(world: World, start: Start) -> None:
    await start(poll_seconds=0.3)
    await until(lambda: _listens(world), "it listens")
    await world.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    job_id = await world.job()  # Nobody is notified of it.
    await until(under_way(world, job_id), "polling finds the job")


async def test_a_leader_that_was_stopped_past_its_term_does_no_harm(world: World, start: Start) -> None:
    first = await start(poll_seconds=0.2)
    await until(lambda: _epoch_is(world, 1), "the first leads")
    second = await start(poll_seconds=0.2)
    first.process.send_signal(signal.SIGSTOP)
    await until(lambda: _epoch_is(world, 2), "the second takes over")
    while_stopped = await world.job()
    await until(under_way(world, while_stopped), "the second goes on")

    first.process.send_signal(signal.SIGCONT)
    await until(first.serving, "the first is a standby")
    afterwards = await world.job()
    await until(under_way(world, afterwards), "the second still leads")
    assert await _epoch_is(world, 2)
    assert await world.events(while_stopped) == ["STATE_CHANGED 0"]

    second.process.send_signal(signal.SIGTERM)
    await second.process.wait()
    await until(lambda: _epoch_is(world, 3), "the first is elected again")


async def test_the_database_may_be_away(world: World, start: Start) -> None:
    address = world.dsn.rpartition("@")[2].partition("/")[0]
    gate = Gate(address)
    await gate.open()
    running = await start(world.dsn.replace(address, f"127.0.0.1:{gate.port}"), poll_seconds=0.2)
    await gate.shut()
    await until(running.not_serving, "it says so while the database is away")
    job_id = await world.job()
    await gate.open()
    await until(running.serving, "it comes back by itself")
    await until(under_way(world, job_id), "and goes on")
    assert running.process.returncode is None
    running.process.kill()
    await running.process.wait()
    await gate.shut()


async def _listens(world: World) -> bool:
    return bool(
        await world.rows(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN \"headway_outbox\"%'"
        )
    )


async def _epoch_is(world: World, epoch: int) -> bool:
    return [row.epoch for row in await world.rows("SELECT epoch FROM leaders WHERE expires_at > now()")] == [epoch]
