"""Submit, get, list and cancel: exactly once, whole or not at all, and refused in the contract's form."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from headway.datasets.v1 import dataset_service_pb2 as datasets_pb
from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from tests.integration.control_plane.callers import OTHER_PROJECT, PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused


async def _counts(api: Api) -> tuple[int, int, int]:
    rows = await api.sql(
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM job_events),"
        " (SELECT count(*) FROM idempotency_keys WHERE method = 'SubmitJob')"
    )
    return tuple(rows[0])


async def test_job_event_and_request_id_are_stored_together(api: Api) -> None:
    job = await api.submit(await api.inputs())
    assert job.state == job_pb2.JOB_STATE_QUEUED
    assert await _counts(api) == (1, 1, 1)
    assert await api.sql("SELECT 1 FROM outbox") == []


@pytest.mark.parametrize("table", ["job_events", "jobs", "idempotency_keys"])
async def test_a_failure_at_any_of_them_leaves_nothing_and_the_retry_succeeds(api: Api, table: str) -> None:
    spec = await api.inputs()
    await api.sql("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$")
    await api.sql(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec)
    answer = await refused(api.jobs.SubmitJob(request))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "refused" not in answer.message, "a driver's words must not reach the caller"
    assert await _counts(api) == (0, 0, 0)
    await api.sql(f"DROP TRIGGER refuse ON {table}")
    await api.jobs.SubmitJob(request)
    assert await _counts(api) == (1, 1, 1)


async def test_64_identical_submits_at_once_make_one_job_and_one_answer(api: Api) -> None:
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=await api.inputs())
    answers = await asyncio.gather(*(api.jobs.SubmitJob(request) for _ in range(64)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert await _counts(api) == (1, 1, 1)


async def test_a_repeat_gets_the_first_answer_even_after_the_job_moved_on(api: Api) -> None:
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=await api.inputs())
    first = await api.jobs.SubmitJob(request)
    await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=first.job.job_id))
    assert await api.jobs.SubmitJob(request) == first


async def test_defaults_spelled_out_are_the_same_request(api: Api) -> None:
    spec, request_id = await api.inputs(), new_id()
    first = await api.jobs.SubmitJob(jobs_pb.SubmitJobRequest(request_id=request_id, project=PROJECT, spec=spec))
    spec.fine_tune.training.steps = 10
    spec.fine_tune.resources.accelerator_kind = "any"
    again = jobs_pb.SubmitJobRequest(request_id=request_id, project=PROJECT, spec=spec, priority=500)
    assert await api.jobs.SubmitJob(again) == first


async def test_the_same_request_id_with_another_body_or_method_is_refused(api: Api) -> None:
    spec, request_id = await api.inputs(), new_id()
    job = (await api.jobs.SubmitJob(jobs_pb.SubmitJobRequest(request_id=request_id, project=PROJECT, spec=spec))).job
    other_body = jobs_pb.SubmitJobRequest(request_id=request_id, project=PROJECT, spec=spec, priority=1)
    answer = await refused(api.jobs.SubmitJob(other_body))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert answer.metadata == {"request_id": request_id, "method": "SubmitJob"}
    other_method = jobs_pb.CancelJobRequest(request_id=request_id, job_id=job.job_id)
    assert (await refused(api.jobs.CancelJob(other_method))).reason == "REQUEST_ID_REUSED"
    assert (await api.get(job.job_id)).state == job_pb2.JOB_STATE_QUEUED


async def test_validate_only_resolves_everything_and_stores_nothing(api: Api) -> None:
    spec = await api.inputs()
    job = await api.submit(spec, validate_only=True)
    assert job.job_id == ""
    assert len(job.spec.fine_tune.dataset.sha256) == 64
    assert job.spec.fine_tune.training.steps == 10
    assert await _counts(api) == (0, 0, 0)


async def test_the_dataset_is_pinned_at_submit(api: Api) -> None:
    spec = await api.inputs()
    job = await api.submit(spec)
    pinned = job.spec.fine_tune.dataset.sha256
    data = b'{"prompt": "other", "completion": "bytes"}\n'
    sha256, _ = api.put(PROJECT, data)
    newer = datasets_pb.Dataset(project=PROJECT, name="questions", sha256=sha256, size_bytes=len(data))
    await api.datasets.RegisterDataset(datasets_pb.RegisterDatasetRequest(request_id=new_id(), dataset=newer))
    assert (await api.get(job.job_id)).spec.fine_tune.dataset.sha256 == pinned
    assert (await api.submit(spec)).spec.fine_tune.dataset.sha256 == sha256
    spec.fine_tune.dataset.sha256 = pinned
    assert (await api.submit(spec)).spec.fine_tune.dataset.sha256 == pinned


def _with(_spec: job_spec_pb2.JobSpec, **fields: Any) -> jobs_pb.SubmitJobRequest:
    arguments: dict[str, Any] = {"request_id": new_id(), "project": PROJECT, "spec": _spec, **fields}
    return jobs_pb.SubmitJobRequest(**arguments)


async def test_bad_requests_name_their_fields(api: Api) -> None:
    spec = await api.inputs()
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"request_id": ""}, ["request_id"]),
        ({"request_id": "7"}, ["request_id"]),
        ({"project": ""}, ["project"]),
        ({"project": "Support"}, ["project"]),
        ({"project": "support\n"}, ["project"]),
        ({"spec": job_spec_pb2.JobSpec()}, ["spec"]),
        ({"priority": -1}, ["priority"]),
        ({"priority": 1_001}, ["priority"]),
        ({"name": "x" * 129}, ["name"]),
        ({"name": "a\x00b"}, ["name"]),
        ({"name": "a\u202eb", "priority": 2_000}, ["name", "priority"]),
    ]
    for fields, expected in cases:
        answer = await refused(api.jobs.SubmitJob(_with(spec, **fields)))
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), fields
        assert answer.fields == expected
    assert await _counts(api) == (0, 0, 0)


async def test_what_the_spec_names_must_be_there(api: Api) -> None:
    spec = await api.inputs()
    spec.fine_tune.dataset.name = "nowhere"
    answer = await refused(api.jobs.SubmitJob(_with(spec)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    assert answer.fields == ["spec.fine_tune.dataset.name"]
    spec.fine_tune.dataset.name = "questions"
    spec.fine_tune.dataset.sha256 = "0" * 64
    assert (await refused(api.jobs.SubmitJob(_with(spec)))).reason == "DATASET_NOT_FOUND"
    spec.fine_tune.dataset.sha256 = ""
    assert (await refused(api.jobs.SubmitJob(_with(spec, project=OTHER_PROJECT)))).reason == "DATASET_NOT_FOUND"
    spec.fine_tune.base_model = "gpt-17"
    answer = await refused(api.jobs.SubmitJob(_with(spec)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "BASE_MODEL_NOT_FOUND")
    assert answer.fields == ["spec.fine_tune.base_model"]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
async def test_pages_of_any_size_give_the_same_list(api: Api, size: int) -> None:
    spec = await api.inputs()
    submitted = [(await api.submit(spec)).job_id for _ in range(7)]
    listed: list[str] = []
    token = ""
    while True:
        page = await api.jobs.ListJobs(jobs_pb.ListJobsRequest(project=PROJECT, page_size=size, page_token=token))
        assert len(page.jobs) <= size
        listed += [job.job_id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert listed == submitted[::-1]


async def test_lists_are_filtered_and_tokens_belong_to_their_list(api: Api) -> None:
    spec = await api.inputs()
    jobs = [await api.submit(spec) for _ in range(3)]
    await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=jobs[1].job_id))
    cancelled = jobs_pb.ListJobsRequest(project=PROJECT, states=[job_pb2.JOB_STATE_CANCELLED])
    assert [job.job_id for job in (await api.jobs.ListJobs(cancelled)).jobs] == [jobs[1].job_id]
    assert not (await api.jobs.ListJobs(jobs_pb.ListJobsRequest(project=OTHER_PROJECT))).jobs
    token = (await api.jobs.ListJobs(jobs_pb.ListJobsRequest(project=PROJECT, page_size=1))).next_page_token
    for other in (
        jobs_pb.ListJobsRequest(page_token=token),
        jobs_pb.ListJobsRequest(project=PROJECT, states=[job_pb2.JOB_STATE_QUEUED], page_token=token),
        jobs_pb.ListJobsRequest(project=PROJECT, page_token=token[:-2]),
        jobs_pb.ListJobsRequest(project=PROJECT, page_token="x" * 1_000_000),
    ):
        answer = await refused(api.jobs.ListJobs(other))
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR")
    negative = jobs_pb.ListJobsRequest(project=PROJECT, page_size=-1)
    assert (await refused(api.jobs.ListJobs(negative))).fields == ["page_size"]


async def test_cancelling_a_queued_job_ends_it_at_once_and_tells_nobody(api: Api) -> None:
    job = await api.submit(await api.inputs())
    request = jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job.job_id, reason="mistake")
    answers = await asyncio.gather(*(api.jobs.CancelJob(request) for _ in range(8)))
    assert {answer.job.state for answer in answers} == {job_pb2.JOB_STATE_CANCELLED}
    assert await api.sql("SELECT state FROM outbox") == []
    assert (await api.get(job.job_id)).end_time.seconds > 0


async def test_cancelling_a_running_job_tells_its_workflow_once(api: Api) -> None:
    job_id = await api.running()
    for _ in range(2):
        answer = await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job_id))
        assert answer.job.state == job_pb2.JOB_STATE_CANCELLING
    assert await api.sql("SELECT count(*) FROM outbox WHERE kind = 'cancel_workflow' AND state = 'ready'") == [(1,)]


async def test_a_final_job_cannot_be_cancelled(api: Api) -> None:
    job = await api.submit(await api.inputs())
    await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job.job_id))
    again = jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job.job_id)
    answer = await refused(api.jobs.CancelJob(again))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")
    assert answer.metadata["state"] == "CANCELLED"


async def test_a_job_that_is_not_there(api: Api) -> None:
    missing = new_id()
    answer = await refused(api.jobs.GetJob(jobs_pb.GetJobRequest(job_id=missing)))
    assert (answer.code, answer.reason, answer.metadata) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", {"job_id": missing})
    cancel = jobs_pb.CancelJobRequest(request_id=new_id(), job_id=missing)
    assert (await refused(api.jobs.CancelJob(cancel))).reason == "JOB_NOT_FOUND"
