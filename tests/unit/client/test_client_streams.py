"""A broken stream goes on by itself: nothing is lost, nothing comes twice, and the end is the server's word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from headway.jobs.v1 import job_event_pb2, job_service_pb2_grpc
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.logs.v1 import log_record_pb2, log_service_pb2_grpc
from headway.logs.v1 import log_service_pb2 as logs
from headway_client.aio_client import AsyncClient
from headway_client.client import Client
from headway_client.errors import HeadwayError
from headway_client.retries import RetryPolicy
from headway_client.streams import Resumption
from tests.unit.client.conftest import CuttingProxy, Serve
from tests.unit.client.servicers import PartialJobServicer

EVENTS = 12
QUICK = RetryPolicy(backoff_seconds=0.001, backoff_seconds_max=0.01)

Breaker = Callable[[aio.ServicerContext[Any, Any]], Awaitable[None]]


def batches(start_cursor: str, job_id: str) -> list[jobs.WatchEventsResponse]:
    """What the server holds after the cursor: two events a batch, then a heartbeat that carries the end."""
    first = int(start_cursor or 0)
    numbered = [job_event_pb2.JobEvent(job_id=job_id, sequence=n + 1) for n in range(first, EVENTS)]
    result = [
        jobs.WatchEventsResponse(events=numbered[i : i + 2], cursor=str(first + min(i + 2, len(numbered))))
        for i in range(0, len(numbered), 2)
    ]
    return [*result, jobs.WatchEventsResponse(cursor=str(EVENTS), end_of_stream=True)]


class Events(PartialJobServicer):
    """Serves the twelve events; after each message `breaker` may end the call."""

    def __init__(self, breaker: Breaker | None = None) -> None:
        self.cursors: list[str] = []
        self._breaker = breaker

    async def WatchEvents(  # noqa: N802  the generated name
        self, request: jobs.WatchEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[jobs.WatchEventsResponse]:
        self.cursors.append(request.start_cursor)
        for response in batches(request.start_cursor, request.job_id):
            yield response
            if self._breaker is not None:
                await self._breaker(context)
                return

    def register(self, server: aio.Server) -> None:
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self, server)


def sequences(received: list[jobs.WatchEventsResponse]) -> list[int]:
    return [event.sequence for batch in received for event in batch.events]


async def unavailable(context: aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops")


async def cancelled_by_server(context: aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.CANCELLED, "the server stops")


async def ends_without_saying_so(_context: aio.ServicerContext[Any, Any]) -> None:
    """The call ends with OK, though there is more."""


async def slow_reader(context: aio.ServicerContext[Any, Any]) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="SLOW_READER", domain="headway"))
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    await context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code.value[0], details=[detail])))


BREAKERS = [unavailable, cancelled_by_server, ends_without_saying_so, slow_reader]


@pytest.mark.parametrize("breaker", BREAKERS)
async def test_async_stream_broken_after_each_message_equals_the_unbroken_one(serve: Serve, breaker: Breaker) -> None:
    servicer = Events(breaker)
    async with AsyncClient(await serve(servicer.register), retries=QUICK) as client:
        received = [batch async for batch in client.watch_events(job_id="j")]
    assert received == batches("", "j")
    assert servicer.cursors == ["", "2", "4", "6", "8", "10", "12"]


@pytest.mark.parametrize("breaker", BREAKERS)
async def test_sync_stream_broken_after_each_message_equals_the_unbroken_one(serve: Serve, breaker: Breaker) -> None:
    servicer = Events(breaker)
    with Client(await serve(servicer.register), retries=QUICK) as client:
        received = await asyncio.to_thread(lambda: list(client.watch_events(job_id="j")))
    assert received == batches("", "j")
    assert servicer.cursors == ["", "2", "4", "6", "8", "10", "12"]


async def test_connection_reset_after_each_message_loses_and_repeats_nothing(
    serve: Serve, cutting_proxy: Callable[[str], Awaitable[tuple[CuttingProxy, str]]]
) -> None:
    async def goes_on_elsewhere(_context: aio.ServicerContext[Any, Any]) -> None:
        """What follows is not sent before the cut, which could otherwise come too late."""
        await asyncio.Event().wait()

    proxy, address = await cutting_proxy(await serve(Events(goes_on_elsewhere).register))
    received: list[jobs.WatchEventsResponse] = []
    async with AsyncClient(address, retries=QUICK) as client:
        async for batch in client.watch_events(job_id="j"):
            received.append(batch)
            proxy.cut()
    assert sequences(received) == list(range(1, EVENTS + 1))
    assert proxy.connections > 1


async def test_stream_starts_after_the_cursor_it_is_given(serve: Serve) -> None:
    async with AsyncClient(await serve(Events().register)) as client:
        received = [batch async for batch in client.watch_events(job_id="j", start_cursor="7")]
    assert sequences(received) == [8, 9, 10, 11, 12]


async def test_refusal_is_raised_and_not_retried(serve: Serve) -> None:
    async def refuse(context: aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such job")

    servicer = Events(refuse)
    async with AsyncClient(await serve(servicer.register), retries=QUICK) as client:
        with pytest.raises(HeadwayError, match="no such job"):
            _ = [batch async for batch in client.watch_events(job_id="j")]
    assert servicer.cursors == [""]


async def test_cancelling_the_consumer_ends_the_stream(serve: Serve) -> None:
    async with AsyncClient(await serve(_endless_heartbeats)) as client:
        first = asyncio.Event()

        async def consume() -> None:
            async for _ in client.watch_events(job_id="j"):
                first.set()

        task = asyncio.create_task(consume())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def _endless_heartbeats(server: aio.Server) -> None:
    class Heartbeats(Events):
        async def WatchEvents(  # noqa: N802  the generated name
            self, request: jobs.WatchEventsRequest, context: aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[jobs.WatchEventsResponse]:
            yield jobs.WatchEventsResponse(cursor="0")
            await asyncio.Event().wait()

    Heartbeats().register(server)


async def test_logs_without_follow_end_with_what_is_stored(serve: Serve) -> None:
    class Logs(log_service_pb2_grpc.LogServiceServicer):
        calls = 0

        async def TailLogs(  # noqa: N802  the generated name
            self, request: logs.TailLogsRequest, context: aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[logs.TailLogsResponse]:
            self.calls += 1
            yield logs.TailLogsResponse(records=[log_record_pb2.LogRecord(sequence=1)], cursor="1")

        AppendLogs = StreamProgress = None  # type: ignore[assignment]  # only the tail is asked for here

    servicer = Logs()
    address = await serve(lambda server: log_service_pb2_grpc.add_LogServiceServicer_to_server(servicer, server))
    with Client(address) as client:
        received = await asyncio.to_thread(lambda: list(client.tail_logs("j")))
    assert [record.sequence for batch in received for record in batch.records] == [1]
    assert servicer.calls == 1


def test_one_scope_at_a_time() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ValueError, match="at most one"):
        client.watch_events(job_id="j", project="p")


def test_from_now_means_when_it_was_asked_for() -> None:
    request = jobs.WatchEventsRequest(project="p", from_now=True)
    resumption = Resumption(QUICK, request.start_cursor)
    resumption.ask(request)
    assert (request.start_cursor, request.from_now) == ("", True)
    resumption.received(jobs.WatchEventsResponse(cursor="7"))
    resumption.ask(request)
    assert (request.start_cursor, request.from_now) == ("7", False)


def test_an_expired_cursor_is_the_callers_to_decide() -> None:
    expired = HeadwayError(
        grpc.StatusCode.OUT_OF_RANGE, "kept no more", reason="CURSOR_EXPIRED", metadata={"oldest_cursor": "9"}
    )
    with pytest.raises(HeadwayError) as caught:
        Resumption(QUICK, "7").wait_seconds(expired)
    assert caught.value.metadata["oldest_cursor"] == "9"


def test_reopening_stops_after_silence_and_not_before() -> None:
    now = 0.0
    resumption = Resumption(RetryPolicy(stream_silence_seconds_max=60), "", clock=lambda: now)
    error = HeadwayError(grpc.StatusCode.UNAVAILABLE, "away")
    waits = [resumption.wait_seconds(error) for _ in range(8)]
    assert all(0 < wait <= 2.0 for wait in waits)
    assert all(later > earlier * 0.9 for earlier, later in pairwise(waits[:4]))
    now = 61.0
    with pytest.raises(HeadwayError, match="away"):
        resumption.wait_seconds(error)
    resumption.received(jobs.WatchEventsResponse(cursor="c"))
    assert resumption.wait_seconds(error) <= 0.1
    assert resumption.cursor == "c"
