"""Unary submits by 64 clients at once: durable, idempotent, every interceptor on, against a server process of its own.

Ceiling: the rate at which 64 connections commit one-row transactions in the same PostgreSQL, which is what a submit cannot be
faster than while each has a commit of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.figure import Figure, percentile
from control_plane.db.migrate import upgrade
from deploy.one_machine import ports
from deploy.one_machine.postgres import Postgres
from deploy.one_machine.supervisor import Supervisor
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc, job_spec_pb2

CLIENTS = 64


async def run(quick: bool) -> Figure:
    """Submits for 5 s when `quick`, else for 30 s, after 2 s of warm-up."""
    seconds = 5.0 if quick else 30.0
    async with _servers() as (dsn, address):
        ceiling = await _commits(dsn, min(seconds, 10.0))
        await _submits(address, 2.0)
        latencies = await _submits(address, seconds)
    milliseconds = [latency * 1_000 for latency in latencies]
    return Figure(
        "submit_unary",
        len(latencies) / seconds,
        "jobs/s",
        ceiling,
        "one-row commits/s by 64 connections",
        {"p50_ms": percentile(milliseconds, 50), "p99_ms": percentile(milliseconds, 99)},
    )


async def _submits(address: str, seconds: float) -> list[float]:
    """The latency of every submit that finished within the time, in seconds."""
    latencies: list[float] = []
    spec = job_spec_pb2.JobSpec(
        fine_tune=job_spec_pb2.FineTuneSpec(base_model="base", dataset=job_spec_pb2.DatasetRef(name="data"), output_model="out")
    )
    ends_at = time.monotonic() + seconds

    async def client() -> None:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            while (began := time.monotonic()) < ends_at:
                request = job_service_pb2.SubmitJobRequest(request_id=str(uuid.uuid4()), project="bench", spec=spec)
                await stub.SubmitJob(request)
                latencies.append(time.monotonic() - began)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
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


@asynccontextmanager
async def _servers() -> AsyncGenerator[tuple[str, str]]:
    """A durable PostgreSQL with what a spec names, and a control plane process on it."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        chosen = ports.choose(["postgres", "control-plane"], {}, {})
        server = Postgres(root / "postgres", chosen["postgres"], "bench", root / "postgres.log")
        supervisor = Supervisor([server.component()], root, None, lambda _: None)
        await supervisor.start()
        try:
            await server.create_database()
            await asyncio.to_thread(upgrade, server.dsn())
            await _names(server.dsn())
            address = f"127.0.0.1:{chosen['control-plane']}"
            async with _control_plane(root, server.dsn(), address):
                yield server.dsn(), address
        finally:
            await supervisor.stop()


async def _names(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    sha256 = "0" * 64
    await connection.execute(
        "INSERT INTO datasets (project, name, sha256, size_bytes, uri, license, attribution)"
        " VALUES ('bench', 'data', $1, 1, 's3://headway/x', '', '')",
        sha256,
    )
    await connection.execute(
        "INSERT INTO base_models (name, sha256, size_bytes, uri, format, license, attribution)"
        " VALUES ('base', $1, 1, 's3://headway/x', 'GGUF', '', '')",
        sha256,
    )
    await connection.close()


@asynccontextmanager
async def _control_plane(root: Path, dsn: str, address: str) -> AsyncGenerator[None]:
    settings = root / "settings.json"
    settings.write_text(
        json.dumps(
            {
                "postgres": {"dsn": dsn, "pool_size": 64},
                "s3": {"access_key_id": "none", "secret_access_key": "none"},
                "control_plane": {"address": address},
            }
        )
    )
    with (root / "control-plane.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control_plane", "serve"),
            env={**os.environ, "HEADWAY_SETTINGS": str(settings)},
            stdout=log,
            stderr=log,
        )
    try:
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(30):
            health: Any = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
