"""Submitting: batches whole or in part, once whatever is lost on the way, dry runs with a plan, neighbours that do no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from control_plane.app import ControlPlane
from control_plane.db.tables import CHANNEL_EVENTS_WRITTEN
from control_plane.jobs.resolve import InputKind, Reference, inputs_of
from control_plane.jobs.spec_wire import spec_from_proto
from headway.jobs.v1 import job_pb2, job_service_pb2_grpc, job_spec_pb2, plan_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway_client.job_file import read_job_file
from tests.integration.control_plane.conftest import PROJECT, Api, new_id, refused
from tests.integration.control_plane.cutting_proxy import CuttingProxy


def _batch(items: Sequence[jobs_pb.BatchItem], **fields: object) -> jobs_pb.BatchSubmitJobsRequest:
    request = jobs_pb.BatchSubmitJobsRequest(request_id=new_id(), project=PROJECT, items=items)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def _items(spec: job_spec_pb2.JobSpec, count: int) -> list[jobs_pb.BatchItem]:
    items = [jobs_pb.BatchItem(spec=spec, name=f"number {number}") for number in range(count)]
    for number, item in enumerate(items):
        item.spec.fine_tune.training.seed = number
    return items


async def _count(api: Api, table: str = "jobs") -> int:
    return int((await api.sql(f"SELECT count(*) FROM {table}"))[0][0])  # noqa: S608 - the test's own words


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason


async def test_a_batch_of_a_thousand_is_stored_whole_and_in_order(api: Api) -> None:
    request = _batch(_items(await api.inputs(), 1_000), job_set="sweep")
    response = await api.jobs.BatchSubmitJobs(request)
    assert response.accepted_count == len({result.job_id for result in response.results}) == 1_000
    job = await api.get(response.results[17].job_id)
    assert (job.name, job.spec.fine_tune.training.seed, job.job_set) == ("number 17", 17, "sweep")
    assert job.spec_sha256 == response.results[17].spec_sha256
    assert (await _count(api), await _count(api, "job_events")) == (1_000, 1_000)
    assert await api.jobs.BatchSubmitJobs(request) == response
    assert await _count(api) == 1_000


async def test_one_bad_item_refuses_the_batch_and_every_fault_is_named(api: Api) -> None:
    items = _items(await api.inputs(), 5)
    items[1].spec.fine_tune.training.steps = 0
    items[3].priority = 1_001
    items[4].spec.Clear()
    answer = await refused(api.jobs.BatchSubmitJobs(_batch(items, job_set="Not A Name")))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert answer.fields == ["job_set", "items[1].spec.fine_tune.training.steps", "items[3].priority", "items[4].spec"]
    assert await _count(api) == 0


async def test_what_only_the_database_knows_refuses_the_batch_too(api: Api) -> None:
    items = _items(await api.inputs(), 4)
    items[1].spec.fine_tune.dataset.name = "nowhere"
    items[2].spec.fine_tune.base_model = "gpt-17"
    answer = await refused(api.jobs.BatchSubmitJobs(_batch(items)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    assert answer.fields == ["items[1].spec.fine_tune.dataset.name", "items[2].spec.fine_tune.base_model"]
    assert (await _count(api), await _count(api, "idempotency_keys WHERE method = 'BatchSubmitJobs'")) == (0, 0)


async def test_partial_success_stores_the_good_and_says_of_each_bad_one_why(api: Api) -> None:
    items = _items(await api.inputs(), 5)
    items[1].spec.fine_tune.training.steps = 0
    items[3].spec.fine_tune.dataset.name = "nowhere"
    request = _batch(items, partial_success=True)
    response = await api.jobs.BatchSubmitJobs(request)
    assert response.accepted_count == await _count(api) == 3
    assert [bool(result.job_id) for result in response.results] == [True, False, True, False, True]
    assert [result.HasField("status") for result in response.results] == [False, True, False, True, False]
    bad, absent = response.results[1].status, response.results[3].status
    assert (bad.code, _reason(bad)) == (code_pb2.INVALID_ARGUMENT, "INVALID_FIELD")
    assert (absent.code, _reason(absent)) == (code_pb2.NOT_FOUND, "DATASET_NOT_FOUND")
    assert await api.jobs.BatchSubmitJobs(request) == response
    assert await _count(api) == 3


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_has_1_to_1000_items(api: Api, count: int) -> None:
    answer = await refused(api.jobs.BatchSubmitJobs(_batch([jobs_pb.BatchItem()] * count)))
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["items"])


async def test_64_identical_submits_whose_replies_are_lost_make_one_job(
    api: Api, control_plane: ControlPlane, postgres_dsn: str
) -> None:
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=await api.inputs())
    written = asyncio.Event()

    def told(_connection: object, _pid: int, _channel: str, _payload: object) -> None:
        written.set()

    listener = await asyncpg.connect(postgres_dsn)
    await listener.add_listener(CHANNEL_EVENTS_WRITTEN, told)
    async with CuttingProxy(control_plane.port) as proxy:
        async with api.channel_to(proxy.port) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            await stub.ListJobs(jobs_pb.ListJobsRequest(project=PROJECT))  # the connection stands
            proxy.swallowing = True
            lost = [asyncio.ensure_future(stub.SubmitJob(request)) for _ in range(64)]
            await asyncio.wait_for(written.wait(), 20)
            proxy.cut()
            for error in await asyncio.gather(*lost, return_exceptions=True):
                assert isinstance(error, grpc.aio.AioRpcError)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        proxy.swallowing = False
        async with api.channel_to(proxy.port) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            answers = await asyncio.gather(*(stub.SubmitJob(request) for _ in range(64)))
    await listener.close()
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert (await _count(api), await _count(api, "job_events")) == (1, 1)
    assert await _count(api, "audit_records WHERE method LIKE '%SubmitJob'") == 1


async def _blocked(blocker: asyncpg.Connection, writers: int) -> None:
    """Returns once so many transactions wait for the event log, which `blocker` holds."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'job_events'::regclass"
    async with asyncio.timeout(20):
        # PostgreSQL tells nobody who waits for a lock; asking is a round trip, during which others run.
        while int(await blocker.fetchval(waiting) or 0) < writers:
            pass


