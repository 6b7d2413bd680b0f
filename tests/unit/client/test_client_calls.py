"""Unary calls: what is retried, with which request id, for how long, and what a refusal says."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from itertools import islice
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from headway.capacity.v1 import capacity_service_pb2
from headway.datasets.v1 import dataset_service_pb2 as datasets
from headway.jobs.v1 import job_pb2, job_service_pb2_grpc, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway_client.aio_client import AsyncClient
from headway_client.client import Client
from headway_client.errors import FieldViolation, HeadwayError, Precondition, QuotaViolation, from_rpc_error, from_status
from headway_client.retries import RetryPolicy, backoff, is_safe_to_repeat
from tests.unit.client.conftest import Serve
from tests.unit.client.servicers import PartialJobServicer

QUICK = RetryPolicy(backoff_seconds=0.001, backoff_seconds_max=0.01)
SPEC = job_spec_pb2.JobSpec(fine_tune=job_spec_pb2.FineTuneSpec(base_model="b", output_model="o"))


class Jobs(PartialJobServicer):
    """Fails `failures` times with `code`, then answers; remembers every request and its metadata."""

    def __init__(self, failures: int = 0, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.failures = failures
        self.code = code
        self.requests: list[Message] = []
        self.metadata: list[dict[str, str | bytes]] = []

    async def _seen(self, request: Message, context: aio.ServicerContext[Any, Any]) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if len(self.requests) <= self.failures:
            await context.abort(self.code, "not now")

    async def SubmitJob(  # noqa: N802  the generated name
        self, request: jobs.SubmitJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.SubmitJobResponse:
        await self._seen(request, context)
        return jobs.SubmitJobResponse(job=job_pb2.Job(job_id="j"))

    async def GetJob(  # noqa: N802  the generated name
        self, request: jobs.GetJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.GetJobResponse:
        await self._seen(request, context)
        return jobs.GetJobResponse(job=job_pb2.Job(job_id=request.job_id))

    async def ListJobs(  # noqa: N802  the generated name
        self, request: jobs.ListJobsRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.ListJobsResponse:
        await self._seen(request, context)
        first = int(request.page_token or 0)
        return jobs.ListJobsResponse(jobs=[job_pb2.Job(job_id=str(first))], next_page_token=str(first + 1) if first < 2 else "")

    async def CancelJob(  # noqa: N802  the generated name
        self, request: jobs.CancelJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.CancelJobResponse:
        detail = error_details_pb2.ErrorInfo(reason="ILLEGAL_TRANSITION", domain="headway", metadata={"state": "FAILED"})
        fields = error_details_pb2.BadRequest(
            field_violations=[
                {"field": "reason", "description": "is 501 characters; expected at most 500"},
                {"field": "job_id", "description": "is empty; expected a UUID"},
            ]
        )
        packed = [any_pb2.Any(), any_pb2.Any()]
        packed[0].Pack(detail)
        packed[1].Pack(fields)
        status = status_pb2.Status(
            code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message="cannot cancel a job that is FAILED", details=packed
        )
        await context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError("abort raises")

    async def WatchEvents(  # noqa: N802  the generated name
        self, request: jobs.WatchEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[jobs.WatchEventsResponse]:
        await self._seen(request, context)
        yield jobs.WatchEventsResponse(cursor="1", end_of_stream=True)

    def register(self, server: aio.Server) -> None:
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self, server)


async def both(address: str, act: Callable[[Client], Any], act_async: Callable[[AsyncClient], Any]) -> list[Any]:
    """The results of the same call by the blocking and the asyncio client."""
    with Client(address, retries=QUICK) as client:
        blocking = await asyncio.to_thread(act, client)
    async with AsyncClient(address, retries=QUICK) as client:
        return [blocking, await act_async(client)]


async def test_a_retried_submit_sends_the_same_request_id(serve: Serve) -> None:
    servicer = Jobs(failures=3)
    with Client(await serve(servicer.register), retries=QUICK) as client:
        job = await asyncio.to_thread(client.submit_job, "p", SPEC)
    assert job.job_id == "j"
    assert len(servicer.requests) == 4
    assert all(request == servicer.requests[0] for request in servicer.requests)
    request = servicer.requests[0]
    assert isinstance(request, jobs.SubmitJobRequest)
    assert str(uuid.UUID(request.request_id)) == request.request_id
    assert not request.HasField("priority")


async def test_async_submit_retries_the_same(serve: Serve) -> None:
    servicer = Jobs(failures=3)
    async with AsyncClient(await serve(servicer.register), retries=QUICK) as client:
        await client.submit_job("p", SPEC, request_id="given", priority=0)
    assert len(servicer.requests) == 4
    request = servicer.requests[3]
    assert isinstance(request, jobs.SubmitJobRequest)
    assert (request.request_id, request.HasField("priority")) == ("given", True)
    assert all(other == request for other in servicer.requests)


async def test_a_retry_comes_back_after_the_attempts_are_used_up(serve: Serve) -> None:
    servicer = Jobs(failures=99)
    with Client(await serve(servicer.register), retries=QUICK) as client, pytest.raises(HeadwayError) as caught:
        await asyncio.to_thread(client.get_job, "j")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(servicer.requests) == QUICK.attempts_max


def test_a_call_is_tried_for_longer_than_a_control_plane_takes_to_come_back() -> None:
    policy = RetryPolicy()
    for _ in range(20):
        assert 6 < sum(islice(backoff(policy), policy.attempts_max - 1)) < 14


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)])
async def test_only_unavailable_is_retried(serve: Serve, code: grpc.StatusCode) -> None:
    servicer = Jobs(failures=99, code=code)
    async with AsyncClient(await serve(servicer.register), retries=QUICK) as client:
        with pytest.raises(HeadwayError) as caught:
            await client.get_job("j")
    assert caught.value.code is code
    assert len(servicer.requests) == 1


@pytest.mark.parametrize(
    ("request_", "safe"),
    [
        (jobs.GetJobRequest(), True),
        (jobs.WatchEventsRequest(), True),
        (jobs.SubmitJobRequest(request_id="r"), True),
        (jobs.SubmitJobRequest(), False),
        (jobs.CancelJobRequest(job_id="j"), False),
        (datasets.CreateUploadRequest(), True),
        (capacity_service_pb2.RegisterWorkerRequest(), True),
        (job_pb2.Job(), False),
    ],
)
def test_what_is_safe_to_repeat_is_what_the_contract_says(request_: Message, safe: bool) -> None:
    assert is_safe_to_repeat(request_) is safe


async def test_the_deadline_bounds_a_call_with_its_retries() -> None:
    started = asyncio.get_running_loop().time()
    retries = RetryPolicy(attempts_max=1_000_000, backoff_seconds=0.001, backoff_seconds_max=0.01)
    async with AsyncClient("127.0.0.1:1", deadline_seconds=0.3, retries=retries) as client:
        with pytest.raises(HeadwayError) as caught:
            await client.get_job("j")
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert "127.0.0.1:1" in caught.value.message
    assert asyncio.get_running_loop().time() - started < 5


async def test_a_server_that_never_answers_is_left_at_the_deadline(serve: Serve) -> None:
    class Silent(Jobs):
        async def GetJob(  # noqa: N802  the generated name
            self, request: jobs.GetJobRequest, context: aio.ServicerContext[Any, Any]
        ) -> jobs.GetJobResponse:
            await asyncio.Event().wait()
            raise AssertionError("never set")

    address = await serve(Silent().register)
    late = pytest.raises(HeadwayError, match="did not answer in time")
    with Client(address, deadline_seconds=0.2) as client, late as caught:
        await asyncio.to_thread(client.get_job, "j")
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_error_details_reach_the_caller(serve: Serve) -> None:
    address = await serve(Jobs().register)

    def refused(client: Client) -> HeadwayError:
        with pytest.raises(HeadwayError) as caught:
            client.cancel_job("j", reason="x")
        return caught.value

    async def refused_async(client: AsyncClient) -> HeadwayError:
        with pytest.raises(HeadwayError) as caught:
            await client.cancel_job("j", reason="x")
        return caught.value

    for error in await both(address, refused, refused_async):
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
        assert error.reason == "ILLEGAL_TRANSITION"
        assert error.metadata == {"state": "FAILED"}
        assert error.violations == (
            FieldViolation("reason", "is 501 characters; expected at most 500"),
            FieldViolation("job_id", "is empty; expected a UUID"),
        )
        assert str(error) == (
            "cannot cancel a job that is FAILED [ILLEGAL_TRANSITION]\n"
            "  reason: is 501 characters; expected at most 500\n"
            "  job_id: is empty; expected a UUID"
        )


async def test_details_that_are_garbage_leave_the_code(serve: Serve) -> None:
    class Garbage(Jobs):
        async def GetJob(  # noqa: N802  the generated name
            self, request: jobs.GetJobRequest, context: aio.ServicerContext[Any, Any]
        ) -> jobs.GetJobResponse:
            metadata = (("grpc-status-details-bin", b"\xff\xff\xff"),)
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone", trailing_metadata=metadata)
            raise AssertionError("abort raises")

    with Client(await serve(Garbage().register)) as client, pytest.raises(HeadwayError) as caught:
        await asyncio.to_thread(client.get_job, "j")
    assert (caught.value.code, caught.value.message, caught.value.reason) == (grpc.StatusCode.NOT_FOUND, "gone", "")


async def test_pages_follow_each_other(serve: Serve) -> None:
    address = await serve(Jobs().register)

    async def listed(client: AsyncClient) -> list[str]:
        return [job.job_id async for job in client.list_jobs("p")]

    results = await both(address, lambda client: [job.job_id for job in client.list_jobs("p")], listed)
    assert results == [["0", "1", "2"]] * 2


async def test_every_kind_of_call_carries_the_callers_trace(serve: Serve) -> None:
    servicer = Jobs()
    address = await serve(servicer.register)

    def watch(client: Client) -> None:
        client.get_job("j")
        list(client.watch_events(job_id="j"))

    async def watch_async(client: AsyncClient) -> None:
        await client.get_job("j")
        _ = [batch async for batch in client.watch_events(job_id="j")]

    with trace.use_span(TracerProvider().get_tracer("test").start_span("caller"), end_on_exit=True) as span:
        await both(address, watch, watch_async)
    trace_id = f"{span.get_span_context().trace_id:032x}"
    parents = [str(metadata["traceparent"]).split("-")[1] for metadata in servicer.metadata]
    assert parents == [trace_id] * 4


def limited(reason: str, seconds: float | None) -> status_pb2.Status:
    """A refusal as Headway gives it to who asks too much."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain="headway", metadata={"limit": "calls_per_second"}),
        error_details_pb2.QuotaFailure(violations=[{"subject": "service:a", "description": "2,000 calls a second"}]),
        error_details_pb2.PreconditionFailure(violations=[{"type": "STATE", "subject": "job", "description": "is final"}]),
    ]
    if seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=seconds)))
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="too many calls")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


