"""The composition root: settings in, a running gRPC server out."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.attempts.servicer import AttemptServicer
from control_plane.audit.servicer import AuditServicer
from control_plane.audit.trail import AuditTrail
from control_plane.budgets.prices import ensure_prices
from control_plane.capacity.servicer import CapacityServicer
from control_plane.collector import spare_collector
from control_plane.datasets.object_store import ObjectStore
from control_plane.datasets.servicer import DatasetServicer
from control_plane.db.engine import create_engine, in_transaction
from control_plane.db.notifications import Notifications
from control_plane.db.tables import (
    CHANNEL_EVENTS_POSITIONED,
    CHANNEL_EVENTS_WRITTEN,
    CHANNEL_IDENTITY,
    CHANNEL_LOGS,
    CHANNEL_WEBHOOKS,
)
from control_plane.identity import tls
from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.identity.authenticator import Authenticator
from control_plane.identity.bootstrap import bootstrap
from control_plane.identity.servicer import IdentityServicer
from control_plane.jobs.group_writer import GroupWriter
from control_plane.jobs.sequencer import Sequencer
from control_plane.jobs.servicer import JobServicer
from control_plane.logs.compaction import LogCompaction
from control_plane.logs.servicer import LogServicer
from control_plane.projects.servicer import ProjectServicer
from control_plane.quotas.servicer import QuotaServicer
from control_plane.registry.servicer import RegistryServicer
from control_plane.rpc.chain import Chain, steps
from control_plane.rpc.directory import Directory
from control_plane.rpc.pages import Cursors
from control_plane.rpc.policy import BYTES_MAX, policy
from control_plane.scheduling.foresight import Foresight
from control_plane.scheduling.servicer import SchedulerServicer
from control_plane.settings import ControlPlaneSettings, IdentitySettings, PriceSettings, Settings, require
from control_plane.streams.guard import StreamGuard
from control_plane.streams.hub import EventHub
from control_plane.streams.retention import EventRetention
from control_plane.webhooks.deliverer import Deliverer
from control_plane.webhooks.servicer import WebhookServicer
from control_plane.webhooks.signing import Signer
from headway.attempts.v1 import attempt_service_pb2, attempt_service_pb2_grpc
from headway.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from headway.capacity.v1 import capacity_service_pb2, capacity_service_pb2_grpc
from headway.datasets.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from headway.identity.v1 import identity_service_pb2, identity_service_pb2_grpc
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc
from headway.logs.v1 import log_service_pb2, log_service_pb2_grpc
from headway.projects.v1 import project_service_pb2, project_service_pb2_grpc
from headway.quotas.v1 import quota_service_pb2, quota_service_pb2_grpc
from headway.registry.v1 import registry_service_pb2, registry_service_pb2_grpc
from headway.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from headway.webhooks.v1 import webhook_service_pb2, webhook_service_pb2_grpc
from headway_client import telemetry

_log = structlog.get_logger()

SERVICES: tuple[str, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (job_service_pb2, "JobService"),
        (attempt_service_pb2, "AttemptService"),
        (audit_service_pb2, "AuditService"),
        (capacity_service_pb2, "CapacityService"),
        (dataset_service_pb2, "DatasetService"),
        (identity_service_pb2, "IdentityService"),
        (log_service_pb2, "LogService"),
        (project_service_pb2, "ProjectService"),
        (quota_service_pb2, "QuotaService"),
        (registry_service_pb2, "RegistryService"),
        (scheduler_service_pb2, "SchedulerService"),
        (webhook_service_pb2, "WebhookService"),
    )
)

_STOP_GRACE_SECONDS = 5.0
_HEALTH_CHECK_SECONDS = 2.0


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the calls that run and stops.

    Raises:
        MissingSettingError: a section that the control plane needs is absent.
        RuntimeError: the address to listen on cannot be bound.
    """
    provider = telemetry.configure("headway-control-plane", settings.telemetry.otlp_traces_url, settings.telemetry.otlp_headers)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    try:
        async with ControlPlane(settings) as control_plane:
            spare_collector()
            _log.info("control_plane.serving", port=control_plane.port)
            await stop.wait()
            _log.info("control_plane.stopping")
    finally:
        provider.shutdown()


