"""What every watch keeps to: commit order without gap or double under any cuts, small messages, retention, an end in time."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from control_plane.app import ControlPlane
from control_plane.db.engine import create_engine
from control_plane.db.events import EventType, append_event
from control_plane.jobs.states import JobState
from control_plane.settings import PostgresSettings, S3Settings
from control_plane.streams.guard import StreamGuard
from control_plane.streams.retention import take_expired
from headway.jobs.v1 import job_service_pb2 as pb
from headway.jobs.v1 import job_service_pb2_grpc
from tests.integration.control_plane.conftest import Api, Refusal, refusal, settings_of
from tests.integration.control_plane.stream_server import StreamServer, stream_server, watch
from tests.waiting import until


@pytest.fixture
async def server(postgres_dsn: str) -> AsyncGenerator[StreamServer]:
    async with stream_server(postgres_dsn) as running:
        yield running


def _events(message: pb.WatchEventsResponse) -> list[tuple[str, int]]:
    return [(event.job_id, event.sequence) for event in message.events]


async def _read(call: Any, count: int) -> tuple[list[tuple[str, int]], str]:
    """So many events, and the cursor after them."""
    seen: list[tuple[str, int]] = []
    cursor = ""
    async with asyncio.timeout(20):
        while len(seen) < count:
            message = await call.read()
            assert message is not grpc.aio.EOF, f"the stream ended after {len(seen)} of {count} events"
            seen += _events(message)
            cursor = message.cursor
    assert len(seen) == count
    return seen, cursor


async def _idle_cursor(call: Any) -> str:
    """The cursor of the next heartbeat."""
    async with asyncio.timeout(10):
        while (message := await call.read()).events:
            pass
    return message.cursor


async def _ended(call: Any, seen: list[tuple[str, int]] | None = None) -> Refusal:
    """How a stream was ended that must be refused; `seen` gets what came before."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _last_message(call, seen)
    return refusal(caught.value)


@pytest.mark.parametrize("seed", range(4))
async def test_streams_cut_anywhere_are_the_stored_log(server: StreamServer, seed: int) -> None:
    """Writers at once, some of which commit late; watchers of every scope that leave after any message and come back."""
    rng = random.Random(seed)  # noqa: S311 - a seed that repeats, not a secret
    jobs = [await server.job(project, job_set) for project, job_set in (("north", ""), ("north", "set"), ("south", "set"))]

    async def write(job_id: str) -> None:
        for _ in range(40):
            detail = "x" * rng.choice([0, 10, 3_000])
            await server.event(job_id, note=detail)

    async def follow(caller: str, where: str, **scope: Any) -> None:
        expected: list[tuple[str, int]] | None = None
        seen: list[tuple[str, int]] = []
        cursor = ""
        while expected is None or len(seen) < len(expected):
            call = watch(server, caller, start_cursor=cursor, **scope)
            for _ in range(rng.randint(1, 6)):
                message = await call.read()
                seen += _events(message)
                cursor = message.cursor
                if written.is_set() and expected is None:
                    expected = await server.stored(where)
                if expected is not None and len(seen) >= len(expected):
                    break
            call.cancel()
        assert seen == expected

    written = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(follow("admin", "true"))
            group.create_task(follow("viewer", "project = 'north'"))
            group.create_task(follow("viewer", "project = 'north'", project="north"))
            group.create_task(
                follow("admin", "project = 'north' AND job_set = 'set'", job_set={"project": "north", "name": "set"})
            )
            group.create_task(follow("admin", f"job_id = '{jobs[2]}'", job_id=jobs[2]))
        async with asyncio.TaskGroup() as writers:
            for job_id in jobs:
                writers.create_task(write(job_id))
        written.set()
    assert len(await server.stored()) == 3 * 40


async def test_a_long_backlog_is_the_stored_log_to_all_who_read_it_at_once(server: StreamServer) -> None:
    jobs = [await server.job() for _ in range(3)]
    await server.many_events(jobs, 700)
    expected = await server.stored()
    calls = [watch(server) for _ in range(8)]
    for seen, _ in await asyncio.gather(*(_read(call, len(expected)) for call in calls)):
        assert seen == expected


async def test_messages_are_small_however_large_the_events_are(server: StreamServer) -> None:
    job_id = await server.job()
    await server.many_events([job_id], 40, '{"note": "%s"}' % ("x" * 5_000))
    await server.stored()
    call, seen = watch(server, job_id=job_id), 0
    while seen < 40:
        message = await call.read()
        seen += len(message.events)
        assert message.ByteSize() <= 33 * 1_024
    huge = await server.job()
    await server.event(huge, note="x" * 100_000)
    seen_huge, _ = await _read(watch(server, job_id=huge), 1)
    assert seen_huge == [(huge, 1)]


