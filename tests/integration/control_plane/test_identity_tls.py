"""TLS and client certificates against the real server: who gets through, and as whom."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.identity.tls import TlsFilesError, server_credentials
from control_plane.settings import S3Settings, TlsSettings
from deploy.one_machine import ports
from headway.capacity.v1 import capacity_service_pb2 as capacity_pb
from headway.capacity.v1 import capacity_service_pb2_grpc
from headway.identity.v1 import identity_service_pb2 as pb
from headway.identity.v1 import identity_service_pb2_grpc
from headway.projects.v1 import project_service_pb2 as projects_pb
from tests.credentials import Authority, Certificate, Issuer
from tests.integration.control_plane.conftest import refused
from tests.integration.control_plane.identity_world import (
    ADMIN,
    SECRET_KEY,
    WORKER,
    Bearing,
    Caller,
    World,
    code_of,
    identity_settings,
    oidc_settings,
    world,
)
from tests.integration.control_plane.test_capacity import node
from tests.waiting import until

UNAUTHENTICATED, UNAVAILABLE = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE
SERVERS, CLIENTS = Authority("servers"), Authority("clients")
GPU_1 = CLIENTS.client("spiffe://headway/worker/gpu-1")


@dataclass
class Secured:
    """A world behind TLS: one port without client certificates, one that demands them."""

    here: World
    tls: TlsSettings
    certificates_port: int

    async def caller(
        self,
        certificate: Certificate | None = None,
        token: str = "",
        *,
        authority: Authority = SERVERS,
        open_port: bool = False,
    ) -> Caller:
        port = self.here.control_plane.port if open_port else self.certificates_port
        credentials = grpc.ssl_channel_credentials(
            authority.pem,
            None if certificate is None else certificate.key,
            None if certificate is None else certificate.chain,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        channel = grpc.aio.secure_channel(f"localhost:{port}", credentials, interceptors=[Bearing(metadata)])
        return Caller(await self.here.exits.enter_async_context(channel))


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest_asyncio.fixture
async def secured(postgres_dsn: str, s3_settings: S3Settings, issuer: Issuer, tmp_path: Path) -> AsyncIterator[Secured]:
    certificate_file, key_file = SERVERS.server().write(tmp_path, "server")
    (tmp_path / "clients.pem").write_bytes(CLIENTS.pem)
    port = ports.choose(["certificates"], {}, {})["certificates"]
    tls = TlsSettings(
        certificate_file=certificate_file,
        key_file=key_file,
        client_ca_file=tmp_path / "clients.pem",
        client_certificate_listen=f"127.0.0.1:{port}",
    )
    async with world(postgres_dsn, s3_settings, identity_settings(oidc=oidc_settings(issuer)), tls) as here:
        yield Secured(here, tls, port)


async def test_a_certificate_says_who_calls(secured: Secured) -> None:
    worker = await (await secured.caller(GPU_1)).whoami()
    assert (worker.subject, worker.credential_kind) == ("worker:gpu-1", pb.CREDENTIAL_KIND_CERTIFICATE)
    assert list(worker.organisation_roles) == [projects_pb.ROLE_WORKER]
    assert worker.HasField("expire_time")
    admin = await secured.caller(token=ADMIN, open_port=True)
    await admin.set_member("support", "service:support/import", "SUBMITTER")
    service = await secured.caller(CLIENTS.client("spiffe://headway/service/support/import"))
    me = await service.whoami()
    assert (me.subject, dict(me.project_roles)) == ("service:support/import", {"support": projects_pb.ROLE_SUBMITTER})


async def test_a18_a_worker_calls_nothing_of_users(secured: Secured) -> None:
    worker = await secured.caller(GPU_1)
    calls = (worker.create_token("support"), worker.create_project("x"), worker.set_member("", "user:x", "ORG_ADMIN"))
    assert [await code_of(call) for call in calls] == [grpc.StatusCode.PERMISSION_DENIED] * 3
    listed = worker.projects.ListProjects(projects_pb.ListProjectsRequest())
    assert await code_of(listed) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_certificate_registers_its_own_worker_alone_or_as_a_pool(secured: Secured) -> None:
    capacity = capacity_service_pb2_grpc.CapacityServiceStub((await secured.caller(GPU_1)).channel)
    own, other = node("gpu-1"), node("gpu-2")
    assert (await capacity.RegisterWorker(capacity_pb.RegisterWorkerRequest(worker=own))).heartbeat_seconds > 0
    assert (await capacity.RegisterNodePool(capacity_pb.RegisterNodePoolRequest(pool="a", nodes=[own]))).heartbeat_seconds > 0
    for call in (
        capacity.RegisterWorker(capacity_pb.RegisterWorkerRequest(worker=other)),
        capacity.RegisterNodePool(capacity_pb.RegisterNodePoolRequest(pool="a", nodes=[own, other])),
    ):
        answer = await refused(call)
        assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        assert "it cannot register worker gpu-2" in answer.message


async def test_a18_certificates_that_name_nobody_here(secured: Secured) -> None:
    for certificate in (
        CLIENTS.client(),
        CLIENTS.client("spiffe://elsewhere/worker/gpu-1"),
        CLIENTS.client("spiffe://headway/user/alice"),
        CLIENTS.client("spiffe://headway/worker/gpu-1", "spiffe://headway/service/admin"),
        CLIENTS.client(dns=["gpu-1"]),
    ):
        assert (await refused((await secured.caller(certificate)).whoami())).code is UNAUTHENTICATED


async def test_a18_certificates_that_tls_refuses(secured: Secured) -> None:
    for certificate in (
        None,
        Authority("clients").client("spiffe://headway/worker/gpu-1"),  # the name of our authority, the key of another
        SERVERS.client("spiffe://headway/worker/gpu-1"),
        CLIENTS.client("spiffe://headway/worker/gpu-1", days=-1),
    ):
        assert await code_of((await secured.caller(certificate)).whoami()) is UNAVAILABLE
    # And on the other side: a client that does not know our authority sends nothing.
    assert await code_of((await secured.caller(GPU_1, authority=CLIENTS)).whoami()) is UNAVAILABLE
    # The port without client certificates takes no notice of them.
    assert (await refused((await secured.caller(GPU_1, open_port=True)).whoami())).code is UNAUTHENTICATED


async def test_a19_certificate_and_token_are_of_one(secured: Secured) -> None:
    both = await (await secured.caller(GPU_1, WORKER)).whoami()
    assert both.subject == "worker:gpu-1"
    gpu_2 = CLIENTS.client("spiffe://headway/worker/gpu-2")
    for certificate, token in ((gpu_2, WORKER), (GPU_1, ADMIN), (CLIENTS.client("spiffe://elsewhere/x"), ADMIN)):
        assert (await refused((await secured.caller(certificate, token)).whoami())).code is UNAUTHENTICATED
    admin = CLIENTS.client("spiffe://headway/service/admin")
    assert (await (await secured.caller(admin, ADMIN)).whoami()).subject == "service:admin"


async def test_a19_the_credential_of_an_attempt_is_its_workers(secured: Secured) -> None:
    here = secured.here
    await here.offer("gpu-1")
    tokens, ends = AttemptTokens(SECRET_KEY.encode()), datetime.now(UTC) + timedelta(minutes=5)
    own, others, unleased = await here.job(leased_to="gpu-1"), await here.job(leased_to="gpu-2"), await here.job()
    for job in (own, unleased):
        me = await (await secured.caller(GPU_1, tokens.issue(job, 1, ends))).whoami()
        assert me.subject == f"attempt:{job}/1"
    stolen = await secured.caller(GPU_1, tokens.issue(others, 1, ends))
    assert (await refused(stolen.whoami())).code is UNAUTHENTICATED
    service = CLIENTS.client("spiffe://headway/service/admin")
    assert (await refused((await secured.caller(service, tokens.issue(own, 1, ends))).whoami())).code is UNAUTHENTICATED


async def test_a21_a_token_bound_to_a_certificate_is_good_with_that_one_only(secured: Secured, issuer: Issuer) -> None:
    laptop, other = CLIENTS.client(), CLIENTS.client()
    thumbprint = base64.urlsafe_b64encode(laptop.sha256).decode().rstrip("=")
    bound = issuer.token(cnf={"x5t#S256": thumbprint})
    assert (await (await secured.caller(laptop, bound)).whoami()).subject == "user:alice"
    for caller in (
        await secured.caller(other, bound),
        await secured.caller(token=bound, open_port=True),
        await secured.caller(laptop, issuer.token()),
    ):
        assert (await refused(caller.whoami())).code is UNAUTHENTICATED
    assert (await (await secured.caller(token=issuer.token(), open_port=True)).whoami()).subject == "user:alice"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")  # That they are out of use is why they are tried.
async def test_a22_plain_text_and_old_versions_of_tls_are_refused(secured: Secured) -> None:
    for port in (secured.here.control_plane.port, secured.certificates_port):
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
            assert await code_of(stub.WhoAmI(pb.WhoAmIRequest())) is UNAVAILABLE
    port = secured.here.control_plane.port
    for version, outcome in (
        (ssl.TLSVersion.TLSv1, "the server hung up"),
        (ssl.TLSVersion.TLSv1_1, "the server hung up"),
        (ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
    ):
        assert await asyncio.to_thread(_handshake, port, version) == outcome


async def test_certificates_are_exchanged_without_a_restart(secured: Secured, tmp_path: Path) -> None:
    caller = await secured.caller(GPU_1)
    await caller.whoami()
    renewed = Authority("servers, renewed")
    # Half of an exchange: the key of one, the certificate of the other. The former pair stays in use.
    new = renewed.server()
    _replace(secured.tls.certificate_file, new.chain)
    assert (await (await secured.caller(GPU_1)).whoami()).subject == "worker:gpu-1"
    _replace(secured.tls.key_file, new.key)

    async def speaks_the_new_one() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return (await (await secured.caller(GPU_1, authority=renewed)).whoami()).subject == "worker:gpu-1"
        return False

    await until(speaks_the_new_one)
    assert await code_of((await secured.caller(GPU_1)).whoami()) is UNAVAILABLE
    # What was open goes on; and the clients' authorities are exchanged likewise.
    assert (await caller.whoami()).subject == "worker:gpu-1"
    other_clients = Authority("clients, renewed")
    assert secured.tls.client_ca_file is not None
    _replace(secured.tls.client_ca_file, other_clients.pem)
    newcomer = other_clients.client("spiffe://headway/worker/gpu-9")
    assert (await (await secured.caller(newcomer, authority=renewed)).whoami()).subject == "worker:gpu-9"
    assert await code_of((await secured.caller(GPU_1, authority=renewed)).whoami()) is UNAVAILABLE


def test_files_that_do_not_belong_together_are_named_at_the_start(tmp_path: Path) -> None:
    certificate_file, _ = SERVERS.server().write(tmp_path, "one")
    _, key_file = SERVERS.server().write(tmp_path, "two")
    with pytest.raises(TlsFilesError, match=r"one\.pem.*expected a certificate with its key"):
        server_credentials(TlsSettings(certificate_file=certificate_file, key_file=key_file), certificate_demanded=False)
    with pytest.raises(OSError, match="missing"):
        server_credentials(TlsSettings(certificate_file=tmp_path / "missing", key_file=key_file), certificate_demanded=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"client_certificate_required": True},
        {"client_certificate_listen": "127.0.0.1:1"},
        {"client_ca_file": "ca.pem"},
    ],
)
def test_client_certificates_take_an_authority_and_a_port(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected both or neither"):
        TlsSettings.model_validate({"certificate_file": "c.pem", "key_file": "k.pem", **fields})


def _replace(path: Path, content: bytes) -> None:
    """As whoever renews certificates does it: at once."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def _handshake(port: int, version: ssl.TLSVersion) -> str:
    """What comes of speaking one version only: the version, or why not, in the words of OpenSSL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=SERVERS.pem.decode())
    # Without this the client itself would not speak what the server is to refuse.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            return str(wrapped.version())
    except ConnectionResetError:
        return "the server hung up"
    except ssl.SSLError as error:
        hung_up = {"UNEXPECTED_EOF_WHILE_READING", "TLSV1_ALERT_PROTOCOL_VERSION"}
        return "the server hung up" if error.reason in hung_up else str(error.reason)
