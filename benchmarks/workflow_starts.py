"""How many workflows a second the outbox starts: admitted jobs, dispatched to Temporal's development server and recorded.

Ceiling: the same client starting as many alike, as many at once, with nothing read and nothing recorded; half of it before and
half after.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from pathlib import Path

import asyncpg
from pydantic import SecretStr
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from benchmarks.figure import Figure
from benchmarks.servers import servers
from benchmarks.submit_batch import submit_many
from control_plane.db.engine import create_engine
from control_plane.settings import PostgresSettings, SchedulerSettings, TemporalSettings
from deploy.one_machine import ports
from deploy.one_machine.servers import NAMESPACE, temporal
from deploy.one_machine.supervisor import Supervisor
from scheduler.app import connect_temporal
from scheduler.dispatch import CONCURRENCY, JOBS_TO_START, Dispatcher
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop
from scheduler.routing import job_input, route
from workers.workflows.contracts import JobInput

_TEMPORAL_PORTS = ("temporal", "temporal-http", "temporal-metrics", "temporal-ui")


async def run(quick: bool) -> Figure:
    """500 workflows when `quick`, else 3,000."""
    count = 500 if quick else 3_000
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        chosen = ports.choose([*_TEMPORAL_PORTS], {}, {})
        server = temporal(Path(folder) / "temporal", *(chosen[name] for name in _TEMPORAL_PORTS))
        supervisor = Supervisor([server], Path(folder), None, lambda _: None)
        await supervisor.start()
        try:
            async with servers() as running:
                await submit_many(running, count)
                bare = await Client.connect(server.address, namespace=NAMESPACE, data_converter=pydantic_data_converter)
                example = await _admit(running.dsn)
                # The first of a server are slower.
                await _bare(bare, example, 200)
                before = await _bare(bare, example, count // 2)
                seconds, cpu_seconds = await _dispatch(running.dsn, server.address, count)
                after = await _bare(bare, example, count // 2)
        finally:
            await supervisor.stop()
    details = {"dispatcher_cpu_us": cpu_seconds / count * 1e6}
    ceiling = count / (before + after)
    return Figure("workflow_starts", count / seconds, "starts/s", ceiling, "bare starts/s, as many at once", details)


async def _admit(dsn: str) -> JobInput:
    """Admits every job that is queued, so that the outbox holds their starts; returns an input such as they have."""
    engine = create_engine(PostgresSettings(dsn=SecretStr(dsn), pool_size=4))
    leadership = Leadership(engine, "benchmark", 600)
    await leadership.campaign()
    rounds = RoundLoop(engine, leadership, SchedulerSettings(prepare_ahead_per_project=10_000), asyncio.Event())
    while await rounds.round() == 0:
        pass
    async with engine.connect() as connection:
        [job] = (await connection.execute(JOBS_TO_START, {"ids": [await _one_starting(dsn)]})).mappings().all()
    await leadership.resign()
    await engine.dispose()
    return job_input(job)


async def _one_starting(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    job_id = await connection.fetchval("SELECT job_id::text FROM jobs WHERE state = 'STARTING' LIMIT 1")
    await connection.close()
    return job_id


async def _dispatch(dsn: str, temporal_address: str, count: int) -> tuple[float, float]:
    """Drains the outbox; returns the seconds, and those of the processor, that it took."""
    engine = create_engine(PostgresSettings(dsn=SecretStr(dsn), pool_size=4))
    leadership = Leadership(engine, "benchmark", 600)
    await leadership.campaign()
    client = await connect_temporal(TemporalSettings(address=temporal_address, namespace=NAMESPACE))
    dispatcher = Dispatcher(engine, client, leadership, poll_seconds=1)
    began, busy = time.monotonic(), time.process_time()
    while await dispatcher.drain() == 0:
        pass
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - busy
    await engine.dispose()
    connection = await asyncpg.connect(dsn)
    done = await connection.fetchval(
        "SELECT count(*) FROM outbox WHERE state = 'done' AND kind = 'start_workflow' AND tries = 0"
    )
    await connection.close()
    if done != count:
        raise RuntimeError(f"{done} starts are recorded as done at the first try; expected {count}")
    return seconds, cpu_seconds


async def _bare(client: Client, example: JobInput, count: int) -> float:
    """Seconds for as many starts."""
    where = route("fine_tune")
    waiting = iter(range(count))

    async def start() -> None:
        for _ in waiting:
            await client.start_workflow(where.workflow, example, id=str(uuid.uuid4()), task_queue=where.task_queue)

    began = time.monotonic()
    await asyncio.gather(*(start() for _ in range(CONCURRENCY)))
    return time.monotonic() - began