async def test_a_caller_who_gives_up_does_not_undo_the_submit(api: Api, postgres_dsn: str) -> None:
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=await api.inputs())
    blocker = await asyncpg.connect(postgres_dsn)
    block = blocker.transaction()
    await block.start()
    await blocker.execute("LOCK TABLE job_events IN EXCLUSIVE MODE")
    call = api.jobs.SubmitJob(request)
    await _blocked(blocker, 1)
    call.cancel()
    await block.rollback()
    await blocker.close()
    job = (await api.jobs.SubmitJob(request)).job
    assert [job.job_id] == [row[0] for row in await api.sql("SELECT job_id::text FROM jobs")]


async def test_a_submission_that_the_database_refuses_fails_none_of_its_neighbours(api: Api, postgres_dsn: str) -> None:
    spec = await api.inputs()
    await api.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.name = 'poison' THEN RAISE 'refused'; END IF; RETURN NEW; END $$"
    )
    await api.sql("CREATE TRIGGER refuse BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
    blocker = await asyncpg.connect(postgres_dsn)
    block = blocker.transaction()
    await block.start()
    await blocker.execute("LOCK TABLE job_events IN EXCLUSIVE MODE")  # so that they gather into groups
    names = [f"good {number}" for number in range(40)]
    names.insert(23, "poison")
    calls = [
        asyncio.ensure_future(
            api.jobs.SubmitJob(jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec, name=name))
        )
        for name in names
    ]
    await _blocked(blocker, 2)
    await block.rollback()
    await blocker.close()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    failed = [name for name, answer in zip(names, answers, strict=True) if isinstance(answer, BaseException)]
    assert failed == ["poison"]
    assert await _count(api) == 40


async def test_the_priority_stays_below_the_projects_ceiling(api: Api) -> None:
    spec = await api.inputs()
    await api.sql("UPDATE projects SET priority_max = 300 WHERE project = :project", project=PROJECT)
    submitter = await api.acting_as("SUBMITTER")
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec)
    assert (await submitter.jobs.SubmitJob(request)).job.priority == 300
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec, priority=301)
    answer = await refused(submitter.jobs.SubmitJob(request))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert (await api.jobs.SubmitJob(request)).job.priority == 301, "an organisation's admin may"


