"""Callers who mean no good: without a credential, with garbage, with far too much, or with what a name must not hold."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.fuzz import credentials, methods
from benchmarks.hostile import groups, nested
from control_plane.app import ControlPlane
from control_plane.rpc.policy import POLICY, AttemptUse
from control_plane.settings import S3Settings
from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.audit.v1 import audit_service_pb2 as audit_pb
from headway.identity.v1 import identity_service_pb2 as identity_pb
from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.quotas.v1 import quota_service_pb2 as quotas_pb
from tests.integration.control_plane.callers import (
    ADMIN_TOKEN,
    PROJECT,
    WORKER_TOKEN,
    attempt_token,
    channel_to,
)
from tests.integration.control_plane.conftest import Api, new_id, refusal, refused, settings_of

BODIES = {"nothing": b"", "garbage": b"\xff" * 64, "five megabytes": b"\xff" * 5_000_000}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(autouse=True)
async def _alive_afterwards(api: Api) -> AsyncIterator[None]:
    """Whatever was done to it, the server still serves, and quickly."""
    yield
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    async with asyncio.timeout(5):
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        await api.quotas.ListQuotas(quotas_pb.ListQuotasRequest())


def _open(channel: grpc.aio.Channel, method: MethodDescriptor, body: bytes, **options: Any) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        return channel.stream_stream(path)(iter([body]), **options)
    if method.server_streaming:
        return channel.unary_stream(path)(body, **options)
    return channel.unary_unary(path)(body, **options)


async def _answer(call: Any) -> Any:
    """The refusal that a call of any kind ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _ended(call)
    return refusal(caught.value)


async def _ended(call: Any) -> None:
    if hasattr(call, "__await__"):
        await call
    else:
        async for _ in call:
            pass


def _credentials(job_id: str = "") -> Any:
    return credentials(ADMIN_TOKEN, WORKER_TOKEN, attempt_token(job_id or new_id(), 0))


@pytest.mark.parametrize("body", BODIES)
async def test_without_a_credential_no_method_looks_at_the_body(api: Api, body: str) -> None:
    async with channel_to(api.port, None) as channel:
        for method in methods():
            answer = await _answer(_open(channel, method, BODIES[body]))
            assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), method.full_name


async def test_what_is_longer_than_its_method_takes_is_refused(api: Api) -> None:
    held = _credentials()
    async with channel_to(api.port, None) as channel:
        for method in methods():
            name = f"{method.containing_service.full_name}/{method.name}"
            body = b"\0" * (POLICY[name].bytes_max + 1)
            answer = await _answer(_open(channel, method, body, metadata=held[name]))
            assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE"), name
            assert answer.metadata == {"bytes": str(len(body)), "maximum": str(POLICY[name].bytes_max)}


async def test_five_megabytes_are_too_much_for_every_method(api: Api) -> None:
    held = _credentials()
    async with channel_to(api.port, None) as channel:
        for method in methods():
            name = f"{method.containing_service.full_name}/{method.name}"
            answer = await _answer(_open(channel, method, BODIES["five megabytes"], metadata=held[name]))
            assert answer.code == grpc.StatusCode.RESOURCE_EXHAUSTED, name


async def test_what_is_longer_than_anything_is_not_read_to_its_end(api: Api) -> None:
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):  # the second is a bomb of 1,000 to 1
        call: Any = api.channel.unary_unary("/headway.jobs.v1.JobService/GetJob")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\0" * 64_000_000, compression=compression)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("depth", [101, 1_000, 20_000])
