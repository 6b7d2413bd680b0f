"""The standard health service (grpc.health.v1) for processes that serve nothing else."""

from __future__ import annotations

from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse


class HealthServer:
    """Answers health checks until it is stopped. Made by `serve_health`."""

    def __init__(self, server: aio.Server, servicer: Any, port: int) -> None:
        self._server = server
        self._servicer = servicer
        self.port = port
        """The port it listens on, also when port 0 was asked for."""

    async def set_serving(self, serving: bool) -> None:
        """Says from now on whether this process does its work."""
        await self._servicer.set("", _Status.SERVING if serving else _Status.NOT_SERVING)

    async def stop(self) -> None:
        """Says NOT_SERVING to whoever watches, then closes the port."""
        await self._servicer.enter_graceful_shutdown()
        await self._server.stop(grace=0.2)


async def serve_health(listen: str) -> HealthServer:
    """Starts answering health checks on `listen`, host:port, with NOT_SERVING.

    Raises:
        OSError: the port cannot be bound.
    """
    # The published stubs know only the blocking servicer.
    servicer = vars(health)["aio"].HealthServicer()
    await servicer.set("", _Status.NOT_SERVING)
    # Without this a second process could bind the same port, and checks would reach either.
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"cannot serve health checks on {listen}; expected a free port as host:port") from error
    await server.start()
    return HealthServer(server, servicer, port)
