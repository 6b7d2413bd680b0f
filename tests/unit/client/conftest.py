"""A real gRPC server inside the test process, and a TCP proxy that cuts its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from grpc import aio

Register = Callable[[aio.Server], None]
"""Adds servicers to a server."""
Serve = Callable[[Register], Awaitable[str]]
"""Starts a server; returns its address."""


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[aio.Server] = []

    async def start(register: Register) -> str:
        server = aio.server()
        register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(grace=None)


class CuttingProxy:
    """Forwards TCP; `cut` resets every connection that is open."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.connections = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, far_writer}
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        self._writers -= {writer, far_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # Cut: that is what this proxy is for.
    finally:
        writer.transport.abort()


@pytest.fixture
async def cutting_proxy() -> AsyncIterator[Callable[[str], Awaitable[tuple[CuttingProxy, str]]]]:
    proxies: list[CuttingProxy] = []

    async def start(target: str) -> tuple[CuttingProxy, str]:
        proxy = CuttingProxy(target)
        proxies.append(proxy)
        return proxy, await proxy.start()

    yield start
    for proxy in proxies:
        await proxy.stop()
