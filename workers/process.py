"""What both worker processes share: arguments, signals, the connection to Temporal, health, and a graceful end."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

import structlog
from temporalio.client import Client
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError
from temporalio.worker import Worker

from control_plane.settings import Settings, TemporalSettings
from headway_client import telemetry
from headway_client.health import HealthServer, serve_health

T = TypeVar("T")
_RETRY_SECONDS = 1.0
_log = structlog.get_logger()

Serve = Callable[[Settings, HealthServer, asyncio.Event], Awaitable[None]]
"""A worker's life: from its settings to the event that asks it to stop."""


def main(service: str, description: str, serve: Serve) -> None:
    """The entry point of a worker process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--health-listen", required=True, metavar="HOST:PORT", help="where to answer health checks")
    arguments = parser.parse_args()
    settings = Settings()
    provider = telemetry.configure(service, settings.telemetry.otlp_traces_url, settings.telemetry.otlp_headers)
    try:
        asyncio.run(_run(settings, str(arguments.health_listen), serve))
    finally:
        provider.shutdown()


async def _run(settings: Settings, health_listen: str, serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    health = await serve_health(health_listen)
    try:
        await serve(settings, health, stop)
    finally:
        await health.stop()
    _log.info("stopped")


async def connect(settings: TemporalSettings) -> Client:
    """The Temporal client; waits for a server that is not there yet."""
    while True:
        try:
            return await Client.connect(
                settings.address,
                namespace=settings.namespace,
                data_converter=pydantic_data_converter,
                interceptors=[TracingInterceptor()],
            )
        # The SDK says so when nobody listens.
        except (RuntimeError, RPCError) as error:
            _log.warning("Temporal does not answer yet", address=settings.address, error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)


async def unless_stopped(work: Awaitable[T], stop: asyncio.Event) -> T | None:
    """The result of `work`; None, and `work` cancelled, if the process is asked to stop before."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


async def run_workers(workers: Sequence[Worker], health: HealthServer, stop: asyncio.Event) -> None:
    """Runs Temporal workers until the process is asked to stop, then lets running activities end gracefully.

    Raises:
        Exception: what ended a worker that should have gone on.
    """
    async with AsyncExitStack() as stack:
        running = [asyncio.create_task(worker.run()) for worker in workers]
        stack.push_async_callback(_shut_down, workers, running)
        await health.set_serving(True)
        _log.info("polling", task_queues=[worker.task_queue for worker in workers])
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await health.set_serving(False)
        if stop.is_set():
            _log.info("stopping; running activities are asked to end")


async def _shut_down(workers: Sequence[Worker], running: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*(worker.shutdown() for worker in workers))
    await asyncio.gather(*running)