async def test_nothing_is_submitted_to_a_project_that_is_not_there_or_was_deleted(api: Api) -> None:
    spec = await api.inputs()
    answer = await refused(api.jobs.SubmitJob(jobs_pb.SubmitJobRequest(request_id=new_id(), project="nowhere", spec=spec)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "PROJECT_NOT_FOUND")
    await api.sql("UPDATE projects SET deleted_at = now() WHERE project = :project", project=PROJECT)
    answer = await refused(api.jobs.SubmitJob(jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "PROJECT_NOT_FOUND")


async def test_a_dry_run_answers_with_the_plan(api: Api) -> None:
    spec = await api.inputs()
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec, validate_only=True)
    plan = (await api.jobs.SubmitJob(request)).plan
    assert [phase.name for phase in plan.phases] == ["prepare", "train", "evaluate", "gate", "package", "register"]
    assert [phase.queue == plan_pb2.PHASE_QUEUE_GPU for phase in plan.phases] == [False, True, True, False, False, False]
    assert plan.steps == 10
    assert not plan.HasField("tokens"), "nobody has counted them yet"
    job = await api.submit(spec)
    await api.sql(
        "UPDATE jobs SET result = CAST(:result AS jsonb) WHERE job_id = :job_id",
        job_id=job.job_id,
        result='{"prepare": {"train_rows": 90, "eval_rows": 10, "train_tokens": 900, "eval_tokens": 100}}',
    )
    assert (await api.jobs.SubmitJob(request)).plan.tokens.per_pass > 0
    assert await _count(api) == 1


async def test_who_submits_is_on_record(api: Api) -> None:
    submitter = await api.acting_as("SUBMITTER")
    request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=await api.inputs())
    job = (await submitter.jobs.SubmitJob(request)).job
    assert job.submitter == submitter.subject
    assert job.state == job_pb2.JOB_STATE_QUEUED
    [(principal, project, object_, code, request_id)] = await api.sql(
        "SELECT principal, project, object, code, request_id FROM audit_records WHERE method LIKE '%JobService/SubmitJob'"
    )
    assert (principal, project, object_, code) == (submitter.subject, PROJECT, job.job_id, "OK")
    assert request_id == request.request_id


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "examples").glob("*.yaml")), ids=lambda path: path.stem)
async def test_the_example_of_every_type_is_accepted_and_says_if_nothing_runs_it_yet(api: Api, path: Path) -> None:
    request = read_job_file(path)
    request.request_id, request.project = new_id(), PROJECT
    for _, reference in inputs_of(spec_from_proto(request.spec)):
        await _exists(api, reference)
    response = await api.jobs.SubmitJob(request)
    assert response.job.state == job_pb2.JOB_STATE_QUEUED
    assert response.job.spec.WhichOneof("type") == path.stem
    assert await api.get(response.job.job_id) == response.job
    runs = path.stem == "fine_tune"
    assert bool(response.warnings) == bool(response.job.waiting_reason) != runs
    request.request_id, request.validate_only = new_id(), True
    assert len((await api.jobs.SubmitJob(request)).plan.phases) >= 1


async def _exists(api: Api, reference: Reference) -> None:
    """Registers what a spec names, as far as a submit looks at it."""
    match reference.kind:
        case InputKind.DATASET:
            await api.sql(
                "INSERT INTO datasets (project, name, sha256, size_bytes, uri, license, attribution)"
                " VALUES (:project, :name, repeat('0', 64), 1, 's3://headway/x', '', '') ON CONFLICT DO NOTHING",
                project=PROJECT,
                name=reference.name,
            )
        case InputKind.BASE_MODEL:
            await api.sql(
                "INSERT INTO base_models (name, sha256, size_bytes, uri, format, license, attribution)"
                " VALUES (:name, repeat('0', 64), 1, 's3://headway/x', 'GGUF', '', '') ON CONFLICT DO NOTHING",
                name=reference.name,
            )
        case InputKind.MODEL_VERSION:
            job = await api.submit(await api.inputs())
            await api.sql(
                "INSERT INTO model_versions (project, model, version, job_id, manifest_uri, manifest_sha256, lineage, metrics)"
                " VALUES (:project, :model, (SELECT 1 + count(*) FROM model_versions), :job_id, 's3://headway/y',"
                " repeat('1', 64), '{}', '{}')",
                project=PROJECT,
                model=reference.name,
                job_id=job.job_id,
            )
            await api.sql(
                "INSERT INTO model_aliases (project, model, alias, version)"
                " VALUES (:project, :model, :alias, (SELECT max(version) FROM model_versions))",
                project=PROJECT,
                model=reference.name,
                alias=reference.alias,
            )
