"""From the submit of a job that cannot be scheduled to an ExplainJob that says why, with a hundred thousand jobs waiting.

Every job asks for another amount, so that each is a line of its own that only a round can judge. Half of what waits is of the
project that submits. Ceiling: a row written, committed and read again by bare SQL.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from benchmarks.figure import Figure, percentile
from benchmarks.servers import BASE_MODEL, DATASET, PROJECT, Servers, own_channel, servers
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc, job_spec_pb2
from headway.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc, wait_reason_pb2

_PENDING = 100_000
_POLL_SECONDS = 0.002
_VERDICT_SECONDS_MAX = 10.0

_FILL = """
    INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state)
    SELECT gen_random_uuid(), CASE WHEN number % 2 = 0 THEN $1 ELSE 'other-' || number % 50 END, 'bench', 'fine_tune',
        jsonb_build_object('type', 'fine_tune', 'resources', jsonb_build_object('accelerators', 1 + number % 8,
            'accelerator_kind', 'h200', 'max_run_seconds', 3600)), '', '{}', number % 1001, 'QUEUED'
    FROM generate_series(1, $2::int) AS number
"""
# As many of each project's jobs as may be are under way, so that none is admitted: there is no Temporal to start them.
_UNDER_WAY = """
    INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, admitted_at)
    SELECT gen_random_uuid(), project, 'bench', 'fine_tune', '{"type": "fine_tune"}', '', '{}', 500, 'STARTING', now()
    FROM (SELECT DISTINCT project FROM jobs) AS known, generate_series(1, 8)
"""
_NODES = """
    INSERT INTO workers (name, incarnation, accelerator_kind, accelerators, heartbeat_at)
    SELECT 'n' || number, gen_random_uuid(), 'h200', CASE number WHEN 1 THEN 4096 ELSE 8 END, now() + interval '1 hour'
    FROM generate_series(1, 100) AS number
"""
# What no node could hold is refused at submit; what no quota allows is the scheduler's to say.
_QUOTA = """
    INSERT INTO queue_nodes (kind, name, quotas) VALUES ('PROJECT', $1, jsonb_build_array(jsonb_build_object(
        'pool', 'h200', 'resource', 'accelerators', 'nominal', 64, 'borrowing_limit', 0, 'lending_limit', NULL)))
"""


async def run(quick: bool) -> Figure:
    """Fills the queue, starts a scheduler, and submits 100 jobs when `quick`, else 500, one after the other."""
    async with servers() as running:
        connection = await asyncpg.connect(running.dsn, command_timeout=300)
        await connection.execute(_NODES)
        await connection.execute(_QUOTA, PROJECT)
        await connection.execute(_FILL, PROJECT, _PENDING)
        await connection.execute(_UNDER_WAY)
        await connection.execute("VACUUM ANALYZE jobs")
        bare = await _bare(connection)
        async with _scheduler(running.dsn):
            async with asyncio.timeout(120):
                while not await connection.fetchval("SELECT count(*) FROM waiting_reasons"):  # noqa: ASYNC110 - polls a database
                    await asyncio.sleep(0.05)
            milliseconds, explains = await _verdicts(running, 100 if quick else 500)
        await connection.close()
    value = percentile(milliseconds, 99)
    return Figure(
        "unschedulable_verdict",
        value,
        "ms",
        percentile(bare, 99),
        "p99 of a row written, committed and read by bare SQL",
        {
            "p50_ms": percentile(milliseconds, 50),
            "p99_ms": value,
            "explain_p50_ms": percentile(explains, 50),
            "explain_p99_ms": percentile(explains, 99),
        },
    )


async def _verdicts(running: Servers, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from each submit to its verdict, and of each ExplainJob on the way."""
    milliseconds: list[float] = []
    explains: list[float] = []
    async with own_channel(running.address) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        scheduler = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        for number in range(count + 5):
            began = time.monotonic()
            submitted = await jobs.SubmitJob(_submission(number), metadata=running.metadata, timeout=30)
            request = scheduler_service_pb2.ExplainJobRequest(job_id=submitted.job.job_id)
            while True:
                asked = time.monotonic()
                explanation = await scheduler.ExplainJob(request, metadata=running.metadata, timeout=30)
                explains.append((time.monotonic() - asked) * 1_000)
                code = explanation.reasons[0].code
                if code == wait_reason_pb2.WAIT_REASON_CODE_EXCEEDS_MAXIMUM:
                    break
                if time.monotonic() - began > _VERDICT_SECONDS_MAX:
                    raise RuntimeError(f"no verdict within {_VERDICT_SECONDS_MAX} s: {explanation}")
                await asyncio.sleep(_POLL_SECONDS)
            milliseconds.append((time.monotonic() - began) * 1_000)
    return milliseconds[5:], explains[5:]


def _submission(number: int) -> job_service_pb2.SubmitJobRequest:
    """More than the project's quota allows, each time another amount."""
    spec = job_spec_pb2.FineTuneSpec(
        base_model=BASE_MODEL, dataset=job_spec_pb2.DatasetRef(name=DATASET), output_model=f"out-{number % 100}"
    )
    spec.resources.accelerators = 1_000 + number
    spec.resources.accelerator_kind = "h200"
    return job_service_pb2.SubmitJobRequest(
        request_id=str(uuid.uuid4()), project=PROJECT, spec=job_spec_pb2.JobSpec(fine_tune=spec)
    )


async def _bare(connection: asyncpg.Connection) -> list[float]:
    await connection.execute("CREATE TABLE bare (id uuid PRIMARY KEY, content text)")
    milliseconds: list[float] = []
    for _ in range(300):
        began = time.monotonic()
        row = uuid.uuid4()
        await connection.execute("INSERT INTO bare VALUES ($1, 'x')", row)
        await connection.fetchrow("SELECT content FROM bare WHERE id = $1", row)
        milliseconds.append((time.monotonic() - began) * 1_000)
    return milliseconds


@asynccontextmanager
async def _scheduler(dsn: str) -> AsyncGenerator[None]:
    """A scheduler process, without Temporal."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        settings = Path(folder) / "settings.json"
        settings.write_text(json.dumps({"postgres": {"dsn": dsn, "pool_size": 4}, "temporal": {"address": "127.0.0.1:1"}}))
        said = Path(folder) / "log"
        with said.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scheduler", "--health-listen", "127.0.0.1:0"),
                env={**os.environ, "HEADWAY_SETTINGS": str(settings)},
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            if process.returncode is not None:
                raise RuntimeError(f"the scheduler ended by itself: {said.read_text()[-2_000:]}")
            process.kill()
            await process.wait()