class ControlPlane:
    """The services on one port, with health and reflection. An async context manager: inside it serves."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exits = AsyncExitStack()
        self.port = 0
        """The port that is bound."""

    async def __aenter__(self) -> ControlPlane:
        settings = self._settings
        own = require(settings.control_plane, "control_plane", "control_plane serve")
        postgres = require(settings.postgres, "postgres", "control_plane serve")
        identity = require(settings.identity, "identity", "control_plane serve")
        store = ObjectStore(require(settings.s3, "s3", "control_plane serve"))
        async with AsyncExitStack() as exits:
            engine = create_engine(postgres)
            exits.push_async_callback(engine.dispose)
            notifications = Notifications(
                postgres.dsn.get_secret_value(),
                [CHANNEL_EVENTS_WRITTEN, CHANNEL_EVENTS_POSITIONED, CHANNEL_LOGS, CHANNEL_IDENTITY, CHANNEL_WEBHOOKS],
            )
            await notifications.start()
            exits.push_async_callback(notifications.stop)
            sequencer = Sequencer(engine, notifications)
            await sequencer.start()
            exits.push_async_callback(sequencer.stop)
            writer = GroupWriter(engine, settings.policies.types, settings.scheduler.growing_pools)
            await writer.start()
            exits.push_async_callback(writer.stop)
            await _seed(engine, identity, settings.prices)
            authenticator = Authenticator(engine, notifications, identity)
            await authenticator.start()
            exits.push_async_callback(authenticator.stop)
            directory = Directory(engine, notifications, identity.cache_seconds)
            exits.callback(directory.close)
            trail = AuditTrail(engine)
            await trail.start()
            exits.push_async_callback(trail.stop)
            chain = Chain(
                steps(authenticator, directory, trail, settings.limits, own.deadline_seconds_max), policy(own.reflection)
            )
            hub = EventHub(engine, notifications)
            await hub.start()
            exits.push_async_callback(hub.stop)
            guard = StreamGuard(authenticator, own.stream_stalled_seconds, own.stream_seconds_max)
            await guard.start()
            exits.push_async_callback(guard.stop)
            retention = EventRetention(engine, own.event_retention_days)
            await retention.start()
            exits.push_async_callback(retention.stop)
            compaction = LogCompaction(engine, store, own.log_hot_seconds)
            await compaction.start()
            exits.push_async_callback(compaction.stop)
            deliverer = Deliverer(
                engine, notifications, settings.webhooks, Signer(identity.secret_key.get_secret_value().encode())
            )
            await deliverer.start()
            exits.push_async_callback(deliverer.stop)
            server, health_servicer = _server(chain, own)
            _add_services(
                server,
                *(settings, own, engine, notifications, store, writer, hub, guard),
                exits.enter_context(Foresight(settings, postgres)),
            )
            self.port = _bind(server, own)
            await server.start()
            exits.push_async_callback(server.stop, _STOP_GRACE_SECONDS)
            checking = asyncio.create_task(_keep_health(health_servicer, engine), name="health")
            exits.push_async_callback(_cancelled, checking)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._exits.aclose()


def _server(chain: Chain, own: ControlPlaneSettings) -> tuple[grpc.aio.Server, Any]:
    server = grpc.aio.server(
        interceptors=[chain],
        options=[
            # What is far too long never gets into memory; the chain holds each method to its own length.
            ("grpc.max_receive_message_length", 2 * BYTES_MAX),
            ("grpc.keepalive_time_ms", 30_000),
            # The end of a stream whose reader is alive and takes nothing, not even its status: that of its connection. Whoever
            # has a call under way on it may finish it; streams go on over the next connection.
            ("grpc.max_connection_age_ms", _milliseconds(own.stream_seconds_max)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(own.deadline_seconds_max)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            # A port already taken must be an error, not a second listener that gets half the calls.
            ("grpc.so_reuseport", 0),
        ],
    )
    # The published stubs know only the blocking servicer.
    health_servicer = vars(health)["aio"].HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, health_servicer


def _milliseconds(seconds: float) -> int:
    """As gRPC takes a duration: 32 bits."""
    return min(int(seconds * 1_000), 2**31 - 1)


def _add_services(
    server: grpc.aio.Server,
    settings: Settings,
    own: ControlPlaneSettings,
    engine: AsyncEngine,
    notifications: Notifications,
    store: ObjectStore,
    writer: GroupWriter,
    hub: EventHub,
    guard: StreamGuard,
    foresight: Foresight,
) -> None:
    heartbeat = own.stream_heartbeat_seconds
    identity = require(settings.identity, "identity", "control_plane serve")
    secret_key = identity.secret_key.get_secret_value().encode()
    cursors = Cursors(secret_key)
    currency = settings.prices.currency
    job_service_pb2_grpc.add_JobServiceServicer_to_server(
        JobServicer(
            engine,
            writer=writer,
            policies=settings.policies.types,
            currency=currency,
            cursors=cursors,
            hub=hub,
            guard=guard,
            heartbeat_seconds=heartbeat,
        ),
        server,
    )
    log_service_pb2_grpc.add_LogServiceServicer_to_server(
        LogServicer(engine, notifications, hub, guard, cursors, store, heartbeat), server
    )
    attempt_service_pb2_grpc.add_AttemptServiceServicer_to_server(
        AttemptServicer(engine, settings.scheduler.lease_seconds, settings.storage.retention), server
    )
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(engine, cursors), server)
    capacity_service_pb2_grpc.add_CapacityServiceServicer_to_server(
        CapacityServicer(engine, cursors, settings.scheduler.worker_lost_seconds), server
    )
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(DatasetServicer(engine, cursors, store), server)
    identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(
        IdentityServicer(engine, cursors, AttemptTokens(secret_key), identity.attempt_token_seconds), server
    )
    project_service_pb2_grpc.add_ProjectServiceServicer_to_server(ProjectServicer(engine, cursors), server)
    quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(QuotaServicer(engine, cursors, currency), server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(engine, cursors, store), server)
    scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(
        SchedulerServicer(engine, cursors, foresight, settings.policies.types), server
    )
    webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server(
        WebhookServicer(engine, cursors, settings.webhooks, Signer(secret_key)), server
    )


async def _seed(engine: AsyncEngine, identity: IdentitySettings, prices: PriceSettings) -> None:
    """What the settings say a database holds from its first start on."""
    await bootstrap(engine, identity)
    await in_transaction(engine, lambda connection: ensure_prices(connection, prices.micros_per_hour, "system:settings"))


def _bind(server: grpc.aio.Server, own: ControlPlaneSettings) -> int:
    """Binds every port; returns the main one."""
    bound: list[int] = []
    for listen, credentials in tls.ports(own):
        try:
            bound.append(
                server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"cannot listen on {listen}; expected a free host:port of this machine. Is another control plane running there?"
            ) from error
    return bound[0]


async def _keep_health(servicer: Any, engine: AsyncEngine) -> None:
    """Serving while the database answers; what needs nothing else is ready then."""
    while True:
        try:
            async with asyncio.timeout(_HEALTH_CHECK_SECONDS), engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            status = health_pb2.HealthCheckResponse.SERVING
        except Exception as error:
            _log.warning("control_plane.database_unavailable", error=str(error))
            status = health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await servicer.set(service, status)
        await asyncio.sleep(_HEALTH_CHECK_SECONDS)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
