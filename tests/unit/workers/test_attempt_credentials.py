"""The tokens of attempts: asked for once, renewed in time, asked for anew when they are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from control_plane.settings import ControlPlaneSettings, MissingSettingError, Settings, WorkerSettings
from headway.attempts.v1 import attempt_service_pb2 as attempts
from headway.attempts.v1 import attempt_service_pb2_grpc
from headway.identity.v1 import identity_service_pb2 as identity
from headway.identity.v1 import identity_service_pb2_grpc
from headway_client.credentials import Credentials, CredentialsError
from headway_client.errors import HeadwayError
from workers.attempt_credentials import AttemptCredentials, IssuedToken
from workers.control_plane import ControlPlane

_JOB = "2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11"
_Context = aio.ServicerContext[Any, Any]


class Issuer:
    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.now = 0.0
        self.wait = asyncio.Event()
        self.wait.set()
        self.refuse = False

    async def issue(self, job_id: str, attempt: int) -> IssuedToken:
        self.asked.append((job_id, attempt))
        await self.wait.wait()
        if self.refuse:
            raise HeadwayError(grpc.StatusCode.FAILED_PRECONDITION, "no", reason="STALE_ATTEMPT")
        return IssuedToken(f"token-{len(self.asked)}", 100.0)

    def credentials(self) -> AttemptCredentials:
        return AttemptCredentials(self.issue, lambda: self.now)


async def test_a_token_is_kept_for_its_attempt_and_replaced_before_it_ends() -> None:
    issuer = Issuer()
    tokens = issuer.credentials()
    assert [await tokens.token("j", 1), await tokens.token("j", 1)] == ["token-1", "token-1"]
    assert await tokens.token("j", 2) == "token-2"
    issuer.now = 79.0
    assert await tokens.token("j", 1) == "token-1"
    issuer.now = 81.0
    assert await tokens.token("j", 1) == "token-3"
    assert issuer.asked == [("j", 1), ("j", 2), ("j", 1)]


async def test_many_who_need_a_token_ask_once_and_one_who_gives_up_disturbs_nobody() -> None:
    issuer = Issuer()
    tokens = issuer.credentials()
    issuer.wait.clear()
    waiting = [asyncio.create_task(tokens.token("j", 1)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    issuer.wait.set()
    assert await asyncio.gather(*waiting[1:]) == ["token-1"] * 4
    assert len(issuer.asked) == 1


async def test_a_refusal_is_told_and_not_kept() -> None:
    issuer = Issuer()
    tokens = issuer.credentials()
    issuer.refuse = True
    with pytest.raises(HeadwayError):
        await tokens.token("j", 1)
    issuer.refuse = False
    assert await tokens.token("j", 1) == "token-2"


async def test_only_the_token_that_was_refused_is_forgotten() -> None:
    issuer = Issuer()
    tokens = issuer.credentials()
    first = await tokens.token("j", 1)
    tokens.refused("j", 1, first)
    second = await tokens.token("j", 1)
    tokens.refused("j", 1, first)
    assert await tokens.token("j", 1) == second == "token-2"


class Service(identity_service_pb2_grpc.IdentityServiceServicer, attempt_service_pb2_grpc.AttemptServiceServicer):
    """Gives tokens to the worker, and believes the newest `good` ones of them."""

    def __init__(self) -> None:
        self.issued = 0
        self.seen: list[tuple[str, str]] = []
        self.accepts = {"token-1"}

    def _note(self, method: str, context: _Context) -> str:
        [shown] = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        self.seen.append((method, str(shown)))
        return str(shown).removeprefix("Bearer ")

    async def IssueAttemptToken(  # noqa: N802  the generated name
        self, request: identity.IssueAttemptTokenRequest, context: _Context
    ) -> identity.IssueAttemptTokenResponse:
        self._note("issue", context)
        self.issued += 1
        ends = Timestamp()
        ends.GetCurrentTime()
        ends.seconds += 3_600
        return identity.IssueAttemptTokenResponse(secret=f"token-{self.issued}", expire_time=ends)

    async def RenewLease(  # noqa: N802  the generated name
        self, request: attempts.RenewLeaseRequest, context: _Context
    ) -> attempts.RenewLeaseResponse:
        if self._note("renew", context) not in self.accepts:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        return attempts.RenewLeaseResponse(remaining_seconds=7.0)


@pytest.fixture
async def served() -> AsyncIterator[tuple[Service, str]]:
    server = aio.server()
    service = Service()  # pyright: ignore[reportAbstractUsage] - only what these tests call
    identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(service, server)
    attempt_service_pb2_grpc.add_AttemptServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_a_worker_asks_as_itself_and_writes_as_the_attempt(served: tuple[Service, str]) -> None:
    service, address = served
    plane = ControlPlane(address, Credentials(lambda: "hw_worker"))
    assert await plane.renew_lease(_JOB, 1, "l", deadline_seconds=5) == 7.0
    assert await plane.renew_lease(_JOB, 1, "l", deadline_seconds=5) == 7.0
    assert service.seen == [("issue", "Bearer hw_worker"), ("renew", "Bearer token-1"), ("renew", "Bearer token-1")]
    await plane.close()


async def test_a_token_that_is_not_accepted_any_more_is_asked_for_once_more(served: tuple[Service, str]) -> None:
    service, address = served
    plane = ControlPlane(address, Credentials(lambda: "hw_worker"))
    await plane.renew_lease(_JOB, 1, "l", deadline_seconds=5)
    service.accepts = {"token-2"}
    assert await plane.renew_lease(_JOB, 1, "l", deadline_seconds=5) == 7.0
    service.accepts = set()
    with pytest.raises(HeadwayError) as caught:
        await plane.renew_lease(_JOB, 1, "l", deadline_seconds=5)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert service.issued == 3
    await plane.close()


async def test_without_credentials_a_worker_does_not_start() -> None:
    address = ControlPlaneSettings(address="127.0.0.1:1")
    with pytest.raises(MissingSettingError, match=r"worker\.token"):
        ControlPlane.of(Settings(control_plane=address), "the worker")


async def test_a_worker_sends_no_token_in_plain_text_to_another_machine() -> None:
    def settings(**worker: Any) -> Settings:
        return Settings(control_plane=ControlPlaneSettings(address="plane.example:1"), worker=WorkerSettings(**worker))

    with pytest.raises(CredentialsError, match="plain text"):
        ControlPlane.of(settings(token="hw_worker"), "the worker")
    await ControlPlane.of(settings(token="hw_worker", allow_insecure=True), "the worker").close()
