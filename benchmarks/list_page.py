"""Pages of 50 jobs out of a million: first pages, pages far back, filtered and ordered ones, one after another.

Ceiling: the same rows by bare SQL over one connection. The ratio of times is theirs over ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import asyncpg

from benchmarks.figure import Figure, percentile
from benchmarks.servers import PROJECT, Servers, own_channel, servers
from benchmarks.submit_batch import submit_one
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc

_JOBS = 1_000_000
_QUERIES: Sequence[job_service_pb2.ListJobsRequest] = (
    job_service_pb2.ListJobsRequest(project=PROJECT),
    job_service_pb2.ListJobsRequest(project=PROJECT, order_by="priority desc"),
    job_service_pb2.ListJobsRequest(project=PROJECT, filter="state = QUEUED"),
    job_service_pb2.ListJobsRequest(project=PROJECT, filter='job_set = "sweep-7"'),
    job_service_pb2.ListJobsRequest(project=PROJECT, filter="state = FAILED AND priority >= 900"),
    job_service_pb2.ListJobsRequest(project=PROJECT, order_by="create_time asc"),
    job_service_pb2.ListJobsRequest(),
)
_PAGES = 20
"""Pages fetched in a row of each query."""

_FILL = """
    INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, submitter, job_set,
        created_at, updated_at, ended_at, event_sequence)
    SELECT gen_random_uuid(), CASE WHEN number % 10 = 0 THEN 'other' ELSE $1 END, 'fine_tune out', 'fine_tune', spec,
        repeat('0', 64), '{}', (number::bigint * 7919) % 1001, state, 'user:' || number % 50, 'sweep-' || number % 100,
        moment, moment + interval '1 minute', CASE WHEN state IN ('FAILED', 'SUCCEEDED') THEN moment END, 1
    FROM (
        SELECT number, now() - make_interval(secs => number) AS moment,
            (ARRAY['QUEUED','SUCCEEDED','SUCCEEDED','SUCCEEDED','FAILED'])[1 + number % 5] AS state
        FROM generate_series($2::int, $3::int) AS number
    ) AS made, (SELECT spec FROM jobs LIMIT 1) AS pattern
"""
_BARE = "SELECT * FROM jobs WHERE project = $1 ORDER BY created_at DESC, job_id DESC LIMIT 51"


async def run(quick: bool) -> Figure:
    """Fills the table (about a minute), then pages through it, 3 times when `quick`, else 20 times."""
    async with servers() as running:
        await _fill(running)
        bare = await _bare(running.dsn)
        await _page(running, 1)
        milliseconds = await _page(running, 3 if quick else 20)
    value = percentile(milliseconds, 99)
    return Figure(
        "list_page",
        value,
        "ms",
        percentile(bare, 99),
        "p99 of the same rows by bare SQL",
        {"p50_ms": percentile(milliseconds, 50), "p99_ms": value, "pages": float(len(milliseconds))},
    )


async def _fill(running: Servers) -> None:
    await submit_one(running)
    connection = await asyncpg.connect(running.dsn)
    await connection.execute("INSERT INTO projects (project, creator) VALUES ('other', 'system:bench')")
    step = 100_000
    for first in range(1, _JOBS + 1, step):
        await connection.execute(_FILL, PROJECT, first, first + step - 1)
    await connection.execute("VACUUM ANALYZE jobs")
    await connection.close()


async def _page(running: Servers, times: int) -> list[float]:
    """Milliseconds of every page."""
    milliseconds: list[float] = []
    async with own_channel(running.address) as channel:
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        for _ in range(times):
            for query in _QUERIES:
                request = job_service_pb2.ListJobsRequest()
                request.CopyFrom(query)
                for _ in range(_PAGES):
                    began = time.monotonic()
                    page = await stub.ListJobs(request, metadata=running.metadata, timeout=60)
                    milliseconds.append((time.monotonic() - began) * 1_000)
                    if len(page.jobs) != 50:
                        raise RuntimeError(f"a page of {request} holds {len(page.jobs)} jobs, expected 50")
                    request.page_token = page.next_page_token
    return milliseconds


async def _bare(dsn: str) -> list[float]:
    connection = await asyncpg.connect(dsn)
    milliseconds: list[float] = []
    for _ in range(300):
        began = time.monotonic()
        await connection.fetch(_BARE, PROJECT)
        milliseconds.append((time.monotonic() - began) * 1_000)
    await connection.close()
    return milliseconds
