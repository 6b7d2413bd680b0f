"""Callers of a control plane under test: an admin of the organisation, a worker, and any attempt."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.identity.service_tokens import bootstrap_token_id, new_secret, secret_sha256
from control_plane.settings import BootstrapToken, IdentitySettings

PROJECT = "support"
OTHER_PROJECT = "research"

SECRET_KEY = "a key of the tests, with 32 characters and more"
ADMIN_TOKEN = new_secret(bootstrap_token_id("admin"))
WORKER_TOKEN = new_secret(bootstrap_token_id("worker"))
IDENTITY = IdentitySettings(
    secret_key=SECRET_KEY,  # pyright: ignore[reportArgumentType] - pydantic makes it secret
    bootstrap_tokens=(
        BootstrapToken(name="admin", role="ORG_ADMIN", secret_sha256=secret_sha256(ADMIN_TOKEN).hex()),
        BootstrapToken(name="worker", role="WORKER", secret_sha256=secret_sha256(WORKER_TOKEN).hex()),
    ),
    bootstrap_projects=(PROJECT, OTHER_PROJECT),
)
"""Who is believed from the start: an admin of the organisation and a worker, whose tokens are above."""

_ATTEMPTS = AttemptTokens(SECRET_KEY.encode())
# What workers write with the credential of the attempt they write for, and what they call with their own.
_OF_ATTEMPTS = ("/headway.attempts.", "RegisterModelVersion", "RecordMirror", "AppendLogs")
_OF_WORKERS = ("RegisterWorker", "RegisterNodePool", "IssueAttemptToken", "BatchRequestLeases", "BatchFinishJobs")


def attempt_token(job_id: str, attempt: int, seconds: float = 600) -> str:
    """The credential of an attempt, as the server would issue it."""
    return _ATTEMPTS.issue(job_id, attempt, datetime.now(UTC) + timedelta(seconds=seconds))


def channel_to(port: int, token: str | None, engine: AsyncEngine | None = None) -> grpc.aio.Channel:
    """A channel that sends a credential with every call; with an `engine`, workers' calls go with a worker's or attempt's."""
    interceptors: Any = [_Unary(token, engine), _Stream(token, engine), _BothStream(token, engine)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors)


class _Credentials:
    def __init__(self, token: str | None, engine: AsyncEngine | None) -> None:
        self._token = token
        self._engine = engine

    async def _with(self, details: grpc.aio.ClientCallDetails, request: Any) -> grpc.aio.ClientCallDetails:
        method = str(details.method)  # bytes, whatever its type says
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        token = self._token
        if self._engine is not None and any(name in method for name in _OF_WORKERS):
            token = WORKER_TOKEN
        elif self._engine is not None and any(name in method for name in _OF_ATTEMPTS):
            token = await self._of_attempt(self._engine, request)
        if token is not None and "authorization" not in metadata:
            metadata.add("authorization", f"Bearer {token}")
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )

    async def _of_attempt(self, engine: AsyncEngine, request: Any) -> str:
        try:
            job_id = str(uuid.UUID(getattr(request, "job_id", "")))
        except ValueError:
            return attempt_token(str(uuid.uuid4()), 0)
        if "attempt" in request.DESCRIPTOR.fields_by_name:
            return attempt_token(job_id, max(request.attempt, 0))
        async with engine.connect() as connection:
            query = text("SELECT attempt FROM jobs WHERE job_id = :job_id")
            return attempt_token(job_id, (await connection.execute(query, {"job_id": job_id})).scalar() or 0)


class _Unary(_Credentials, grpc.aio.UnaryUnaryClientInterceptor):  # pyright: ignore[reportMissingTypeArgument] - not subscriptable
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(await self._with(client_call_details, request), request)


class _Stream(_Credentials, grpc.aio.UnaryStreamClientInterceptor):  # pyright: ignore[reportMissingTypeArgument] - as above
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(await self._with(client_call_details, request), request)


class _BothStream(_Credentials, grpc.aio.StreamStreamClientInterceptor):  # pyright: ignore[reportMissingTypeArgument] - as above
    async def intercept_stream_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        first, rest = await _first_of(request_iterator)
        return await continuation(await self._with(client_call_details, first), rest)


async def _first_of(requests: Any) -> tuple[Any, AsyncIterator[Any]]:
    """The first request, which says whose credential is needed, and all of them."""
    iterator = aiter(requests) if hasattr(requests, "__aiter__") else _each(requests)
    first = await anext(iterator, None)

    async def all_of_them() -> AsyncIterator[Any]:
        if first is not None:
            yield first
        async for request in iterator:
            yield request

    return first, all_of_them()


async def _each(requests: Any) -> AsyncIterator[Any]:
    for request in requests:
        yield request
