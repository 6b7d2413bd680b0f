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
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.instrumentation.grpc.filters import negate, service_prefix
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.attempts.servicer import AttemptServicer
from control_plane.capacity.servicer import CapacityServicer
from control_plane.datasets.object_store import ObjectStore
from control_plane.datasets.servicer import DatasetServicer
from control_plane.db.engine import create_engine
from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_EVENTS_POSITIONED, CHANNEL_EVENTS_WRITTEN, CHANNEL_LOGS
from control_plane.jobs.sequencer import Sequencer
from control_plane.jobs.servicer import JobServicer
from control_plane.logs.servicer import LogServicer
from control_plane.quotas.servicer import QuotaServicer
from control_plane.registry.servicer import RegistryServicer
from control_plane.rpc.interceptors import ContractInterceptor
from control_plane.settings import ControlPlaneSettings, Settings, require
from headway.attempts.v1 import attempt_service_pb2, attempt_service_pb2_grpc
from headway.capacity.v1 import capacity_service_pb2, capacity_service_pb2_grpc
from headway.datasets.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc
from headway.logs.v1 import log_service_pb2, log_service_pb2_grpc
from headway.quotas.v1 import quota_service_pb2, quota_service_pb2_grpc
from headway.registry.v1 import registry_service_pb2, registry_service_pb2_grpc
from headway_client import telemetry

_log = structlog.get_logger()

SERVICES: tuple[str, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (job_service_pb2, "JobService"),
        (attempt_service_pb2, "AttemptService"),
        (capacity_service_pb2, "CapacityService"),
        (dataset_service_pb2, "DatasetService"),
        (log_service_pb2, "LogService"),
        (quota_service_pb2, "QuotaService"),
        (registry_service_pb2, "RegistryService"),
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
        store = ObjectStore(require(settings.s3, "s3", "control_plane serve"))
        async with AsyncExitStack() as exits:
            engine = create_engine(postgres)
            exits.push_async_callback(engine.dispose)
            notifications = Notifications(
                postgres.dsn.get_secret_value(), [CHANNEL_EVENTS_WRITTEN, CHANNEL_EVENTS_POSITIONED, CHANNEL_LOGS]
            )
            await notifications.start()
            exits.push_async_callback(notifications.stop)
            sequencer = Sequencer(engine, notifications)
            await sequencer.start()
            exits.push_async_callback(sequencer.stop)
            server, health_servicer = _server(own)
            _add_services(server, settings, own, engine, notifications, store)
            self.port = _bind(server, own.listen or own.address)
            await server.start()
            exits.push_async_callback(server.stop, _STOP_GRACE_SECONDS)
            checking = asyncio.create_task(_keep_health(health_servicer, engine), name="health")
            exits.push_async_callback(_cancelled, checking)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._exits.aclose()


def _server(own: ControlPlaneSettings) -> tuple[grpc.aio.Server, Any]:
    server = grpc.aio.server(
        interceptors=[
            # Health checks would drown the traces of work.
            aio_server_interceptor(filter_=negate(service_prefix("grpc."))),
            ContractInterceptor(own.deadline_seconds_max),
        ],
        options=[
            ("grpc.max_receive_message_length", 4 * 2**20),
            ("grpc.keepalive_time_ms", 30_000),
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


def _add_services(
    server: grpc.aio.Server,
    settings: Settings,
    own: ControlPlaneSettings,
    engine: AsyncEngine,
    notifications: Notifications,
    store: ObjectStore,
) -> None:
    heartbeat = own.stream_heartbeat_seconds
    job_service_pb2_grpc.add_JobServiceServicer_to_server(JobServicer(engine, notifications, heartbeat), server)
    log_service_pb2_grpc.add_LogServiceServicer_to_server(LogServicer(engine, notifications, heartbeat), server)
    attempt_service_pb2_grpc.add_AttemptServiceServicer_to_server(
        AttemptServicer(engine, settings.scheduler.lease_seconds), server
    )
    capacity_service_pb2_grpc.add_CapacityServiceServicer_to_server(
        CapacityServicer(engine, settings.scheduler.worker_lost_seconds), server
    )
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(DatasetServicer(engine, store), server)
    quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(QuotaServicer(engine), server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(engine, store), server)


def _bind(server: grpc.aio.Server, listen: str) -> int:
    try:
        return server.add_insecure_port(listen)
    except RuntimeError as error:
        raise RuntimeError(
            f"cannot listen on {listen}; expected a free host:port of this machine. Is another control plane running there?"
        ) from error


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
