"""Unary submits by 64 clients at once: durable, idempotent, audited, every interceptor on, against a server process of its own.

Ceiling: the rate at which 64 connections commit one-row transactions in the same PostgreSQL, which is what a submit cannot be
faster than while each has a commit of its own. Group commit shares them.
"""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg

from benchmarks.figure import Figure, percentile
from benchmarks.servers import BASE_MODEL, DATASET, PROJECT, Servers, own_channel, servers
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc, job_spec_pb2

CLIENTS = 64


async def run(quick: bool) -> Figure:
    """Submits for 5 s when `quick`, else for 30 s, after 2 s of warm-up."""
    seconds = 5.0 if quick else 30.0
    async with servers() as running:
        ceiling = await _commits(running.dsn, min(seconds, 10.0))
        await _submits(running, 2.0)
        latencies = await _submits(running, seconds)
    milliseconds = [latency * 1_000 for latency in latencies]
    return Figure(
        "submit_unary",
        len(latencies) / seconds,
        "jobs/s",
        ceiling,
        "one-row commits/s by 64 connections",
        {"p50_ms": percentile(milliseconds, 50), "p99_ms": percentile(milliseconds, 99)},
    )


async def _submits(running: Servers, seconds: float) -> list[float]:
    """The latency of every submit that finished within the time, in seconds."""
    latencies: list[float] = []
    ends_at = time.monotonic() + seconds

    async def client(number: int) -> None:
        async with own_channel(running.address) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            while (began := time.monotonic()) < ends_at:
                training = job_spec_pb2.TrainingSpec(seed=len(latencies), learning_rate=1e-5 * (number + 1))
                spec = job_spec_pb2.FineTuneSpec(
                    base_model=BASE_MODEL,
                    dataset=job_spec_pb2.DatasetRef(name=DATASET),
                    output_model="out",
                    training=training,
                )
                request = job_service_pb2.SubmitJobRequest(
                    request_id=str(uuid.uuid4()), project=PROJECT, spec=job_spec_pb2.JobSpec(fine_tune=spec)
                )
                await stub.SubmitJob(request, metadata=running.metadata, timeout=30)
                latencies.append(time.monotonic() - began)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return latencies


async def _commits(dsn: str, seconds: float) -> float:
    pool = await asyncpg.create_pool(dsn, min_size=CLIENTS, max_size=CLIENTS)
    await pool.execute("CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
    ends_at = time.monotonic() + seconds
    count = 0

    async def writer() -> None:
        nonlocal count
        async with pool.acquire() as connection:
            while time.monotonic() < ends_at:
                await connection.execute("INSERT INTO bare (body) VALUES ('x')")
                count += 1

    await asyncio.gather(*(writer() for _ in range(CLIENTS)))
    await pool.close()
    return count / seconds