class Limited(Jobs):
    def __init__(self, failures: int, seconds: float | None) -> None:
        super().__init__(failures)
        self.status = limited("RATE_LIMITED", seconds)

    async def _seen(self, request: Message, context: aio.ServicerContext[Any, Any]) -> None:
        self.requests.append(request)
        if len(self.requests) <= self.failures:
            await context.abort_with_status(rpc_status.to_status(self.status))


async def test_who_asks_too_much_waits_as_long_as_the_server_says(serve: Serve) -> None:
    servicer = Limited(2, seconds=0.2)
    began = asyncio.get_running_loop().time()
    async with AsyncClient(await serve(servicer.register), retries=QUICK) as client:
        await client.submit_job("p", SPEC)
    assert asyncio.get_running_loop().time() - began >= 0.4
    assert len(servicer.requests) == 3
    assert all(request == servicer.requests[0] for request in servicer.requests)


async def test_nobody_waits_beyond_their_deadline_or_without_being_asked_to(serve: Serve) -> None:
    late, unsaid = Limited(9, seconds=60.0), Limited(9, seconds=None)
    for servicer in (late, unsaid):
        async with AsyncClient(await serve(servicer.register), deadline_seconds=5, retries=QUICK) as client:
            with pytest.raises(HeadwayError) as caught:
                await client.get_job("j")
        assert len(servicer.requests) == 1
        assert caught.value.reason == "RATE_LIMITED"
        assert [quota.subject for quota in caught.value.quotas] == ["service:a"]
        assert [(one.type, one.description) for one in caught.value.preconditions] == [("STATE", "is final")]
        assert caught.value.retry_after_seconds == (60.0 if servicer is late else None)


