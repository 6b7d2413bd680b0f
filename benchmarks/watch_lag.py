"""From an event's commit to a thousand watchers, at five events a second: 99 of 100 deliveries are no slower than this.

Ceiling: a bare server that sends the same messages to as many streams of the same client, from the first write on.
"""

from __future__ import annotations

import asyncio

import asyncpg

from benchmarks.bare_stream import Task as BareTask
from benchmarks.bare_stream import bare_server
from benchmarks.figure import Figure, percentile
from benchmarks.servers import servers
from benchmarks.stored_jobs import running_job, write_event
from benchmarks.watchers import Task, watchers
from deploy.one_machine import ports

WATCHERS = 1_000
CONNECTIONS = 10
EVENTS_PER_SECOND = 5.0


async def run(quick: bool) -> Figure:
    """Writes for 5 s when `quick`, else for 30 s."""
    events = int(EVENTS_PER_SECOND * (5 if quick else 30))
    bare = await _bare(events)
    async with servers() as running:
        task = Task(running.address, running.token, WATCHERS, CONNECTIONS, "lag", events, from_now=True)
        connection = await asyncpg.connect(running.dsn)
        job_id = await running_job(connection)
        committed: dict[str, float] = {}
        async with watchers(task) as clients:
            for turn in _turns(events):
                await turn
                name, at = await write_event(connection, job_id)
                committed[name] = at
            async with asyncio.timeout(60):
                seen = await clients.finished()
        await connection.close()
    lags = [(at - committed[name]) * 1_000 for name, times in seen.items() for at in times]
    if len(lags) != events * WATCHERS:
        raise RuntimeError(f"{len(lags)} deliveries; expected {events * WATCHERS}")
    return Figure(
        "watch_lag",
        percentile(lags, 99),
        "ms",
        percentile(bare, 99),
        "p99 ms of a bare server sending the same to as many",
        {"p50_ms": percentile(lags, 50), "p99_ms": percentile(lags, 99), "bare_p50_ms": percentile(bare, 50)},
    )


async def _bare(events: int) -> list[float]:
    port = ports.choose(["bare"], {}, {})["bare"]
    async with bare_server(BareTask(port, events=1, messages=0)) as server:
        task = Task(server.address, "", WATCHERS, CONNECTIONS, "lag", events, from_now=True)
        sent: dict[str, float] = {}
        async with watchers(task) as clients:
            for turn in _turns(events):
                await turn
                name, at = await server.send()
                sent[name] = at
            async with asyncio.timeout(60):
                seen = await clients.finished()
    return [(at - sent[name]) * 1_000 for name, times in seen.items() for at in times]


def _turns(events: int) -> list[asyncio.Future[None]]:
    """One future an event, done when it is its turn."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = [loop.create_future() for _ in range(events)]
    for number, future in enumerate(futures, 1):
        loop.call_later(number / EVENTS_PER_SECOND, future.set_result, None)
    return futures
