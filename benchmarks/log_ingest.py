"""Log lines a second from several runners, each acknowledged when it is durable.

Ceiling: inserts of the same compressed bytes by as many bare connections, a commit each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import zstandard

from benchmarks.figure import Figure, percentile
from benchmarks.servers import Servers, bearer, own_channel, servers
from benchmarks.stored_jobs import running_job
from control_plane.identity.attempt_tokens import AttemptTokens
from headway.logs.v1 import log_record_pb2, log_service_pb2, log_service_pb2_grpc

RUNNERS = 8
LINES_PER_BATCH = 200
# Batches that a runner has sent and that are not yet acknowledged.
UNDER_WAY = 4


async def run(quick: bool) -> Figure:
    """Sends for 5 s when `quick`, else for 20 s, after 1 s of warm-up."""
    seconds = 5.0 if quick else 20.0
    async with servers() as running:
        connection = await asyncpg.connect(running.dsn)
        jobs = [await running_job(connection) for _ in range(RUNNERS)]
        ceiling = await _bare(running.dsn, min(seconds, 5.0))
        tokens = AttemptTokens(running.secret_key.encode())
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        runners = [_Runner(running, job_id, tokens.issue(job_id, 1, expires_at)) for job_id in jobs]
        await asyncio.gather(*(runner.send(1.0) for runner in runners))
        began = time.monotonic()
        counts = await asyncio.gather(*(runner.send(seconds) for runner in runners))
        elapsed = time.monotonic() - began
        stored = await connection.fetchval("SELECT sum(last_sequence - first_sequence + 1) FROM log_chunks")
        await connection.close()
    acknowledged = sum(runner.acknowledged for runner in runners)
    if stored != acknowledged:
        raise RuntimeError(f"{stored} lines are stored; {acknowledged} were acknowledged")
    latencies = [latency for runner in runners for latency in runner.milliseconds]
    return Figure(
        "log_ingest",
        sum(counts) / elapsed,
        "lines/s",
        ceiling,
        "lines/s by bare inserts of the same bytes",
        {"p50_ms": percentile(latencies, 50), "p99_ms": percentile(latencies, 99)},
    )


class _Runner:
    """One runner's stream: from sequence to sequence, never more than a few batches ahead of what is acknowledged."""

    def __init__(self, running: Servers, job_id: str, token: str) -> None:
        self._address = running.address
        self._metadata = bearer(token)
        self._job_id = job_id
        self.acknowledged = 0
        self.milliseconds: list[float] = []

    async def send(self, seconds: float) -> int:
        """Sends for so long; returns how many lines were acknowledged."""
        before = self.acknowledged
        ends_at = time.monotonic() + seconds
        room = asyncio.Semaphore(UNDER_WAY)
        sent_at: dict[int, float] = {}

        async def batches() -> AsyncIterator[log_service_pb2.AppendLogsRequest]:
            sequence = before
            while time.monotonic() < ends_at:
                await room.acquire()
                request = _batch(self._job_id, sequence + 1)
                sequence += LINES_PER_BATCH
                sent_at[sequence] = time.monotonic()
                yield request

        async with own_channel(self._address) as channel:
            stub = log_service_pb2_grpc.LogServiceStub(channel)
            async for answer in stub.AppendLogs(batches(), metadata=self._metadata):
                self.acknowledged = answer.acknowledged_sequence
                self.milliseconds.append((time.monotonic() - sent_at.pop(self.acknowledged)) * 1_000)
                room.release()
        return self.acknowledged - before


def _batch(job_id: str, first: int) -> log_service_pb2.AppendLogsRequest:
    """Lines as a training process writes them, about 100 characters each."""
    records = [
        log_record_pb2.LogRecord(
            sequence=sequence,
            line=log_record_pb2.LogLine(
                level=log_record_pb2.LOG_LEVEL_INFO,
                text=f"step {sequence}: loss {1 / sequence:.9f}, learning rate 0.0003, gradient norm {sequence % 97 / 7:.6f}",
                source="runner",
            ),
        )
        for sequence in range(first, first + LINES_PER_BATCH)
    ]
    return log_service_pb2.AppendLogsRequest(job_id=job_id, attempt=1, records=records)


async def _bare(dsn: str, seconds: float) -> float:
    pool = await asyncpg.create_pool(dsn, min_size=RUNNERS, max_size=RUNNERS)
    await pool.execute("CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea NOT NULL)")
    data = zstandard.compress(_batch("", 1_000_000).SerializeToString())
    ends_at = time.monotonic() + seconds
    count = 0

    async def writer() -> None:
        nonlocal count
        async with pool.acquire() as connection:
            while time.monotonic() < ends_at:
                await connection.execute("INSERT INTO bare (data) VALUES ($1)", data)
                count += LINES_PER_BATCH

    await asyncio.gather(*(writer() for _ in range(RUNNERS)))
    await pool.execute("DROP TABLE bare")
    await pool.close()
    return count / seconds