def test_every_fault_is_told_once() -> None:
    both = [FieldViolation("a", "is 0; expected 1"), FieldViolation("b", "is empty")]
    listed = "the request is not valid: a: is 0; expected 1; b: is empty"
    error = HeadwayError(grpc.StatusCode.INVALID_ARGUMENT, listed, reason="INVALID_FIELD", violations=both)
    assert str(error) == "the request is not valid [INVALID_FIELD]\n  a: is 0; expected 1\n  b: is empty"
    one = HeadwayError(grpc.StatusCode.INVALID_ARGUMENT, "not valid: b: is empty", reason="INVALID_FIELD", violations=both[1:])
    assert str(one) == "not valid: b: is empty [INVALID_FIELD]"


def test_a_status_inside_an_answer_is_read_like_an_error() -> None:
    error = from_status(limited("TOO_MANY_CALLS", 1.5))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    assert error.retry_after_seconds == 1.5


def test_a_fault_that_is_the_sentence_is_not_told_again() -> None:
    sentence = "cannot cancel a job that is FAILED; expected it to be RUNNING"
    conditions = [Precondition("STATE", "FAILED", sentence)]
    error = HeadwayError(grpc.StatusCode.FAILED_PRECONDITION, sentence, reason="ILLEGAL_TRANSITION", preconditions=conditions)
    assert str(error) == f"{sentence} [ILLEGAL_TRANSITION]"
    quotas = [QuotaViolation("service:a", "too many calls"), QuotaViolation("project p", "2,000 a second")]
    limited_twice = HeadwayError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", reason="RATE_LIMITED", quotas=quotas)
    assert str(limited_twice) == "too many calls [RATE_LIMITED]\n  project p: 2,000 a second"