async def test_from_now_leaves_out_what_was(server: StreamServer) -> None:
    job_id = await server.job()
    await server.event(job_id)
    await server.stored()
    call = watch(server, project="north", from_now=True)
    cursor = await _idle_cursor(call)
    await server.event(job_id)
    assert (await _read(call, 1))[0] == [(job_id, 2)]
    assert (await _read(watch(server, project="north", start_cursor=cursor), 1))[0] == [(job_id, 2)]
    answer = await _ended(watch(server, project="north", start_cursor=cursor, from_now=True))
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["from_now"])


async def test_what_one_may_not_see_is_not_in_the_stream(server: StreamServer) -> None:
    north, south = await server.job("north"), await server.job("south")
    await server.many_events([north, south], 3)
    call = watch(server, "viewer")
    seen, _ = await _read(call, 3)
    await server.event(south)
    await server.event(north)
    seen += (await _read(call, 1))[0]
    assert seen == [(north, sequence) for sequence in range(1, 5)]


async def test_cursors_of_others_and_of_the_future_are_refused(server: StreamServer) -> None:
    job_id = await server.job()
    await server.event(job_id)
    _, cursor = await _read(watch(server), 1)
    for caller, scope in (("viewer", {}), ("admin", {"project": "north"}), ("admin", {"job_id": job_id})):
        answer = await _ended(watch(server, caller, start_cursor=cursor, **scope))
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR")
    # A backup from before the event was restored.
    await server.sql("DELETE FROM job_events")
    await server.sql("UPDATE event_log_head SET position = 0")
    answer = await _ended(watch(server, start_cursor=cursor))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR")


