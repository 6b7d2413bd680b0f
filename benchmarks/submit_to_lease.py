"""From asking for a lease to seeing it granted, over gRPC, while 100,000 other requests wait for another pool, which is full.

The control plane and the scheduler are processes of their own. A request is made with AttemptService.RequestLease at a steady
rate, its grant is seen in WatchEvents, and the lease is given back; so there is always room for it. Half of the time must be
50 ms at most, 99 of 100 times 250 ms.

Ceiling: two commits, each heard of by NOTIFY, with nothing in between: what asks and what grants cannot do with less.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from benchmarks.decisions_durable import running_jobs
from benchmarks.figure import Figure, percentile
from benchmarks.scheduling import scheduler
from benchmarks.servers import PROJECT, Servers, bearer, own_channel, servers
from control_plane.identity.attempt_tokens import AttemptTokens
from headway.attempts.v1 import attempt_service_pb2, attempt_service_pb2_grpc
from headway.jobs.v1 import job_event_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc

_WAITING = 100_000
_QUEUES = 50
_ACCELERATORS = (1, 2, 4, 8)
"""Of the requests that wait, so that they are groups of several shapes."""
_RATE = 10.0
"""Leases asked for in a second."""
_RULES = {"lease_seconds": 3_600}


async def run(quick: bool) -> Figure:
    """100 leases when `quick`, else 400; before them half as many with nothing else waiting."""
    count = 100 if quick else 400
    async with servers() as running:
        connection = await asyncpg.connect(running.dsn)
        ceiling = await _bare(running.dsn, count)
        await _workers(connection)
        alone = await _measure(running, connection, count // 2)
        await _fill(connection)
        times = await _measure(running, connection, count)
        waiting = await connection.fetchval("SELECT count(*) FROM leases WHERE state = 'REQUESTED'")
        await connection.close()
    if waiting != _WAITING:
        raise RuntimeError(f"{waiting} requests wait; expected {_WAITING}")
    details = {
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
        "alone_p50_ms": percentile(alone, 50),
        "alone_p99_ms": percentile(alone, 99),
    }
    return Figure("submit_to_lease", percentile(times, 50), "ms", percentile(ceiling, 50), "ms for two bare commits", details)


async def _measure(running: Servers, connection: asyncpg.Connection, count: int) -> list[float]:
    """Milliseconds from asking to seeing the grant; without the first tenth, in which everything is made ready."""
    jobs = [str(job_id) for job_id in await running_jobs(connection, count + count // 10, PROJECT)]
    async with (
        scheduler(running.dsn, _RULES, running.log.with_name("scheduler.log")) as _,
        own_channel(running.address) as channel,
    ):
        jobs_stub = job_service_pb2_grpc.JobServiceStub(channel)
        watch = jobs_stub.WatchEvents(
            job_service_pb2.WatchEventsRequest(project=PROJECT, from_now=True), metadata=running.metadata
        )
        seen = _Grants()
        following = asyncio.create_task(seen.follow(watch))
        await seen.open.wait()
        await _planned(connection)
        stub = attempt_service_pb2_grpc.AttemptServiceStub(channel)
        tokens = AttemptTokens(running.secret_key.encode())
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_one(stub, tokens, job, number / _RATE, seen)) for number, job in enumerate(jobs)]
        following.cancel()
    return [task.result() * 1_000 for task in asked[count // 10 :]]


class _Grants:
    """When each job's grant was seen."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self._seen: dict[str, asyncio.Future[float]] = {}

    def of(self, job_id: str) -> asyncio.Future[float]:
        """Done with the time, in seconds of the monotonic clock."""
        return self._seen.setdefault(job_id, asyncio.get_running_loop().create_future())

    async def follow(self, watch: Any) -> None:
        """Reads events until it is cancelled."""
        async for message in watch:
            now = time.monotonic()
            self.open.set()
            for event in message.events:
                if event.type == job_event_pb2.JOB_EVENT_TYPE_LEASE_GRANTED:
                    self.of(event.job_id).set_result(now)


async def _one(stub: Any, tokens: AttemptTokens, job_id: str, after_seconds: float, grants: _Grants) -> float:
    ends = datetime.now(UTC) + timedelta(hours=1)
    first, second = (bearer(tokens.issue(job_id, attempt, ends)) for attempt in (0, 1))
    lease_id = str(uuid.uuid4())
    request = attempt_service_pb2.RequestLeaseRequest(
        lease_id=lease_id,
        job_id=job_id,
        phase=job_pb2.JOB_PHASE_TRAIN,
        shape=attempt_service_pb2.Shape(accelerators=1, accelerator_kind="a100"),
        max_run_seconds=3_600,
    )
    granted = grants.of(job_id)
    await asyncio.sleep(after_seconds)
    began = time.monotonic()
    await stub.RequestLease(request, metadata=first)
    seconds = await asyncio.wait_for(granted, 30) - began
    release = attempt_service_pb2.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="completed")
    await stub.ReleaseLease(release, metadata=second)
    return seconds


