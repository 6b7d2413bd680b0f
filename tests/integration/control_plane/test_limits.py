"""What one caller, and all together, may ask: over it they are told so, and the others do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.app import ControlPlane
from control_plane.settings import LimitsSettings, S3Settings
from headway.identity.v1 import identity_service_pb2 as identity_pb
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refusal, refused, settings_of
from tests.waiting import until

WHO_AM_I = identity_pb.WhoAmIRequest()


@asynccontextmanager
async def _limited(dsn: str, s3: S3Settings, engine: AsyncEngine, **limits: Any) -> AsyncGenerator[Api]:
    async with (
        ControlPlane(settings_of(dsn, s3, limits=LimitsSettings(**limits))) as running,
        Api(running.port, engine, s3) as api,
    ):
        yield api


async def test_too_many_calls_in_a_second_are_refused_and_the_other_caller_unharmed(
    postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine
) -> None:
    async with _limited(postgres_dsn, s3_settings, engine, calls_per_second=0.01, calls_burst=20) as api:
        greedy, other = await api.acting_as("VIEWER"), await api.acting_as("VIEWER")
        answers = await asyncio.gather(*(greedy.identity.WhoAmI(WHO_AM_I) for _ in range(200)), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert len(errors) == 180
        assert {(error.code(), refusal(error).reason) for error in errors} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        }
        status: Any = rpc_status.from_call(errors[0])  # pyright: ignore[reportArgumentType] - an AioRpcError has what a call has
        retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
        assert sum(detail.Unpack(retry) or detail.Unpack(quota) for detail in status.details) == 2
        assert 0 < retry.retry_delay.seconds <= 100
        assert quota.violations[0].subject == greedy.subject
        assert (await other.identity.WhoAmI(WHO_AM_I)).subject == other.subject


async def test_refusals_beyond_a_limit_are_counted_not_told_one_by_one(
    postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine
) -> None:
    async with _limited(postgres_dsn, s3_settings, engine, calls_per_second=0.01, calls_burst=3) as api:
        caller = await api.acting_as("SUBMITTER")
        request = jobs_pb.CancelJobRequest(request_id=new_id(), job_id=new_id())
        reasons = [(await refused(caller.jobs.CancelJob(request))).reason for _ in range(40)]
        assert reasons == ["JOB_NOT_FOUND"] * 3 + ["RATE_LIMITED"] * 37
    async with engine.connect() as connection:
        rows = await connection.exec_driver_sql(
            "SELECT reason, sum(count), count(*) FROM audit_records WHERE method LIKE '%CancelJob' GROUP BY 1 ORDER BY 1"
        )
        assert [tuple(row) for row in rows] == [("JOB_NOT_FOUND", 3, 3), ("RATE_LIMITED", 37, 1)]


async def _held(api: Api, exits: AsyncExitStack, job_id: str) -> None:
    """Keeps whoever wants to change the job waiting until the stack is closed."""
    connection = await exits.enter_async_context(api.engine.connect())
    await connection.exec_driver_sql(f"SELECT * FROM jobs WHERE job_id = '{job_id}' FOR UPDATE")  # noqa: S608 - our id


async def _waiting(api: Api, count: int) -> None:
    """Returns when so many transactions wait for a row."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    async def are_waiting() -> bool:
        [(waiting,)] = await api.sql(query)
        return waiting >= count

    await until(are_waiting, f"{count} transactions wait for a lock")


def _cancel(api: Api, job_id: str) -> Any:
    return asyncio.ensure_future(api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job_id)))


async def test_unary_calls_at_once_are_capped_for_one_caller_and_for_all(
    postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine
) -> None:
    async with _limited(postgres_dsn, s3_settings, engine, unary_calls_per_principal=3, unary_calls_max=5) as api:
        job_id = await api.running()
        one, two, three = [await api.acting_as("MAINTAINER") for _ in range(3)]
        async with AsyncExitStack() as exits:
            await _held(api, exits, job_id)
            held = [_cancel(one, job_id) for _ in range(3)]
            await _waiting(api, 3)
            answer = await refused(one.identity.WhoAmI(WHO_AM_I))
            assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
            assert answer.metadata["limit"] == "unary_calls_per_principal"
            await two.identity.WhoAmI(WHO_AM_I)
            held += [_cancel(two, job_id) for _ in range(2)]
            await _waiting(api, 5)
            assert (await refused(three.identity.WhoAmI(WHO_AM_I))).metadata["limit"] == "unary_calls_max"
        await asyncio.gather(*held)
        for caller in (one, two, three):
            await caller.identity.WhoAmI(WHO_AM_I)


async def _opened(api: Api) -> Any:
    """A stream that has begun."""
    call = api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(project=PROJECT))
    await anext(aiter(call))
    return call


async def test_streams_have_caps_of_their_own_and_give_their_place_back(
    postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine
) -> None:
    async with _limited(postgres_dsn, s3_settings, engine, streams_per_principal=2, streams_max=3, unary_calls_max=1) as api:
        await api.submit(await api.inputs())
        one, two = await api.acting_as("VIEWER"), await api.acting_as("VIEWER")
        streams = [await _opened(one), await _opened(one)]
        answer = await refused(_opened(one))
        assert (answer.code, answer.reason, answer.metadata["limit"]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_CALLS",
            "streams_per_principal",
        )
        streams.append(await _opened(two))
        assert (await refused(_opened(two))).metadata["limit"] == "streams_max"
        await one.identity.WhoAmI(WHO_AM_I)
        streams.pop(0).cancel()
        limits: set[str] = set()
        async with asyncio.timeout(10):
            while len(streams) < 3:
                try:
                    streams.append(await _opened(two))
                except grpc.aio.AioRpcError as error:  # the server has not heard of the cancellation yet
                    limits.add(refusal(error).metadata["limit"])
        assert limits <= {"streams_max"}
        for stream in streams:
            stream.cancel()


async def test_a_stranger_has_no_part_in_anybodys_limits(
    postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine
) -> None:
    async with _limited(postgres_dsn, s3_settings, engine, calls_per_second=0.01, calls_burst=10) as api:
        stranger = await api.with_token(None, "")
        caller = await api.acting_as("VIEWER")
        for _ in range(50):
            assert (await refused(stranger.identity.WhoAmI(WHO_AM_I))).reason == "UNAUTHENTICATED"
        await caller.identity.WhoAmI(WHO_AM_I)