@pytest.mark.parametrize("shape", [nested, groups], ids=["messages", "groups"])
async def test_what_is_too_deep_is_refused(api: Api, shape: Any, depth: int) -> None:
    job_id, _ = await api.leased()
    # Fields of FinishPhase: 4 is the detail, a Struct, whose 1 is an entry, whose 2 is a Value, whose 5 is a Struct again.
    inner = shape(depth)
    if shape is nested:
        inner = b""
        for _ in range(depth):
            for number in (5, 2, 1):
                inner = bytes([number << 3 | 2]) + _varint(len(inner)) + inner
    body = attempts_pb.FinishPhaseRequest(job_id=job_id, attempt=1, phase=job_pb2.JOB_PHASE_TRAIN).SerializeToString()
    body += b"\x22" + _varint(len(inner)) + inner if shape is nested else inner
    async with channel_to(api.port, attempt_token(job_id, 1)) as channel:
        answer = await _answer(channel.unary_unary("/headway.attempts.v1.AttemptService/FinishPhase")(body))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def _varint(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


async def test_nesting_as_deep_as_the_wire_allows_is_no_fault_of_ours(api: Api) -> None:
    job_id, _ = await api.leased()
    detail: dict[str, Any] = {}
    for _ in range(30):
        detail = {"in": detail}
    request = attempts_pb.FinishPhaseRequest(job_id=job_id, attempt=1, phase=job_pb2.JOB_PHASE_TRAIN)
    request.detail.update(detail)
    await api.attempts.FinishPhase(request)
    assert (await api.get(job_id)).result["train"] == request.detail


_TEXT = "a\0b"


def _texts(descriptor: Descriptor, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """For every text of a message: its path, and what to make the message of so that only this one holds a NUL."""
    for field in descriptor.fields:
        entry = field.message_type
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (f"{field.name}[0]", {field.name: [_TEXT]}) if field.is_repeated else (field.name, {field.name: _TEXT})
        elif entry is not None and entry.GetOptions().map_entry:
            if entry.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING:
                value = entry.fields_by_name["value"]
                simple: Any = {} if value.message_type is not None else "" if value.type == FieldDescriptor.TYPE_STRING else 0
                yield f"{field.name}[{_TEXT!r}]", {field.name: {_TEXT: simple}}
        elif entry is not None and depth < 3 and not entry.full_name.startswith("google.protobuf."):
            for path, inner in _texts(entry, depth + 1):
                yield (
                    (f"{field.name}[0].{path}", {field.name: [inner]})
                    if field.is_repeated
                    else (f"{field.name}.{path}", {field.name: inner})
                )


async def test_nul_in_any_text_of_any_request_is_refused_by_its_path(api: Api) -> None:
    held = _credentials()
    tried = 0
    async with channel_to(api.port, None) as channel:

        async def check(method: MethodDescriptor, path: str, content: Any) -> None:
            name = f"{method.containing_service.full_name}/{method.name}"
            body = message_factory.GetMessageClass(method.input_type)(**content).SerializeToString()
            answer = await _answer(_open(channel, method, body, metadata=held[name]))
            assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), (name, content)
            # A service that judges every text itself names whatever else is wrong too; test_spec_attacks holds it to the path.
            if not POLICY[name].judges_text:
                assert answer.fields == [path], (name, content)

        for method in methods():
            checks = [check(method, path, content) for path, content in _texts(method.input_type)]
            tried += len(checks)
            await asyncio.gather(*checks)
    assert tried > 200


async def test_nul_deep_in_a_struct_is_refused_too(api: Api) -> None:
    job_id, _ = await api.leased()
    request = attempts_pb.FinishPhaseRequest(job_id=job_id, attempt=1, phase=job_pb2.JOB_PHASE_TRAIN)
    request.detail.update({"a": [{"b": "x\0"}], "c\0": 1})
    answer = await refused(api.attempts.FinishPhase(request))
    assert (answer.code, len(answer.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, 2)


async def test_metadata_beyond_measure_is_refused(api: Api) -> None:
    for size in (20_000, 64_000):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.identity.WhoAmI(identity_pb.WhoAmIRequest(), metadata=(("x-much", "y" * size),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_faults_beyond_measure_still_fit_into_the_reply(api: Api) -> None:
    items = [jobs_pb.BatchItem(name="x" * 500) for _ in range(1_000)]
    request = jobs_pb.BatchSubmitJobsRequest(request_id=new_id(), project=PROJECT, items=items)
    answer = await refused(api.jobs.BatchSubmitJobs(request))
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT
    assert len(answer.fields) >= 5
    assert answer.fields[0].startswith("items[0].")
    long = await refused(api.jobs.GetJob(jobs_pb.GetJobRequest(job_id="é" * 100_000)))
    assert (long.code, long.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["job_id"])


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_deadline_that_has_passed_is_exceeded(api: Api, seconds: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.identity.WhoAmI(identity_pb.WhoAmIRequest(), timeout=seconds)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("seconds", [None, 315_360_000.0])
async def test_no_deadline_and_ten_years_are_the_servers_maximum(
    api: Api, postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine, seconds: float | None
) -> None:
    # By a server with all the time it needs.
    job_id = await api.running()
    async with (
        ControlPlane(settings_of(postgres_dsn, s3_settings, deadline_seconds_max=0.3)) as running,
        Api(running.port, engine, s3_settings) as hurried,
        engine.connect() as connection,
    ):
        transaction = await connection.begin()
        await connection.exec_driver_sql(f"SELECT * FROM jobs WHERE job_id = '{job_id}' FOR UPDATE")  # noqa: S608 - our id
        request = jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job_id)
        answer = await refused(hurried.jobs.CancelJob(request, timeout=seconds))
        assert (answer.code, answer.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        [(code,)] = await api.sql("SELECT code FROM audit_records WHERE method LIKE '%CancelJob'")
        assert code == "DEADLINE_EXCEEDED"
        await transaction.rollback()


async def test_a_submit_cancelled_after_its_commit_happened_and_its_repeat_finds_it(api: Api) -> None:
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=await api.inputs())
    call = api.jobs.SubmitJob(request)
    waiting = asyncio.ensure_future(_ignored(call))
    async with asyncio.timeout(10):
        while not await api.sql("SELECT 1 FROM jobs"):
            pass
    call.cancel()
    await waiting
    job = (await api.jobs.SubmitJob(request)).job
    assert await api.sql("SELECT job_id::text FROM jobs") == [(job.job_id,)]


async def _ignored(call: Any) -> None:
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await call


UNKNOWN = (
    "/headway.jobs.v1.JobService/DropEverything",
    "/headway.jobs.v1.JobService/",
    "/headway.jobs.v1.JobService/getjob",
    "/HEADWAY.JOBS.V1.JOBSERVICE/GetJob",
    "//headway.jobs.v1.JobService/GetJob",
    "/headway.jobs.v1.JobService/GetJob/",
    "/headway.jobs.v1.JobService.GetJob",
    "/grpc.channelz.v1.Channelz/GetServers",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/x",
)


@pytest.mark.parametrize("path", UNKNOWN)
async def test_what_is_no_method_is_unimplemented_and_nothing_at_all_to_strangers(api: Api, path: str) -> None:
    answer = await _answer(api.channel.unary_unary(path)(b""))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD")
    async with channel_to(api.port, None) as channel:
        assert (await _answer(channel.unary_unary(path)(b""))).code == grpc.StatusCode.UNAUTHENTICATED


async def test_the_contract_is_shown_to_admins_only_unless_the_settings_say_otherwise(
    api: Api, postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine
) -> None:
    asked = b"\x3a\x00"  # list_services
    viewer = await api.acting_as("VIEWER")
    assert await anext(aiter(api.channel.stream_stream(REFLECTION)(iter([asked]))))
    answer = await _answer(viewer.channel.stream_stream(REFLECTION)(iter([asked])))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    async with (
        ControlPlane(settings_of(postgres_dsn, s3_settings, reflection="everyone")) as running,
        channel_to(running.port, viewer.token) as channel,
        channel_to(running.port, None) as nobody,
    ):
        assert await anext(aiter(channel.stream_stream(REFLECTION)(iter([asked]))))
        assert (await _answer(nobody.stream_stream(REFLECTION)(iter([asked])))).code == grpc.StatusCode.UNAUTHENTICATED


async def test_a_request_id_belongs_to_one_caller_project_and_request(api: Api) -> None:
    one, two = await api.acting_as("ORG_ADMIN"), await api.acting_as("ORG_ADMIN")
    first = quotas_pb.SetQuotaRequest(request_id=new_id())
    first.quota.project = PROJECT
    first.quota.max_accelerators["h200"] = 1
    await one.quotas.SetQuota(first)
    other_body = quotas_pb.SetQuotaRequest.FromString(first.SerializeToString())
    other_body.quota.max_accelerators["h200"] = 2
    answer = await refused(one.quotas.SetQuota(other_body))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    spec = await api.inputs()
    answer = await refused(
        one.jobs.SubmitJob(jobs_pb.SubmitJobRequest(request_id=first.request_id, project=PROJECT, spec=spec))
    )
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    # Another caller's ids are their own: they neither collide with mine nor tell of them.
    assert dict((await two.quotas.SetQuota(other_body)).quota.max_accelerators) == {"h200": 2}
    huge = quotas_pb.SetQuotaRequest(request_id="0" * 10_000)
    huge.quota.project = PROJECT
    answer = await refused(one.quotas.SetQuota(huge))
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["request_id"])


async def test_no_refusal_names_a_project_its_caller_is_no_member_of(api: Api) -> None:
    """A canary: the name of a project with everything in it, in no byte that a member of another one gets."""
    canary = f"canary-{uuid.uuid4().hex[:12]}"
    await api.sql("INSERT INTO projects (project, creator) VALUES (:project, 'x')", project=canary)
    job_id = (await api.submit(await api.inputs())).job_id
    await api.sql(
        "UPDATE jobs SET project = :project, job_set = :project WHERE job_id = :job_id", project=canary, job_id=job_id
    )
    await api.sql("INSERT INTO queue_nodes (kind, name) VALUES ('PROJECT', :project)", project=canary)
    stranger = await api.acting_as("MAINTAINER")
    held = bytearray()
    for method in methods():
        request: Any = message_factory.GetMessageClass(method.input_type)()
        for field in ("job_id", "other_job_id"):
            if field in method.input_type.fields_by_name:
                setattr(request, field, job_id)
        project = method.input_type.fields_by_name.get("project")
        if project is not None and project.message_type is None:
            request.project = PROJECT
        call = _open(stranger.channel, method, request.SerializeToString(), timeout=1)
        try:
            if method.server_streaming:
                async for answer in call:
                    held += answer
            else:
                held += await call
        except grpc.aio.AioRpcError as error:
            held += (error.details() or "").encode()
            held += b"".join(
                value if isinstance(value, bytes) else value.encode() for _, value in error.trailing_metadata() or ()
            )
    assert canary.encode() not in held
    log = await stranger.audit.ListAuditRecords(audit_pb.ListAuditRecordsRequest())
    assert canary.encode() not in log.SerializeToString()


class _Http2:
    """A client that speaks HTTP/2 frame by frame, as no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._ended = asyncio.create_task(_read_out(reader))

    @classmethod
    async def connected(cls, port: int) -> _Http2:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        connection = cls(reader, writer)
        connection.frame(4, 0, 0, b"")
        return connection

    def frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._writer.write(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload)

    async def ends_when(self, send: Callable[[], None], most: int) -> bool:
        """Sends on and on; says whether the server ended the connection before that was done so many times."""
        with contextlib.suppress(ConnectionError):
            for _ in range(most):
                send()
                await self._writer.drain()
                if self._ended.done():
                    break
        await asyncio.wait([self._ended], timeout=3)
        self._writer.close()
        return self._ended.done()


async def _read_out(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass


# A literal header without indexing, its name and value as they stand: `x: ` and 4,000 characters.
_HEADER = b"\x00\x01x" + b"\x7f\xa1\x1e" + b"y" * 4_000


async def test_a_flood_of_pings_ends_the_connection(api: Api) -> None:
    connection = await _Http2.connected(api.port)
    assert await connection.ends_when(lambda: connection.frame(6, 0, 0, b"12345678"), 100_000)


async def test_headers_without_end_are_kept_nowhere(api: Api) -> None:
    process = psutil.Process()
    connection = await _Http2.connected(api.port)
    before = process.memory_info().rss
    connection.frame(1, 0, 1, _HEADER)  # without END_HEADERS: more is promised, and comes, 80 MB of it
    await connection.ends_when(lambda: connection.frame(9, 0, 1, _HEADER), 20_000)
    assert process.memory_info().rss - before < 40 * 2**20


async def test_calls_opened_and_reset_at_once_leave_the_server_responsive(api: Api) -> None:
    viewer = await api.acting_as("VIEWER")
    for _ in range(20):
        calls = [viewer.identity.WhoAmI(identity_pb.WhoAmIRequest()) for _ in range(100)]
        for call in calls:
            call.cancel()
        await asyncio.gather(*(_ignored(call) for call in calls))
    began = time.monotonic()
    await viewer.identity.WhoAmI(identity_pb.WhoAmIRequest())
    assert time.monotonic() - began < 5


def test_the_methods_of_this_file_are_all_that_there_are() -> None:
    assert {f"{method.containing_service.full_name}/{method.name}" for method in methods()} == {
        name for name in POLICY if name.startswith("headway.")
    }
    assert any(rule.attempt is AttemptUse.WRITES for rule in POLICY.values())
