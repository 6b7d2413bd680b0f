"""Following a job until it is final, by its events and its measurements at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.live import Live

from headway.jobs.v1 import job_pb2
from headway.jobs.v1.job_event_pb2 import JobEvent
from headway.logs.v1.log_record_pb2 import LogRecord
from headway_client.aio_client import AsyncClient
from headway_client.connection import Connection
from headway_client.errors import HeadwayError
from headway_client.watching.plain import event_line, progress_line
from headway_client.watching.render import LiveView, render_outcome
from headway_client.watching.view import JobView

_FRAME_SECONDS = 0.125
_REASON_SECONDS = 2.0
# The last measurements are stored before the job's last event; this is for their way here.
_PROGRESS_DRAIN_SECONDS = 5.0


class Watcher(Protocol):
    """Is told what happens."""

    def event(self, event: JobEvent) -> None:
        """One event, in order."""
        ...

    def progress(self, record: LogRecord) -> None:
        """One measurement, in order."""
        ...


async def follow(client: AsyncClient, job_id: str, watcher: Watcher) -> job_pb2.Job:
    """Tells `watcher` everything about the job from its beginning; returns the job once it is final.

    Raises:
        HeadwayError: there is no such job, or the control plane does not come back.
    """
    async with _background(_follow_progress(client, job_id, watcher)) as progress:
        async for batch in client.watch_events(job_id=job_id):
            for event in batch.events:
                watcher.event(event)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(progress), _PROGRESS_DRAIN_SECONDS)
    return await client.get_job(job_id)


async def _follow_progress(client: AsyncClient, job_id: str, watcher: Watcher) -> None:
    async for batch in client.stream_progress(job_id):
        for record in batch.records:
            watcher.progress(record)


@asynccontextmanager
async def _background(coroutine: Coroutine[Any, Any, None]) -> AsyncGenerator[asyncio.Task[None]]:
    """Runs beside the block and ends with it; what it failed with is raised if the block did not fail itself."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class JsonWatcher:
    """A JSON line for everything: {"event": …} or {"progress": …}."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def event(self, event: JobEvent) -> None:
        """Writes it."""
        self._write(f'{{"event": {_json(event)}}}')

    def progress(self, record: LogRecord) -> None:
        """Writes it."""
        self._write(f'{{"progress": {_json(record)}}}')


def _json(message: JobEvent | LogRecord) -> str:
    return MessageToJson(message, preserving_proto_field_name=True, indent=None, ensure_ascii=False)


class PlainWatcher:
    """A line of text for everything."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def event(self, event: JobEvent) -> None:
        """Writes it."""
        self._write(event_line(event))

    def progress(self, record: LogRecord) -> None:
        """Writes it."""
        self._write(progress_line(record))


class ViewWatcher:
    """Keeps a `JobView` up to date."""

    def __init__(self, view: JobView) -> None:
        self._view = view

    def event(self, event: JobEvent) -> None:
        """Folds it in."""
        self._view.apply_event(event)

    def progress(self, record: LogRecord) -> None:
        """Folds it in."""
        self._view.apply_progress(record)


async def watch_on_console(connection: Connection, job_id: str, console: Console) -> job_pb2.Job:
    """Shows the job until it is final, then its outcome: redrawn on a terminal, line by line elsewhere.

    Raises:
        HeadwayError: as `follow`.
    """
    async with AsyncClient.of(connection) as client:
        if console.is_terminal:
            job = await _watch_live(client, job_id, console)
        else:
            job = await follow(client, job_id, PlainWatcher(lambda line: console.out(line, highlight=False)))
    console.print(render_outcome(job))
    return job


async def watch_as_json(connection: Connection, job_id: str, write: Callable[[str], None]) -> job_pb2.Job:
    """Writes a JSON line for everything that happens to the job, and {"job": …} once it is final.

    Raises:
        HeadwayError: as `follow`.
    """
    async with AsyncClient.of(connection) as client:
        job = await follow(client, job_id, JsonWatcher(write))
    content = MessageToJson(job, preserving_proto_field_name=True, indent=None, ensure_ascii=False)
    write(f'{{"job": {content}}}')
    return job


async def _watch_live(client: AsyncClient, job_id: str, console: Console) -> job_pb2.Job:
    view = JobView(await client.get_job(job_id))
    frames = LiveView(view)
    # Drawn by this event loop only, so that no frame sees half of a change.
    with Live(frames.render(time.time()), console=console, auto_refresh=False) as live:
        async with _background(_draw(live, frames)), _background(_refresh_reason(client, view)):
            job = await follow(client, job_id, ViewWatcher(view))
        live.update(frames.render(job.end_time.ToNanoseconds() / 1e9), refresh=True)
    return job


async def _draw(live: Live, frames: LiveView) -> None:
    while True:
        live.update(frames.render(time.time()), refresh=True)
        await asyncio.sleep(_FRAME_SECONDS)


async def _refresh_reason(client: AsyncClient, view: JobView) -> None:
    """Why a job waits is no event, so it is asked for while it waits."""
    while True:
        if view.waits:
            # Decoration: when the control plane is away, the stream of events is what says so.
            with suppress(HeadwayError):
                view.job = await client.get_job(view.job.job_id)
        await asyncio.sleep(_REASON_SECONDS)
