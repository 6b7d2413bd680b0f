"""The server as operators meet it: grpcurl, health, garbage, outages, and the weight of the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import create_async_engine

from control_plane.app import SERVICES, ControlPlane
from control_plane.db.engine import asyncpg_url
from control_plane.db.migrate import upgrade
from control_plane.db.tables import metadata
from control_plane.settings import S3Settings
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.jobs.v1 import job_service_pb2_grpc
from tests.integration.control_plane.callers import ADMIN_TOKEN, IDENTITY, PROJECT, channel_to
from tests.integration.control_plane.conftest import Api, refusal, refused

BIN = Path(sys.executable).parent


def _methods() -> list[MethodDescriptor]:
    pool = descriptor_pool.Default()
    return [method for name in SERVICES for method in pool.FindServiceByName(name).methods]


async def _grpcurl(*arguments: str, token: str = ADMIN_TOKEN) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(BIN / "grpcurl", "-plaintext", "-H", f"authorization: Bearer {token}"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_grpcurl_lists_describes_and_calls_everything(api: Api, control_plane: ControlPlane) -> None:
    address = f"127.0.0.1:{control_plane.port}"
    _, listed = await _grpcurl(address, "list")
    assert set(SERVICES) | {"grpc.health.v1.Health"} <= set(listed.split()), listed
    await api.inputs()
    submit = {
        "request_id": "6a0d6a2e-7d0f-4c3c-8f55-1d1a1a1f7a10",
        "project": PROJECT,
        "spec": {"fine_tune": {"base_model": "base", "dataset": {"name": "questions"}, "output_model": "assistant"}},
    }
    code, output = await _grpcurl("-d", json.dumps(submit), address, "headway.jobs.v1.JobService/SubmitJob")
    assert code == 0, output
    assert json.loads(output)["job"]["state"] == "JOB_STATE_QUEUED"
    for method in _methods():
        # With an empty request every method is there and answers in the contract's form, none with a fault of ours.
        code, output = await _grpcurl(
            "-d", "", "-max-time", "5", address, f"{method.containing_service.full_name}/{method.name}"
        )
        assert "Unimplemented" not in output, output
        assert "Internal" not in output, output
        assert "Unknown" not in output, output


async def test_health_says_serving(api: Api) -> None:
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    async with asyncio.timeout(10):
        async for answer in health.Watch(health_pb2.HealthCheckRequest(service="headway.jobs.v1.JobService")):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


def _call(api: Api, method: MethodDescriptor, body: bytes) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        return api.channel.stream_stream(path)(iter([body]))
    if method.server_streaming:
        return api.channel.unary_stream(path)(body)
    return api.channel.unary_unary(path)(body)


async def _drain(call: Any) -> None:
    if hasattr(call, "__aiter__") and not hasattr(call, "__await__"):
        async for _ in call:
            pass
    else:
        await call


@pytest.mark.parametrize("method", _methods(), ids=lambda method: method.name)
async def test_garbage_is_invalid_argument_on_every_method(api: Api, method: MethodDescriptor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _drain(_call(api, method, b"\xff\xff\xff\xff"))
    answer = refusal(caught.value)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), index=st.integers(min_value=0))
async def test_no_bytes_whatever_are_our_fault(api: Api, body: bytes, index: int) -> None:
    unary = [method for method in _methods() if not method.server_streaming]
    method = unary[index % len(unary)]
    code = grpc.StatusCode.OK
    try:
        await _drain(_call(api, method, body))
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert code not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}, (method.name, body)


async def test_a_message_too_large_is_refused(api: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.jobs.SubmitJob(jobs_pb.SubmitJobRequest(project="x" * 5_000_000))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_servers_deadline_holds_for_callers_without_one(api: Api) -> None:
    job_id = await api.running()
    async with api.engine.connect() as connection:
        transaction = await connection.begin()
        await connection.exec_driver_sql(f"SELECT * FROM jobs WHERE job_id = '{job_id}' FOR UPDATE")  # noqa: S608 - our id
        request = jobs_pb.CancelJobRequest(request_id=job_id, job_id=job_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.jobs.CancelJob(request, timeout=1)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await transaction.rollback()


async def test_connections_lost_are_unavailable_and_then_all_is_well(api: Api) -> None:
    job_id = await api.running()
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    get = jobs_pb.GetJobRequest(job_id=job_id)

    answers: set[tuple[grpc.StatusCode, str]] = set()

    async def call_through_it() -> None:
        for _ in range(50):
            try:
                await api.jobs.GetJob(get)
            except grpc.aio.AioRpcError as error:
                answers.add((error.code(), refusal(error).reason))

    calling = asyncio.create_task(call_through_it())
    for _ in range(5):
        await api.sql(ended)
    await calling
    assert answers <= {(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")}
    assert (await api.get(job_id)).job_id == job_id
    # The listener's connection was ended too: watching still goes on.
    async with asyncio.timeout(20):
        async for message in api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(job_id=job_id)):
            if message.events:
                break


async def test_an_unknown_method_is_unimplemented(api: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.channel.unary_unary("/headway.jobs.v1.JobService/DropEverything")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_migrations_build_the_declared_tables(postgres_dsn: str) -> None:
    upgrade(postgres_dsn)  # again: nothing happens
    engine = create_async_engine(asyncpg_url(postgres_dsn))
    scratch = f"{postgres_dsn.rsplit('/', 1)[0]}/declared_{os.getpid()}"
    async with engine.connect() as connection:
        raw = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await raw.exec_driver_sql(f"CREATE DATABASE declared_{os.getpid()} TEMPLATE template0")
    declared = create_async_engine(asyncpg_url(scratch))
    async with declared.begin() as connection:
        await connection.run_sync(metadata.create_all)

    def shape(sync: Any) -> dict[str, Any]:
        looked = inspect(sync)
        return {
            table: {
                "columns": sorted(
                    (c["name"], str(c["type"]), c["nullable"], c["default"] or "") for c in looked.get_columns(table)
                ),
                "indexes": sorted(
                    (i["name"], i["unique"], str(i.get("column_names")), str(i.get("dialect_options")))
                    for i in looked.get_indexes(table)
                ),
                "checks": sorted((c["name"], c["sqltext"]) for c in looked.get_check_constraints(table)),
                "key": looked.get_pk_constraint(table),
                "foreign": sorted(str(key) for key in looked.get_foreign_keys(table)),
            }
            for table in looked.get_table_names()
            if table != "alembic_version"
        }

    async with engine.connect() as migrated, declared.connect() as built:
        assert await migrated.run_sync(shape) == await built.run_sync(shape)
    await declared.dispose()
    await engine.dispose()


@pytest_asyncio.fixture
async def process(postgres_dsn: str, s3_settings: S3Settings, tmp_path: Path) -> AsyncIterator[tuple[psutil.Process, str]]:
    """`python -m control_plane serve`, as it runs in production, and the address it listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    assert s3_settings.access_key_id is not None
    assert s3_settings.secret_access_key is not None
    content = {
        "postgres": {"dsn": postgres_dsn},
        "s3": {
            **s3_settings.model_dump(mode="json"),
            "access_key_id": s3_settings.access_key_id.get_secret_value(),
            "secret_access_key": s3_settings.secret_access_key.get_secret_value(),
        },
        "control_plane": {"address": address},
        "identity": {**IDENTITY.model_dump(mode="json"), "secret_key": IDENTITY.secret_key.get_secret_value()},
    }
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control_plane", "serve", env={**os.environ, "HEADWAY_SETTINGS": str(path)}
    )
    try:
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(30):
            health: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    answer = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                except grpc.aio.AioRpcError:
                    continue
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
                await asyncio.sleep(0.05)
        yield psutil.Process(started.pid), address
    finally:
        started.send_signal(signal.SIGTERM)
        assert await started.wait() == 0, "SIGTERM must end it cleanly"


async def test_the_process_stays_small_and_never_loads_torch(process: tuple[psutil.Process, str]) -> None:
    running, address = process
    async with channel_to(int(address.rpartition(":")[2]), ADMIN_TOKEN) as channel:
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        listing = jobs_pb.ListJobsRequest(project=PROJECT)
        for _ in range(20):
            await asyncio.gather(*(stub.ListJobs(listing) for _ in range(50)))
        assert (await refused(stub.GetJob(jobs_pb.GetJobRequest(job_id="x")))).fields == ["job_id"]
    loaded = {Path(mapped.path).name for mapped in running.memory_maps()}
    assert not [name for name in loaded if name.startswith("libtorch")]
    assert running.memory_info().rss < 250 * 2**20
