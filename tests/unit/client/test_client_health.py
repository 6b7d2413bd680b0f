"""The health server says what it is told, tells watchers, and refuses a port in use."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headway_client.health import serve_health

_Status = health_pb2.HealthCheckResponse


async def test_check_and_watch_follow_what_is_set() -> None:
    health = await serve_health("127.0.0.1:0")
    async with aio.insecure_channel(f"127.0.0.1:{health.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert (await stub.Check(request)).status == _Status.NOT_SERVING
        watch = stub.Watch(request)
        assert (await watch.read()).status == _Status.NOT_SERVING
        await health.set_serving(True)
        assert (await watch.read()).status == _Status.SERVING
        assert (await stub.Check(request)).status == _Status.SERVING
        await health.stop()
        assert (await watch.read()).status == _Status.NOT_SERVING


async def test_other_services_are_unknown() -> None:
    health = await serve_health("127.0.0.1:0")
    async with aio.insecure_channel(f"127.0.0.1:{health.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    await health.stop()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_port_in_use_is_refused_by_name() -> None:
    health = await serve_health("127.0.0.1:0")
    with pytest.raises(OSError, match=f"127.0.0.1:{health.port}.*free port"):
        await serve_health(f"127.0.0.1:{health.port}")
    await health.stop()
