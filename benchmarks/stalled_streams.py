"""What 500 streams that nobody reads cost: memory of the server, and the 99th percentile of unary calls beside them.

The value is the memory by which the server grows. Ceiling: what 500 open streams take of it that have nothing to send; so that
the ratio says what standing still adds.
"""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg
import psutil

from benchmarks.figure import Figure, percentile
from benchmarks.servers import BASE_MODEL, DATASET, PROJECT, Servers, own_channel, servers
from benchmarks.stored_jobs import running_job, write_backlog, write_event
from benchmarks.watchers import Task, watchers
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc, job_spec_pb2

STREAMS = 500
CONNECTIONS = 10
CLIENTS = 16
# Far more than the windows between a server and a client hold.
_BACKLOG = 5_000


async def run(quick: bool) -> Figure:
    """Calls for 4 s when `quick`, else for 15 s, without and with the streams."""
    seconds = 4.0 if quick else 15.0
    async with servers() as running:
        connection = await asyncpg.connect(running.dsn)
        job_id, asked = await running_job(connection), await _submitted(running)
        await write_backlog(connection, job_id, _BACKLOG)
        await _calls(running, asked, 2.0)
        baseline = await _calls(running, asked, seconds)
        before = _megabytes(running)
        async with watchers(_task(running, from_now=True)):
            idle = _megabytes(running) - before
        before = _megabytes(running)
        async with watchers(_task(running, from_now=False)):
            latencies, _ = await asyncio.gather(_calls(running, asked, seconds), _events(connection, job_id, seconds))
            grown = _megabytes(running) - before
        await connection.close()
    return Figure(
        "stalled_streams",
        grown,
        "MB",
        max(idle, 1.0),
        "MB that as many streams take which have nothing to send",
        {
            "rss_mb": grown,
            "p99_ms": percentile(latencies, 99),
            "baseline_p99_ms": percentile(baseline, 99),
            "above_baseline_ms": percentile(latencies, 99) - percentile(baseline, 99),
        },
    )


def _task(running: Servers, *, from_now: bool) -> Task:
    return Task(running.address, running.token, STREAMS, CONNECTIONS, "stall", from_now=from_now)


def _megabytes(running: Servers) -> float:
    return psutil.Process(running.pid).memory_info().rss / 2**20


async def _submitted(running: Servers) -> str:
    """A job as clients submit it, which the calls ask for."""
    spec = job_spec_pb2.FineTuneSpec(base_model=BASE_MODEL, dataset=job_spec_pb2.DatasetRef(name=DATASET), output_model="out")
    request = job_service_pb2.SubmitJobRequest(
        request_id=str(uuid.uuid4()), project=PROJECT, spec=job_spec_pb2.JobSpec(fine_tune=spec)
    )
    async with own_channel(running.address) as channel:
        answer = await job_service_pb2_grpc.JobServiceStub(channel).SubmitJob(request, metadata=running.metadata)
    return answer.job.job_id


async def _events(connection: asyncpg.Connection, job_id: str, seconds: float) -> None:
    """New events meanwhile, which the streams would have to be sent."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        await write_event(connection, job_id)
        await asyncio.sleep(0.05)


async def _calls(running: Servers, job_id: str, seconds: float) -> list[float]:
    """Milliseconds that each GetJob took."""
    milliseconds: list[float] = []
    ends_at = time.monotonic() + seconds

    async def client() -> None:
        async with own_channel(running.address) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            request = job_service_pb2.GetJobRequest(job_id=job_id)
            while (began := time.monotonic()) < ends_at:
                await stub.GetJob(request, metadata=running.metadata)
                milliseconds.append((time.monotonic() - began) * 1_000)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return milliseconds
