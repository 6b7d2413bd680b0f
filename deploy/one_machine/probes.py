"""Real questions to running servers: each returns if the server does its work, and raises what is wrong if not."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from functools import cache
from typing import Any

import asyncpg
import boto3
from botocore.config import Config
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.settings import S3Settings
from deploy.one_machine.component import Probe

_SECONDS = 3.0
# Loopback is never behind a proxy, whatever the environment says.
_GRPC_OPTIONS = [("grpc.enable_http_proxy", 0)]
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NotHealthyError(Exception):
    """The server answers, but does not do its work."""


def grpc_health(address: str) -> Probe:
    """grpc.health.v1 says SERVING."""

    async def probe() -> None:
        async with aio.insecure_channel(address, _GRPC_OPTIONS) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise NotHealthyError(f"health is {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}")

    return _named(probe)


def temporal(address: str, namespace: str) -> Probe:
    """The frontend answers and knows the namespace, which it is taught only after it says SERVING."""
    # DescribeNamespaceRequest{namespace: 1}, by hand: the SDK would bring its whole runtime into the supervisor.
    request = b"\x0a" + bytes([len(namespace)]) + namespace.encode()

    async def probe() -> None:
        async with aio.insecure_channel(address, _GRPC_OPTIONS) as channel:
            describe = channel.unary_unary("/temporal.api.workflowservice.v1.WorkflowService/DescribeNamespace")
            await describe(request, timeout=_SECONDS)

    return _named(probe)


def postgres(dsn: str) -> Probe:
    """A connection with the password is accepted."""

    async def probe() -> None:
        connection = await asyncpg.connect(dsn, timeout=int(_SECONDS))
        await connection.close(timeout=_SECONDS)

    return _named(probe)


def http_ok(url: str) -> Probe:
    """A GET is answered with a status below 400."""

    def get() -> None:
        with _OPENER.open(url, timeout=_SECONDS) as response:
            response.read()

    return _in_thread(get)


def bucket(settings: S3Settings) -> Probe:
    """The bucket is there, for these keys."""
    client = cache(lambda: s3_client(settings))
    return _in_thread(lambda: client().head_bucket(Bucket=settings.bucket))


def s3_client(settings: S3Settings) -> Any:
    """A boto3 client that answers soon, one way or the other."""
    key, secret = settings.access_key_id, settings.secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        aws_access_key_id=key.get_secret_value() if key else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1}, proxies={}),
    )


def _in_thread(ask: Callable[[], object]) -> Probe:
    async def probe() -> None:
        await asyncio.to_thread(ask)

    return _named(probe)


def _named(probe: Probe) -> Probe:
    """The probe with errors that say in one line what was wrong."""

    async def named() -> None:
        try:
            await probe()
        except aio.AioRpcError as error:
            raise NotHealthyError(f"{error.code().name}: {error.details()}") from error
        except NotHealthyError:
            raise
        except Exception as error:
            raise NotHealthyError(f"{type(error).__name__}: {error}") from error

    return named
