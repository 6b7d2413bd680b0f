"""Batches of submits by 4 clients: durable, idempotent, audited, every interceptor on, every spec another.

Ceiling: bare COPY of rows of id and spec into a table with a primary key and nothing else, a commit per batch, by one
connection of the same PostgreSQL.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import asyncpg
from google.protobuf.json_format import MessageToJson

from benchmarks.figure import Figure, percentile
from benchmarks.servers import BASE_MODEL, DATASET, PROJECT, Servers, own_channel, servers
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc, job_spec_pb2

CLIENTS = 4


def of_size(size: int) -> Callable[[bool], Awaitable[Figure]]:
    """The benchmark with batches of `size` jobs."""

    async def run(quick: bool) -> Figure:
        jobs = 30_000 if quick else 150_000
        async with servers() as running:
            ceiling = await _copies(running.dsn, size, jobs // 3)
            await _submit(running, [_batch(size, number) for number in range(5_000 // size)])
            batches = [_batch(size, number) for number in range(jobs // size)]
            began = time.monotonic()
            latencies = await _submit(running, batches)
            seconds = time.monotonic() - began
            await _require_stored(running.dsn, jobs + 5_000)
        milliseconds = [latency * 1_000 for latency in latencies]
        return Figure(
            f"submit_batch_{size}",
            jobs / seconds,
            "jobs/s",
            ceiling,
            f"rows/s of bare COPY, {size} a commit",
            {"p50_ms": percentile(milliseconds, 50), "p99_ms": percentile(milliseconds, 99)},
        )

    return run


def _batch(size: int, number: int) -> job_service_pb2.BatchSubmitJobsRequest:
    items = [job_service_pb2.BatchItem(spec=_spec(number * size + index)) for index in range(size)]
    return job_service_pb2.BatchSubmitJobsRequest(
        request_id=str(uuid.uuid4()), project=PROJECT, items=items, job_set=f"sweep-{number % 10}"
    )


def _spec(number: int) -> job_spec_pb2.JobSpec:
    return job_spec_pb2.JobSpec(
        fine_tune=job_spec_pb2.FineTuneSpec(
            base_model=BASE_MODEL,
            dataset=job_spec_pb2.DatasetRef(name=DATASET),
            output_model=f"out-{number % 100}",
            training=job_spec_pb2.TrainingSpec(seed=number, learning_rate=1e-6 * (number % 1_000 + 1)),
        )
    )


async def submit_one(running: Servers) -> None:
    """Submits a single job, the way every job of these benchmarks comes to be."""
    await _submit(running, [_batch(1, 0)])


async def submit_many(running: Servers, count: int) -> None:
    """Submits a thousand at a time."""
    sizes = [min(1_000, count - first) for first in range(0, count, 1_000)]
    await _submit(running, [_batch(size, number) for number, size in enumerate(sizes)])


async def _submit(running: Servers, batches: list[job_service_pb2.BatchSubmitJobsRequest]) -> list[float]:
    """Sends all batches, each client its next when its last was answered; returns each one's latency in seconds."""
    waiting, latencies = iter(batches), list[float]()

    async def client() -> None:
        async with own_channel(running.address) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            for batch in waiting:
                began = time.monotonic()
                response = await stub.BatchSubmitJobs(batch, metadata=running.metadata, timeout=60)
                latencies.append(time.monotonic() - began)
                if response.accepted_count != len(batch.items):
                    raise RuntimeError(f"only {response.accepted_count} of {len(batch.items)} jobs were accepted")

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return latencies


async def _require_stored(dsn: str, jobs: int) -> None:
    connection = await asyncpg.connect(dsn)
    stored = await connection.fetchval("SELECT count(*) FROM jobs")
    await connection.close()
    if stored != jobs:
        raise RuntimeError(f"{stored} jobs are stored, expected {jobs}")


async def _copies(dsn: str, size: int, rows: int) -> float:
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE bare (job_id uuid PRIMARY KEY, spec jsonb NOT NULL)")
    spec = MessageToJson(_spec(1), always_print_fields_with_no_presence=True, preserving_proto_field_name=True, indent=None)
    batches = [[(uuid.uuid4(), spec) for _ in range(size)] for _ in range(rows // size)]
    began = time.monotonic()
    for batch in batches:
        await connection.copy_records_to_table("bare", columns=("job_id", "spec"), records=batch)
    seconds = time.monotonic() - began
    await connection.execute("DROP TABLE bare")
    await connection.close()
    return rows / seconds
