"""Events a second to all watchers of a server together, each of which reads the whole log of a project.

Ceiling: a bare server that streams the same messages to the same client.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from benchmarks.bare_stream import Task as BareTask
from benchmarks.bare_stream import bare_server
from benchmarks.figure import Figure
from benchmarks.servers import servers
from benchmarks.stored_jobs import running_job, write_backlog
from benchmarks.watchers import Task, watchers
from deploy.one_machine import ports

WATCHERS = 100
CONNECTIONS = 10
# What fits into a message of the control plane.
_EVENTS_PER_MESSAGE = 250


async def run(quick: bool) -> Figure:
    """Each watcher reads 10,000 events when `quick`, else 40,000."""
    events = 10_000 if quick else 40_000
    port = ports.choose(["bare"], {}, {})["bare"]
    async with bare_server(BareTask(port, _EVENTS_PER_MESSAGE, events // _EVENTS_PER_MESSAGE)) as server:
        ceiling = await _rate(Task(server.address, "", WATCHERS, CONNECTIONS, "count", events))
    async with servers() as running:
        connection = await asyncpg.connect(running.dsn)
        await write_backlog(connection, await running_job(connection), events)
        await connection.close()
        rate = await _rate(Task(running.address, running.token, WATCHERS, CONNECTIONS, "count", events))
    return Figure("events_streamed", rate, "events/s", ceiling, "events/s of a bare server streaming the same messages")


async def _rate(task: Task) -> float:
    async with watchers(task) as clients, asyncio.timeout(300):
        seen: dict[str, Any] = await clients.finished()
    return seen["events"] / seen["seconds"]
