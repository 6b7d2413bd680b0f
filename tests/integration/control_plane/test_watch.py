"""Events: in commit order, without a hole, resumable after any batch, and the end is said."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from sqlalchemy import text

from control_plane.db.events import EventType, append_event, assign_positions
from headway.jobs.v1 import job_event_pb2, job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from tests.integration.control_plane.conftest import PROJECT, Api, new_id, refusal, refused


async def _watch(api: Api, request: jobs_pb.WatchEventsRequest) -> list[job_event_pb2.JobEvent]:
    """Every event until the stream says its end."""
    events: list[job_event_pb2.JobEvent] = []
    async for message in api.jobs.WatchEvents(request):
        events += message.events
        if message.end_of_stream:
            return events
    raise AssertionError("the stream ended without saying so")


async def _cancelled_job(api: Api, events: int) -> str:
    job = await api.submit(await api.inputs())
    for _ in range(events):
        async with api.engine.begin() as connection:
            await append_event(connection, job.job_id, EventType.RESUMED)
    await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job.job_id))
    return job.job_id


async def test_a_jobs_events_count_from_one_and_the_end_is_said(api: Api) -> None:
    job_id = await _cancelled_job(api, 5)
    events = await _watch(api, jobs_pb.WatchEventsRequest(job_id=job_id))
    assert [event.sequence for event in events] == list(range(1, 8))
    assert events[0].type == job_event_pb2.JOB_EVENT_TYPE_SUBMITTED
    assert events[-1].state == job_pb2.JOB_STATE_CANCELLED


async def test_a_stream_cut_after_every_message_equals_the_uncut_one(api: Api) -> None:
    job = await api.submit(await api.inputs())
    cursor = ""
    stitched: list[int] = []
    for step in range(12):
        async with api.engine.begin() as connection:
            await append_event(connection, job.job_id, EventType.RESUMED)
        # A new stream for every event: each must go on exactly after the last.
        call = api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(job_id=job.job_id, start_cursor=cursor))
        async for message in call:
            stitched += [event.sequence for event in message.events]
            cursor = message.cursor
            if stitched and stitched[-1] == step + 2:
                break
        call.cancel()
    await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job.job_id))
    rest = await _watch(api, jobs_pb.WatchEventsRequest(job_id=job.job_id, start_cursor=cursor))
    stitched += [event.sequence for event in rest]
    assert stitched == list(range(1, 15))
    after_the_end = jobs_pb.WatchEventsRequest(job_id=job.job_id)
    async for message in api.jobs.WatchEvents(after_the_end):
        if message.end_of_stream:
            cursor = message.cursor
    assert await _watch(api, jobs_pb.WatchEventsRequest(job_id=job.job_id, start_cursor=cursor)) == []


async def test_an_idle_stream_says_where_it_is(api: Api) -> None:
    job = await api.submit(await api.inputs())
    heartbeats = 0
    cursor = ""
    async for message in api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(job_id=job.job_id)):
        if message.events or not cursor:
            cursor = message.cursor if message.events else ""
            continue
        assert message.cursor == cursor
        heartbeats += 1
        if heartbeats == 3:
            break


async def test_a_project_is_followed_over_all_its_jobs(api: Api) -> None:
    spec = await api.inputs()
    ids = [(await api.submit(spec)).job_id for _ in range(3)]
    seen: list[str] = []
    async for message in api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(project=PROJECT)):
        seen += [event.job_id for event in message.events]
        if len(seen) == 3:
            break
    assert seen == ids


async def test_a_reader_never_misses_what_commits_late(api: Api) -> None:
    """Two writers; the one that inserted first commits last. By sequence alone its event would be skipped."""
    spec = await api.inputs()
    first, second = await api.submit(spec), await api.submit(spec)
    seen: list[tuple[str, int]] = []
    both = asyncio.Event()

    async def read() -> None:
        async for message in api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(project=PROJECT)):
            seen.extend((event.job_id, event.sequence) for event in message.events)
            if (second.job_id, 2) in seen:
                both.set()
            if (first.job_id, 2) in seen:
                return

    reading = asyncio.create_task(read())
    async with api.engine.connect() as slow:
        transaction = await slow.begin()
        await append_event(slow, first.job_id, EventType.RESUMED)
        async with api.engine.begin() as quick:
            await append_event(quick, second.job_id, EventType.RESUMED)
        async with asyncio.timeout(10):
            await both.wait()
        await transaction.commit()
    async with asyncio.timeout(10):
        await reading
    assert seen.index((second.job_id, 2)) < seen.index((first.job_id, 2))


async def test_sequencers_at_once_give_each_position_once(api: Api) -> None:
    job = await api.submit(await api.inputs())

    async def write(count: int) -> None:
        for _ in range(count):
            async with api.engine.begin() as connection:
                await append_event(connection, job.job_id, EventType.RESUMED)

    async def assign(count: int) -> None:
        for _ in range(count):
            async with api.engine.begin() as connection:
                await assign_positions(connection, limit=3)

    await asyncio.gather(write(20), write(20), assign(20), assign(20))
    async with api.engine.begin() as connection:
        while await assign_positions(connection):
            pass
        rows = (await connection.execute(text("SELECT position FROM job_events ORDER BY position"))).scalars().all()
        head = (await connection.execute(text("SELECT position FROM event_log_head"))).scalar_one()
    assert rows == list(range(1, len(rows) + 1))
    assert head == len(rows)


async def test_foreign_and_damaged_cursors_are_refused(api: Api) -> None:
    spec = await api.inputs()
    job, other = await api.submit(spec), await api.submit(spec)
    cursor = ""
    async for message in api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(job_id=job.job_id)):
        cursor = message.cursor
        break
    for request in (
        jobs_pb.WatchEventsRequest(job_id=other.job_id, start_cursor=cursor),
        jobs_pb.WatchEventsRequest(project=PROJECT, start_cursor=cursor),
        jobs_pb.WatchEventsRequest(job_id=job.job_id, start_cursor=cursor[:-3] + "AAA"),
        jobs_pb.WatchEventsRequest(job_id=job.job_id, start_cursor="nonsense"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _watch(api, request)
        assert refusal(caught.value).reason == "INVALID_CURSOR"
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_without_a_scope_everything_is_followed_that_one_may_see(api: Api) -> None:
    job = await api.submit(await api.inputs())
    async for message in api.jobs.WatchEvents(jobs_pb.WatchEventsRequest()):
        if message.events:
            assert [(event.job_id, event.sequence) for event in message.events] == [(job.job_id, 1)]
            break


async def test_a_scope_must_be_there(api: Api) -> None:
    answer = await refused(_watch(api, jobs_pb.WatchEventsRequest(job_id=new_id())))
    assert answer.reason == "JOB_NOT_FOUND"
    answer = await refused(_watch(api, jobs_pb.WatchEventsRequest(project="nowhere")))
    assert answer.reason == "PROJECT_NOT_FOUND"
    for fields, name in (({"project": PROJECT}, "job_set.name"), ({"project": PROJECT, "name": "a set"}, "job_set.name")):
        request = jobs_pb.WatchEventsRequest(job_set=jobs_pb.JobSetName(**fields))
        assert (await refused(_watch(api, request))).fields == [name]
