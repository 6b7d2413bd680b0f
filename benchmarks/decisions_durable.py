"""How many grants a second the leader decides and commits: read what changed, plan, write, with fsync on."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime

import asyncpg
from pydantic import SecretStr

from benchmarks.figure import Figure
from benchmarks.servers import PROJECT, database
from control_plane.collector import spare_collector
from control_plane.db.engine import create_engine
from control_plane.settings import PostgresSettings, SchedulerSettings
from headway_client.telemetry import configure_tracing
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop

_WORKERS = 200
_TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def run(quick: bool) -> Figure:
    """Grants a second over rounds of what a burst of requests brings."""
    count = 20_000 if quick else 100_000
    spare_collector()
    configure_tracing("benchmark", None, {})
    async with database() as dsn:
        connection = await asyncpg.connect(dsn)
        ceiling = await _copied_per_second(connection, count)
        await _workers(connection, count)
        engine = create_engine(PostgresSettings(dsn=SecretStr(dsn), pool_size=4))
        leadership = Leadership(engine, "benchmark", 600)
        await leadership.campaign()
        rounds = RoundLoop(engine, leadership, SchedulerSettings(lease_seconds=3_600), asyncio.Event())
        await rounds.round()
        # The jobs are under way before the clock starts; what is measured is their requests.
        jobs = await running_jobs(connection, count, PROJECT)
        await rounds.round()
        longest = 0.0
        granted = 0
        seconds = cpu_seconds = 0.0
        while granted < count:
            await request(connection, jobs[granted : granted + count // 10], PROJECT)
            began, busy = time.monotonic(), time.process_time()
            await rounds.round()
            cpu_seconds += time.process_time() - busy
            longest = max(longest, time.monotonic() - began)
            seconds += time.monotonic() - began
            found = await connection.fetchval("SELECT count(*) FROM leases WHERE state = 'GRANTED'")
            if found == granted:
                raise RuntimeError(f"a round granted nothing: {found} of {count} are granted")
            granted = found
        await engine.dispose()
        await connection.close()
    details = {"rounds_of": count / 10, "round_longest_ms": longest * 1000, "scheduler_cpu_us": cpu_seconds / granted * 1e6}
    return Figure(
        "decisions_durable", granted / seconds, "decisions/s", ceiling, "rows/s of COPY of lease and event rows", details
    )


async def _workers(connection: asyncpg.Connection, accelerators: int) -> None:
    await connection.execute(
        "INSERT INTO workers (name, incarnation, accelerator_kind, accelerators, heartbeat_at)"
        " SELECT 'w' || n, gen_random_uuid(), 'h100', $2, now() + interval '1 day' FROM generate_series(1, $1) AS n",
        _WORKERS,
        accelerators // _WORKERS + 1,
    )


async def running_jobs(connection: asyncpg.Connection, count: int, project: str) -> list[uuid.UUID]:
    """Commits jobs that run, and returns their ids."""
    job_ids = [uuid.uuid4() for _ in range(count)]
    await connection.copy_records_to_table(
        "jobs",
        columns=["job_id", "project", "name", "type", "spec", "spec_sha256", "inputs", "priority", "state", "trace_parent"],
        records=[(job_id, project, "bench", "fine_tune", "{}", "", "{}", 500, "RUNNING", _TRACE_PARENT) for job_id in job_ids],
    )
    return job_ids


async def request(connection: asyncpg.Connection, job_ids: list[uuid.UUID], project: str, kind: str = "any") -> None:
    """Commits a lease request of each job."""
    await connection.copy_records_to_table(
        "leases",
        columns=[
            *("lease_id", "job_id", "project", "phase", "state", "accelerators", "accelerator_kind", "priority"),
            "max_run_seconds",
        ],
        records=[(uuid.uuid4(), job_id, project, "TRAIN", "REQUESTED", 1, kind, 500, 3600) for job_id in job_ids],
    )


async def _copied_per_second(connection: asyncpg.Connection, count: int) -> float:
    """Rows of leases and events that COPY alone commits a second; a lease and its event count as one, as a decision does."""
    await connection.execute(
        "CREATE TABLE copied_leases (LIKE leases INCLUDING DEFAULTS INCLUDING INDEXES INCLUDING GENERATED)"
    )
    await connection.execute("CREATE TABLE copied_events (LIKE job_events INCLUDING ALL)")
    now = datetime.now(UTC)
    leases = [
        (uuid.uuid4(), uuid.uuid4(), "p", "TRAIN", "GRANTED", 1, "any", 500, 3600, 1, "w", "h100", now, now)
        for _ in range(count)
    ]
    events = [(uuid.uuid4(), "p", 1, "LEASE_GRANTED", "RUNNING", 1, "{}") for _ in range(count)]
    began = time.monotonic()
    async with connection.transaction():
        await connection.copy_records_to_table(
            "copied_leases",
            columns=[
                *("lease_id", "job_id", "project", "phase", "state", "accelerators", "accelerator_kind", "priority"),
                *("max_run_seconds", "attempt", "worker", "granted_kind", "granted_at", "expires_at"),
            ],
            records=leases,
        )
        await connection.copy_records_to_table(
            "copied_events",
            columns=["job_id", "project", "sequence", "type", "state", "attempt", "detail"],
            records=events,
        )
    seconds = time.monotonic() - began
    await connection.execute("DROP TABLE copied_leases, copied_events")
    return count / seconds