def test_a_list_of_faults_that_was_cut_is_told_by_its_details() -> None:
    faults = [FieldViolation("a", "is 0; expected 1"), FieldViolation("b", "is empty; expected a name")]
    cut = "the request is not valid: a: is 0; expected 1; b: is emp..."
    error = HeadwayError(grpc.StatusCode.INVALID_ARGUMENT, cut, reason="INVALID_FIELD", violations=faults)
    assert error.faults == ("the request is not valid", ["a: is 0; expected 1", "b: is empty; expected a name"])


async def test_a_request_beyond_what_the_server_takes_at_all_is_refused_as_its_own_refusals_are(serve: Serve) -> None:
    address = await serve(Jobs().register)

    async def submitted(client: AsyncClient) -> HeadwayError:
        with pytest.raises(HeadwayError) as caught:
            await client.submit_job("p", SPEC, name="x" * 5_000_000)
        return caught.value

    def submit(client: Client) -> HeadwayError:
        with pytest.raises(HeadwayError) as caught:
            client.submit_job("p", SPEC, name="x" * 5_000_000)
        return caught.value

    for error in await both(address, submit, submitted):
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
        assert error.metadata["maximum"] == str(4 * 2**20)
        assert int(error.metadata["bytes"]) > 5_000_000
        assert "takes no message of more than 4,194,304" in error.message
        assert error.message.endswith("send less or split it")


def test_an_answer_beyond_what_the_client_takes_says_what_to_do() -> None:
    details = "CLIENT: Received message larger than max (40000000 vs. 33554432)"
    refused = aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, aio.Metadata(), aio.Metadata(), details)
    error = from_rpc_error(refused, "a:1")
    assert error.message.startswith("the answer has 40,000,000 bytes; this client takes at most 33,554,432, ask for less")
    assert error.reason == ""