async def test_retention_is_said_and_leaves_the_unfinished_alone(server: StreamServer) -> None:
    old, open_job, new = await server.job(), await server.job(), await server.job()
    for job_id in (open_job, old, new):
        await server.event(job_id)
    await server.stored()
    first = (await _first_message(watch(server, project="north")))[1]
    open_first = (await _read(watch(server, job_id=open_job), 1))[1]
    old_first = (await _read(watch(server, job_id=old), 1))[1]
    await server.event(old, JobState.SUCCEEDED)
    await server.event(new, JobState.SUCCEEDED)
    await server.event(open_job)
    await server.stored()
    await server.sql("UPDATE job_events SET created_at = now() - interval '91 days' WHERE job_id <> :new", new=new)
    assert await take_expired(server.engine, 90) == 2
    assert await take_expired(server.engine, 90) == 0
    kept = await server.stored()
    assert [job_id for job_id, _ in kept] == [open_job, new, new, open_job]
    # An empty cursor begins at the oldest event that is kept; one from before the gap is refused with a cursor that does.
    assert (await _read(watch(server, project="north"), 4))[0] == kept
    answer = await _ended(watch(server, project="north", start_cursor=first))
    assert (answer.code, answer.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
    oldest = answer.metadata["oldest_cursor"]
    seen, middle = await _first_message(watch(server, project="north", start_cursor=oldest))
    assert seen == kept[: len(seen)]
    assert (await _read(watch(server, project="north", start_cursor=oldest), 4))[0] == kept
    await _idle_cursor(watch(server, project="north", start_cursor=middle))
    # Nothing of the unfinished job was taken, so that its cursors stay good; all of the other was, and its end is said.
    assert (await _read(watch(server, job_id=open_job, start_cursor=open_first), 1))[0] == [(open_job, 2)]
    answer = await _ended(watch(server, job_id=old, start_cursor=old_first))
    assert (answer.code, answer.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
    _, message = await _last_message(watch(server, job_id=old, start_cursor=answer.metadata["oldest_cursor"]))
    assert message.end_of_stream


async def _read_one(call: Any) -> tuple[list[tuple[str, int]], str]:
    message = await call.read()
    return _events(message), message.cursor


async def _first_message(call: Any) -> tuple[list[tuple[str, int]], str]:
    first = await _read_one(call)
    call.cancel()
    return first


async def _last_message(
    call: Any, seen: list[tuple[str, int]] | None = None
) -> tuple[list[tuple[str, int]], pb.WatchEventsResponse]:
    seen = [] if seen is None else seen
    message = pb.WatchEventsResponse()
    async with asyncio.timeout(20):
        while (received := await call.read()) is not grpc.aio.EOF:
            message = received
            seen += _events(message)
    return seen, message


async def test_taken_while_a_stream_was_on_its_way_is_said_too(server: StreamServer) -> None:
    """A reader far behind: what it has not reached is taken. It must hear of it rather than get a log with a hole."""
    first, gone = await server.job(), await server.job()
    await server.many_events([first], 300, '{"note": "%s"}' % ("x" * 4_000))
    await server.event(gone, JobState.SUCCEEDED)
    await server.stored()
    call = watch(server, project="north")
    await call.read()
    await server.sql("UPDATE job_events SET created_at = now() - interval '91 days' WHERE job_id = :gone", gone=gone)
    assert await take_expired(server.engine, 90) == 1
    assert (await _ended(call)).reason == "CURSOR_EXPIRED"


async def test_a_reader_that_takes_nothing_is_cut_and_goes_on_from_there(postgres_dsn: str) -> None:
    async with stream_server(postgres_dsn, stalled_seconds=0.5) as server:
        job_id = await server.job()
        # More than the windows between here and there hold.
        await server.many_events([job_id], 500, '{"note": "%s"}' % ("x" * 3_000))
        expected = await server.stored()
        async with grpc.aio.insecure_channel(server.address, options=_SMALL_WINDOW) as channel:
            call = channel.unary_stream(
                "/headway.jobs.v1.JobService/WatchEvents",
                request_serializer=pb.WatchEventsRequest.SerializeToString,
                response_deserializer=pb.WatchEventsResponse.FromString,
            )(pb.WatchEventsRequest(job_id=job_id))
            seen = (await _read_one(call))[0]
            await until(lambda: server.guard.cut_streams == 1)
            answer = await _ended(call, seen)
        assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")
        assert 0 < len(seen) < len(expected)
        rest, _ = await _read(
            watch(server, job_id=job_id, start_cursor=answer.metadata["resume_from"]), len(expected) - len(seen)
        )
        assert seen + rest == expected


async def test_one_that_takes_not_even_its_status_ends_with_its_connection(postgres_dsn: str, s3_settings: S3Settings) -> None:
    patient = settings_of(postgres_dsn, s3_settings)
    strict = settings_of(
        postgres_dsn, s3_settings, stream_stalled_seconds=0.2, stream_seconds_max=0.5, deadline_seconds_max=0.5
    )
    engine = create_engine(PostgresSettings(dsn=postgres_dsn, pool_size=2))  # pyright: ignore[reportArgumentType] - as in conftest
    async with ControlPlane(patient) as running, Api(running.port, engine, s3_settings) as api:
        job = await api.submit(await api.inputs())
        for _ in range(60):
            async with engine.begin() as connection:
                await append_event(connection, job.job_id, EventType.RESUMED, detail={"note": "x" * 20_000})
    metadata = (("authorization", f"Bearer {api.token}"),)
    # Only this one ends connections that grow old, whatever else is sent over them.
    async with (
        ControlPlane(strict) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options=_SMALL_WINDOW) as channel,
    ):
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        call: Any = stub.WatchEvents(pb.WatchEventsRequest(job_id=job.job_id), metadata=metadata)
        seen, cursor = await _read_one(call)
        # The server is one of this process, and shows what is open to nobody.
        (guard,) = (found for found in gc.get_objects() if type(found) is StreamGuard and found.open_streams)
        await until(lambda: guard.open_streams == 0)
        with suppress(grpc.aio.AioRpcError):
            while (message := await call.read()) is not grpc.aio.EOF:
                seen, cursor = seen + _events(message), message.cursor
        assert len(seen) < 61
    async with ControlPlane(patient) as running, Api(running.port, engine, s3_settings) as api:
        while len(seen) < 61:
            call = api.jobs.WatchEvents(pb.WatchEventsRequest(job_id=job.job_id, start_cursor=cursor))
            more, cursor = await _read_one(call)
            seen += more
            call.cancel()
        assert seen == [(job.job_id, sequence) for sequence in range(1, 62)]
    await engine.dispose()


_SMALL_WINDOW = [("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]


async def test_who_leaves_leaves_nothing_behind(server: StreamServer) -> None:
    jobs = [await server.job() for _ in range(5)]
    await server.many_events(jobs, 200, '{"note": "%s"}' % ("x" * 3_000))
    calls = [watch(server, job_id=job_id) for job_id in jobs for _ in range(10)]
    for call in calls:
        await call.read()
    assert server.hub.scopes == 5
    for call in calls:
        call.cancel()
    await until(lambda: server.hub.scopes == 0 and server.guard.open_streams == 0)


async def test_an_old_stream_ends_without_saying_that_it_was_all(postgres_dsn: str) -> None:
    async with stream_server(postgres_dsn, seconds_max=0.5) as server:
        job_id = await server.job()
        await server.event(job_id)
        seen, message = await _last_message(watch(server, job_id=job_id))
        assert seen == [(job_id, 1)]
        assert not message.end_of_stream
        await server.event(job_id, JobState.SUCCEEDED)
        seen, message = await _last_message(watch(server, job_id=job_id, start_cursor=message.cursor))
        assert seen == [(job_id, 2)]
        assert message.end_of_stream


async def test_a_credential_that_was_taken_away_ends_its_streams(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.streams.guard._RECHECK_SECONDS", 0.3)
    viewer, admin = watch(server, "viewer", project="north"), watch(server, project="north")
    await _idle_cursor(viewer)
    server.standings.revoked.add("service:north/viewer")
    answer = await _ended(viewer)
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    await _idle_cursor(admin)


async def test_a_lost_notification_costs_a_second_and_no_event(server: StreamServer) -> None:
    job_id = await server.job()
    call = watch(server, job_id=job_id)
    await _idle_cursor(call)
    # Whoever listens is thrown out; what is written meanwhile is notified to nobody.
    await server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    )
    for _ in range(5):
        await server.event(job_id)
    assert (await _read(call, 5))[0] == [(job_id, sequence) for sequence in range(1, 6)]
