"""Puts the scheduler together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from contextlib import suppress

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.contrib.pydantic import pydantic_data_converter

from control_plane.collector import spare_collector
from control_plane.db.engine import create_engine
from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_OUTBOX, CHANNEL_SCHEDULER
from control_plane.settings import Settings, TemporalSettings, require
from headway_client.health import HealthServer, serve_health
from headway_client.telemetry import configure
from scheduler import failpoints
from scheduler.dispatch import Dispatcher
from scheduler.drain import Drain
from scheduler.estimates import EstimateRecorder
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop
from scheduler.prune import Pruner
from scheduler.reconcile import Reconciler
from scheduler.repeat import DATABASE_ERRORS, repeat

_log = structlog.get_logger()

_CAMPAIGNS_PER_TERM = 4
_RECONCILE_SECONDS = 30.0
_RESIGN_SECONDS = 2.0


async def serve(settings: Settings, health_listen: str) -> None:
    """Runs a scheduler until SIGTERM or SIGINT.

    Args:
        settings: needs the sections `postgres` and `temporal`.
        health_listen: host:port for health checks: SERVING while the database answers, as leader and as standby.

    Raises:
        MissingSettingError: a section is absent.
        OSError: the health port cannot be bound.
    """
    postgres = require(settings.postgres, "postgres", "scheduler")
    temporal = require(settings.temporal, "temporal", "scheduler")
    failpoints.arm(settings.scheduler.failpoint)
    spare_collector()
    provider = configure("headway-scheduler", settings.telemetry.otlp_traces_url, settings.telemetry.otlp_headers)
    stopped = _stop_signal()
    health = await serve_health(health_listen)
    engine = create_engine(postgres)
    notifications = Notifications(postgres.dsn.get_secret_value(), [CHANNEL_SCHEDULER, CHANNEL_OUTBOX])
    await notifications.start()
    try:
        await _run(settings, engine, await connect_temporal(temporal), notifications, health, stopped)
    finally:
        await notifications.stop()
        await engine.dispose()
        await health.stop()
        provider.shutdown()


async def connect_temporal(settings: TemporalSettings) -> Client:
    """A client that connects with its first call, so that the scheduler starts without Temporal too."""
    return await Client.connect(
        settings.address,
        namespace=settings.namespace,
        data_converter=pydantic_data_converter,
        interceptors=[TracingInterceptor()],
        lazy=True,
    )


async def _run(
    settings: Settings,
    engine: AsyncEngine,
    client: Client,
    notifications: Notifications,
    health: HealthServer,
    stopped: asyncio.Event,
) -> None:
    rules = settings.scheduler
    holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4()}"
    leadership = Leadership(engine, holder, rules.leader_lease_seconds)
    with (
        notifications.subscribed(CHANNEL_SCHEDULER) as plan_now,
        notifications.subscribed(CHANNEL_OUTBOX) as dispatch_now,
    ):
        reconcile_now = asyncio.Event()
        rounds = RoundLoop(engine, leadership, rules, dispatch_now)
        dispatcher = Dispatcher(engine, client, leadership, rules.poll_seconds, per_second=rules.dispatches_per_second)
        reconciler = Reconciler(engine, client, leadership, _RECONCILE_SECONDS)
        drain = Drain(engine, leadership, rules.poll_seconds)
        pruner = Pruner(engine, leadership, rules)
        estimates = EstimateRecorder(engine, leadership, settings.prices.currency)

        async def campaign() -> float:
            led = leadership.epoch is not None
            try:
                leads = await leadership.campaign()
            except DATABASE_ERRORS:
                await health.set_serving(False)
                raise
            await health.set_serving(True)
            if leads and not led:
                for wake in (plan_now, dispatch_now, reconcile_now):
                    wake.set()
            return rules.leader_lease_seconds / _CAMPAIGNS_PER_TERM

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(repeat("campaign", campaign, asyncio.Event())),
                group.create_task(repeat("round", rounds.round, plan_now, coalesce_seconds=rules.round_coalesce_ms / 1000)),
                group.create_task(repeat("dispatch", dispatcher.drain, dispatch_now)),
                group.create_task(repeat("reconcile", reconciler.reconcile, reconcile_now)),
                group.create_task(repeat("drain", drain.ask, asyncio.Event())),
                group.create_task(repeat("prune", pruner.prune, asyncio.Event())),
                group.create_task(repeat("estimate", estimates.record, asyncio.Event())),
            ]
            await stopped.wait()
            _log.info("scheduler.stopping")
            for task in tasks:
                task.cancel()
    # Another may lead at once. If the database is away, the term simply runs out.
    with suppress(*DATABASE_ERRORS):
        async with asyncio.timeout(_RESIGN_SECONDS):
            await leadership.resign()


def _stop_signal() -> asyncio.Event:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped
