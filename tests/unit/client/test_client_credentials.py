"""Whom a client calls as: the token on every call, over connections that keep it secret, and from where it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from headway.jobs.v1 import job_pb2, job_service_pb2_grpc
from headway.jobs.v1 import job_service_pb2 as jobs
from headway_client.aio_client import AsyncClient
from headway_client.client import Client
from headway_client.connection import NoAddressError, resolve
from headway_client.credentials import CredentialsError, FileToken, Tls, is_loopback
from headway_client.retries import RetryPolicy
from tests.credentials import Authority
from tests.unit.client.conftest import Serve
from tests.unit.client.servicers import PartialJobServicer

QUICK = RetryPolicy(backoff_seconds=0.001, backoff_seconds_max=0.01)
_Context = aio.ServicerContext[Any, Any]


class Jobs(PartialJobServicer):
    """Remembers how every call was authorised; believes the tokens in `good`."""

    def __init__(self, *good: str) -> None:
        self.seen: list[tuple[str, str]] = []
        self.good = set(good)

    async def _admit(self, method: str, context: _Context) -> None:
        shown = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        assert len(shown) <= 1
        token = shown[0].removeprefix("Bearer ") if shown else ""
        self.seen.append((method, token))
        if self.good and token not in self.good:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

    async def GetJob(self, request: jobs.GetJobRequest, context: _Context) -> jobs.GetJobResponse:  # noqa: N802  the generated name
        await self._admit("GetJob", context)
        return jobs.GetJobResponse(job=job_pb2.Job(job_id=request.job_id))

    async def WatchEvents(  # noqa: N802  the generated name
        self, request: jobs.WatchEventsRequest, context: _Context
    ) -> AsyncIterator[jobs.WatchEventsResponse]:
        await self._admit("WatchEvents", context)
        if request.start_cursor:
            yield jobs.WatchEventsResponse(cursor="2", end_of_stream=True)
        else:
            yield jobs.WatchEventsResponse(cursor="1")
            # As a server that cuts a stream whose credential has ended.
            self.good.discard("first")
            await self._admit("cut", context)

    def register(self, server: aio.Server) -> None:
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self, server)


async def test_every_call_and_stream_carries_the_token_once(serve: Serve) -> None:
    servicer = Jobs()
    address = await serve(servicer.register)

    def blocking() -> None:
        with Client(address, token="secret", retries=QUICK) as client:
            client.get_job("j")
            list(client.watch_events(job_id="j"))

    await asyncio.to_thread(blocking)
    async with AsyncClient(address, token="secret", retries=QUICK) as client:
        await client.get_job("j")
        _ = [batch async for batch in client.watch_events(job_id="j")]
    assert {token for _, token in servicer.seen} == {"secret"}
    assert [method for method, _ in servicer.seen].count("GetJob") == 2


async def test_without_a_token_none_is_sent(serve: Serve) -> None:
    servicer = Jobs()
    with Client(await serve(servicer.register)) as client:
        await asyncio.to_thread(client.get_job, "j")
    assert servicer.seen == [("GetJob", "")]


async def test_a_stream_outlives_its_token_when_there_is_a_newer_one(serve: Serve) -> None:
    servicer = Jobs("first", "second")
    tokens = ["first"]
    async with AsyncClient(await serve(servicer.register), token=lambda: tokens[-1], retries=QUICK) as client:
        cursors: list[str] = []
        async for batch in client.watch_events(job_id="j"):
            cursors.append(batch.cursor)
            tokens.append("second")
    assert cursors == ["1", "2"]
    assert servicer.seen[-1] == ("WatchEvents", "second")


@pytest.mark.parametrize("address", ["plane.example:443", "10.0.0.1:443", "[2001:db8::1]:443", "localhost.example:1"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_token_is_not_sent_in_plain_text_to_another_machine(kind: type[Client | AsyncClient], address: str) -> None:
    with pytest.raises(CredentialsError, match="plain text"):
        kind(address, token="secret")
    closing = kind(address, token="secret", allow_insecure=True).close()
    if closing is not None:
        await closing


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1", "unix:/run/headway.sock"])
def test_this_machine_may_be_told(address: str) -> None:
    assert is_loopback(address)


async def test_tls_keeps_the_token_and_mutual_tls_shows_a_certificate(tmp_path: Path) -> None:
    authority = Authority("ours")
    server_pem, client_pem = authority.server(), authority.client("spiffe://headway/service/nightly")
    servicer, server = Jobs(), aio.server()
    servicer.register(server)
    credentials = grpc.ssl_server_credentials([(server_pem.key, server_pem.chain)], authority.pem, require_client_auth=True)
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    files = {"ca": authority.pem, "certificate": client_pem.chain, "key": client_pem.key}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tls = Tls.from_files(**{name: tmp_path / name for name in files})
    with Client(f"localhost:{port}", token="secret", tls=tls) as client:
        await asyncio.to_thread(client.get_job, "j")
    async with AsyncClient(f"localhost:{port}", token="secret", tls=tls) as client:
        await client.get_job("j")
    assert servicer.seen == [("GetJob", "secret")] * 2
    await server.stop(None)
    with pytest.raises(CredentialsError, match="go together"):
        Tls.from_files(certificate=tmp_path / "certificate")


def test_a_token_file_is_read_anew_when_it_changes_and_believed_while_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    token = FileToken(path)
    assert token() == "first"
    newer = tmp_path / "newer"
    newer.write_text("second\n")
    newer.replace(path)
    assert token() == "second"
    path.unlink()
    assert token() == "second"


@pytest.mark.parametrize("content", [b"", b"  \n", b"two words", b"two\nlines", b"\xff", "ümlaut".encode()])
def test_a_file_that_holds_no_token_is_said_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(CredentialsError, match="holds no token") as caught:
        FileToken(path)
    assert "words" not in str(caught.value)


def test_a_token_is_found_in_its_order_and_the_administrators_goes_to_no_other_address(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"control_plane": "127.0.0.1:7"}')
    (tmp_path / "admin.token").write_text("admin\n")
    (tmp_path / "file").write_text("of-file\n")
    (tmp_path / "named").write_text("of-name\n")

    def found(address: str | None, environment: dict[str, str], token_file: Path | None = None) -> str | None:
        token = resolve(address, environment, tmp_path, token_file).credentials.token
        return None if token is None else token()

    both = {"HEADWAY_TOKEN": "of-environment", "HEADWAY_TOKEN_FILE": str(tmp_path / "named")}
    assert found(None, {}) == "admin"
    assert found("127.0.0.1:7", {}) == "admin"
    assert found("127.0.0.1:8", {}) is None
    assert found(None, {"HEADWAY_ADDRESS": "elsewhere:7"}) is None
    assert found(None, {"HEADWAY_TOKEN_FILE": both["HEADWAY_TOKEN_FILE"]}) == "of-name"
    assert found(None, both) == "of-environment"
    assert found(None, both, tmp_path / "file") == "of-file"
    with pytest.raises(CredentialsError, match="cannot be read"):
        found(None, {}, tmp_path / "nothing")


def test_tls_is_chosen_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "ca").write_bytes(b"pem")
    assert resolve("h:1", {}, tmp_path).credentials.tls is None
    assert resolve("h:1", {"HEADWAY_TLS": "1"}, tmp_path).credentials.tls == Tls()
    named = resolve("h:1", {"HEADWAY_TLS_CA_FILE": str(tmp_path / "ca")}, tmp_path)
    assert named.credentials.tls == Tls(root_certificates=b"pem")
    assert resolve("h:1", {"HEADWAY_ALLOW_INSECURE": "1"}, tmp_path).credentials.allow_insecure


def test_a_token_variable_that_is_empty_makes_nobody_the_administrator(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"control_plane": "127.0.0.1:1"}')
    (tmp_path / "admin.token").write_text("hw_admin")
    with pytest.raises(NoAddressError, match="HEADWAY_TOKEN is set and empty"):
        resolve(None, {"HEADWAY_TOKEN": ""}, tmp_path)
