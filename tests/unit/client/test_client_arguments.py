"""What no request can carry, and calls of a closed client: refused by the client's own error, and nothing is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from typing import Any

import grpc
import pytest
from grpc import aio

from headway.jobs.v1 import job_service_pb2 as jobs
from headway.jobs.v1 import job_service_pb2_grpc, job_spec_pb2
from headway_client.aio_client import AsyncClient
from headway_client.client import Client
from headway_client.credentials import CredentialsError
from headway_client.errors import ArgumentError, FieldViolation, HeadwayError
from headway_client.retries import RetryPolicy
from tests.unit.client.conftest import Serve
from tests.unit.client.servicers import PartialJobServicer

NOWHERE = "127.0.0.1:1"
SPEC = job_spec_pb2.JobSpec()
QUICK = RetryPolicy(backoff_seconds=0.001, backoff_seconds_max=0.01)

# Typed as Any, because a type checker refuses all of this.
UNFIT: list[tuple[Callable[[Any], Any], str, str]] = [
    (lambda client: client.get_job("\udcff"), "job_id", r"has '\udcff' at position 0, which is no character; expected text"),
    (lambda client: client.get_job(5), "job_id", "is 5; expected text"),
    (
        lambda client: client.submit_job("p", SPEC, priority=2**40),
        "priority",
        f"is {2**40}; expected a whole number of 32 bits",
    ),
    (lambda client: client.submit_job("p", SPEC, priority=0.5), "priority", "is 0.5; expected a whole number of 32 bits"),
    (lambda client: client.submit_job("p", "spec"), "spec", "is 'spec'; expected a JobSpec"),
    (lambda client: client.list_jobs("p", states=["x"]), "states", "is ['x']; expected an iterable, each a JobState"),
    (lambda client: client.list_jobs("p", states=7), "states", "is 7; expected an iterable, each a JobState"),
    (
        lambda client: client.update_job("j", name="\ud800"),
        "name",
        r"has '\ud800' at position 0, which is no character; expected text",
    ),
    (lambda client: client.rerun_job("j", spec_paths=[1]), "paths", "is [1]; expected an iterable, each text"),
    (
        lambda client: client.set_quota("p", {"h": 0.5}),
        "max_accelerators",
        "is {'h': 0.5}; expected a mapping to a whole number of 32 bits",
    ),
    (lambda client: client.create_project("p", title=[0] * 99), "title", f"is [{'0, ' * 26}0…; expected text"),
    (lambda client: client.tail_logs("j", since="now"), "since", "is 'now'; expected a datetime"),
    (lambda client: client.watch_events(job_set="sweep"), "job_set", "is 'sweep'; expected its project and its name"),
    (
        lambda client: client.watch_events(job_id="j", project="p"),
        "job_id and project",
        "a stream has one scope; expected at most one of job_id, project and job_set",
    ),
    (
        lambda client: client.get_model_version("p", "m"),
        "version and alias",
        "a model version is named by one of them; expected exactly one",
    ),
]


async def result_of(made: Any) -> Any:
    """What a call of either client comes to, pages and streams too."""
    if isinstance(made, Coroutine):
        return await made
    return [item async for item in made] if isinstance(made, AsyncIterator) else list(made)


@pytest.mark.parametrize(("call", "argument", "description"), UNFIT)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_an_argument_that_no_request_can_carry_is_named(
    kind: type[Client | AsyncClient], call: Callable[[Any], Any], argument: str, description: str
) -> None:
    client = kind(NOWHERE)
    with pytest.raises(ArgumentError) as caught:
        await result_of(call(client))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.violations == (FieldViolation(argument, description),)
    assert str(caught.value) == f"{argument}: {description} [INVALID_ARGUMENT]"
    if (closing := client.close()) is not None:
        await closing


def test_an_iterator_that_fails_by_itself_is_said_with_its_own_error() -> None:
    def items() -> Any:
        yield jobs.BatchItem()
        raise ValueError("the file ended early")

    with Client(NOWHERE) as client, pytest.raises(ArgumentError, match=r"items.*: the file ended early"):
        client.batch_submit_jobs("p", items())


def test_what_a_request_can_carry_is_left_as_it_is() -> None:
    since = datetime(2026, 1, 2)  # noqa: DTZ001  without a time zone it is UTC
    with Client(NOWHERE) as client:
        client.tail_logs("j", since=since, text="\x00 \U0001f600")


@pytest.mark.parametrize("token", ["ümlaut", "two\nlines", "\udcff"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_token_that_no_call_can_carry_is_refused_and_not_shown(kind: type[Client | AsyncClient], token: str) -> None:
    with pytest.raises(CredentialsError, match="no call can carry") as caught:
        kind(NOWHERE, token=token)
    assert token not in str(caught.value)
    client = kind(NOWHERE, token=lambda: token)
    for call in (client.get_job, client.tail_logs):
        with pytest.raises(CredentialsError, match="no call can carry"):
            # gRPC itself would let the asyncio caller wait for ever.
            async with asyncio.timeout(20):
                await result_of(call("j"))
    if (closing := client.close()) is not None:
        await closing


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_client_that_is_closed_says_so(kind: type[Client | AsyncClient]) -> None:
    client = kind(NOWHERE)
    if (closing := client.close()) is not None:
        await closing
    for call in (client.get_job, client.list_jobs, client.tail_logs):
        with pytest.raises(HeadwayError, match=f"client for {NOWHERE} is closed") as caught:
            await result_of(call("j"))
        assert caught.value.code is grpc.StatusCode.CANCELLED


class Silent(PartialJobServicer):
    """Answers nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def GetJob(self, request: jobs.GetJobRequest, context: aio.ServicerContext[Any, Any]) -> jobs.GetJobResponse:  # noqa: N802  the generated name
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("never set")

    async def WatchEvents(  # noqa: N802  the generated name
        self, request: jobs.WatchEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[jobs.WatchEventsResponse]:
        self.asked.set()
        yield jobs.WatchEventsResponse(cursor="0")
        await asyncio.Event().wait()

    def register(self, server: aio.Server) -> None:
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self, server)


@pytest.mark.parametrize("streaming", [False, True])
async def test_closing_ends_what_is_under_way_with_the_clients_own_error(serve: Serve, streaming: bool) -> None:
    servicer = Silent()
    address = await serve(servicer.register)

    def blocking(client: Client) -> None:
        if streaming:
            list(client.watch_events(job_id="j"))
        else:
            client.get_job("j")

    client = Client(address, retries=QUICK)
    waiting: asyncio.Task[Any] = asyncio.create_task(asyncio.to_thread(blocking, client))
    await servicer.asked.wait()
    client.close()
    with pytest.raises(HeadwayError, match="losed"):
        await waiting

    servicer.asked.clear()
    asyncio_client = AsyncClient(address, retries=QUICK)
    made = asyncio_client.watch_events(job_id="j") if streaming else asyncio_client.get_job("j")
    waiting = asyncio.create_task(result_of(made))
    await servicer.asked.wait()
    await asyncio_client.close()
    with pytest.raises(HeadwayError, match="clos"):
        await waiting