async def _workers(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO workers (name, incarnation, accelerator_kind, accelerators, heartbeat_at, pool)"
        " SELECT kind || '-' || n, gen_random_uuid(), kind, 8, now() + interval '1 day', kind"
        " FROM generate_series(1, 100) AS n, unnest(ARRAY['h100', 'a100']) AS kind"
    )


async def _fill(connection: asyncpg.Connection) -> None:
    """Grants all of one pool, and lets 100,000 requests wait for it."""
    jobs: Sequence[uuid.UUID] = []
    for queue in range(_QUEUES):
        jobs = [*jobs, *await running_jobs(connection, (_WAITING + 100) // _QUEUES, f"{PROJECT}-{queue}")]
    columns = ["lease_id", "job_id", "project", "phase", "state", "accelerators", "accelerator_kind", "priority"]
    names = [f"{PROJECT}-{number * _QUEUES // len(jobs)}" for number in range(len(jobs))]
    now = datetime.now(UTC)
    held = [
        (
            uuid.uuid4(),
            job,
            name,
            "TRAIN",
            "GRANTED",
            8,
            "h100",
            500,
            86_400,
            1,
            f"h100-{number}",
            "h100",
            "h100",
            now,
            now + timedelta(days=1),
        )
        for number, (job, name) in enumerate(list(zip(jobs, names, strict=True))[::1001][:100], 1)
    ]
    taken = {row[1] for row in held}
    asking = [
        (uuid.uuid4(), job, name, "TRAIN", "REQUESTED", _ACCELERATORS[number % len(_ACCELERATORS)], "h100", 500, 3_600)
        for number, (job, name) in enumerate(zip(jobs, names, strict=True))
        if job not in taken
    ]
    granted = ["attempt", "worker", "granted_kind", "pool", "granted_at", "expires_at"]
    await connection.copy_records_to_table("leases", columns=[*columns, "max_run_seconds", *granted], records=held)
    await connection.execute(
        """
        UPDATE leases SET placement = jsonb_build_array(jsonb_build_array(worker, 1, workers.incarnation))
        FROM workers WHERE workers.name = worker AND state = 'GRANTED' AND placement IS NULL
        """
    )
    await connection.copy_records_to_table("leases", columns=[*columns, "max_run_seconds"], records=asking)
    await connection.execute("VACUUM ANALYZE jobs, leases")


async def _planned(connection: asyncpg.Connection) -> None:
    """Waits until the scheduler has taken in everything."""
    await connection.execute("NOTIFY headway_scheduler")
    async with asyncio.timeout(120):
        while await connection.fetchval("SELECT count(*) FROM scheduler_changes"):  # noqa: ASYNC110 - polls a database
            await asyncio.sleep(0.05)


async def _bare(dsn: str, count: int) -> list[float]:
    """Milliseconds from a commit that another connection hears of to hearing of the commit that it answers with."""
    ours, theirs = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    await ours.execute("CREATE TABLE bare_leases (lease_id bigint PRIMARY KEY, state text)")
    asked: asyncio.Queue[None] = asyncio.Queue()
    answered: asyncio.Queue[None] = asyncio.Queue()

    def put(queue: asyncio.Queue[None]) -> Callable[..., None]:
        def heard(*_: object) -> None:
            queue.put_nowait(None)

        return heard

    await theirs.add_listener("bare_asked", put(asked))
    await ours.add_listener("bare_answered", put(answered))
    times: list[float] = []
    for number in range(count):
        began = time.monotonic()
        await ours.fetchval(
            "WITH made AS (INSERT INTO bare_leases VALUES ($1, 'asked')) SELECT pg_notify('bare_asked', '')", number
        )
        await asked.get()
        await theirs.fetchval(
            "WITH made AS (UPDATE bare_leases SET state = 'granted' WHERE lease_id = $1) SELECT pg_notify('bare_answered', '')",
            number,
        )
        await answered.get()
        times.append((time.monotonic() - began) * 1_000)
    await ours.execute("DROP TABLE bare_leases")
    await ours.close()
    await theirs.close()
    return times
