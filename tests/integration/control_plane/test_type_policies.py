"""What a job's type does to its priority: as it is submitted, as it is given another, and as it is explained."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.app import ControlPlane
from control_plane.settings import PolicySettings, S3Settings
from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as pb
from headway.scheduler.v1 import scheduler_service_pb2, snapshot_pb2
from headway_client.cli.exit_codes import ExitCode
from tests.integration.control_plane.conftest import PROJECT, Api, new_id, settings_of
from tests.integration.control_plane.test_command_line import CommandLine


@pytest_asyncio.fixture
async def filling(postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine) -> AsyncIterator[Api]:
    """Where searches are filler."""
    settings = settings_of(postgres_dsn, s3_settings).model_copy(update={"policies": PolicySettings(filler_types=("hpo",))})
    async with ControlPlane(settings) as running, Api(running.port, engine, s3_settings) as api:
        yield api


async def search(api: Api) -> job_spec_pb2.JobSpec:
    spec = job_spec_pb2.JobSpec(hpo=job_spec_pb2.HpoSpec(trial=(await api.inputs()).fine_tune, max_trials=4))
    spec.hpo.search_space["training.learning_rate"].real.CopyFrom(job_spec_pb2.RealRange(low=1e-5, high=1e-3))
    return spec


async def retraining(api: Api) -> job_spec_pb2.JobSpec:
    spec = job_spec_pb2.JobSpec(retrain=job_spec_pb2.RetrainSpec(fine_tune=(await api.inputs()).fine_tune))
    spec.retrain.triggers.schedule.cron = "0 3 * * *"
    spec.retrain.budget.max_accelerator_seconds = 3_600
    spec.retrain.min_interval_seconds = 86_400
    spec.retrain.fine_tune.resources.max_run_seconds = 7_200
    return spec


async def submitted(api: Api, spec: job_spec_pb2.JobSpec, priority: int | None, dry: bool = False) -> job_pb2.Job:
    request = pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec, priority=priority, validate_only=dry)
    return (await api.jobs.SubmitJob(request)).job


async def explained(api: Api, job_id: str) -> scheduler_service_pb2.ExplainJobResponse:
    return await api.scheduler.ExplainJob(scheduler_service_pb2.ExplainJobRequest(job_id=job_id))


@pytest.mark.parametrize(("asked", "given"), [(None, 99), (1_000, 99), (99, 99), (7, 7)])
async def test_filler_gets_at_most_what_scavengers_get_and_the_response_says_so(
    filling: Api, asked: int | None, given: int
) -> None:
    spec = await search(filling)
    assert (await submitted(filling, spec, asked, dry=True)).priority == given
    job = await submitted(filling, spec, asked)
    assert job.priority == given
    assert (await filling.get(job.job_id)).priority == given
    found = await explained(filling, job.job_id)
    assert (found.filler, found.priority) == (True, given)
    assert found.priority_class == snapshot_pb2.PRIORITY_CLASS_SCAVENGER


async def test_what_is_no_filler_gets_what_it_asks_for(filling: Api) -> None:
    job = await submitted(filling, await filling.inputs(), 800)
    assert job.priority == 800
    assert not (await explained(filling, job.job_id)).filler


async def test_filler_stays_filler_whoever_gives_it_a_priority(filling: Api) -> None:
    filler = await submitted(filling, await search(filling), 7)
    other = await submitted(filling, await filling.inputs(), 300)
    everything = pb.JobSelection(project=PROJECT, filter="priority < 600")
    request = pb.ReprioritizeJobRequest(request_id=new_id(), selection=everything, priority=600, reason="order")
    outcome = (await filling.jobs.ReprioritizeJob(request)).outcome
    assert outcome.changed_count == 2
    assert [(await filling.get(job.job_id)).priority for job in (filler, other)] == [99, 600]
    # What has all that it may get is not chosen again.
    again = pb.ReprioritizeJobRequest(request_id=new_id(), selection=everything, priority=700, reason="order")
    assert (await filling.jobs.ReprioritizeJob(again)).outcome.changed_count == 0
    update = pb.UpdateJobRequest(request_id=new_id(), job=job_pb2.Job(job_id=filler.job_id, priority=900))
    update.update_mask.paths.append("priority")
    assert (await filling.jobs.UpdateJob(update)).job.priority == 99


async def test_a_retraining_is_to_start_in_time_for_its_next_run(api: Api, tmp_path: Path) -> None:
    job = await submitted(api, await retraining(api), 500)
    found = await explained(api, job.job_id)
    latest = found.start_by.ToDatetime() - job.create_time.ToDatetime()
    assert latest == timedelta(hours=22)
    assert not found.HasField("raised_time")
    await api.sql("UPDATE jobs SET raised_at = now(), priority = 700 WHERE job_id = :id", id=job.job_id)
    found = await explained(api, job.job_id)
    assert found.HasField("raised_time")
    assert (found.priority, found.priority_class) == (700, snapshot_pb2.PRIORITY_CLASS_HIGH)
    code, output, errors = await CommandLine(api, tmp_path, api.token).run("why", job.job_id)
    assert code == ExitCode.OK, errors
    assert "high, priority 700" in output
    assert "kept if it starts by" in output
    assert "raised for it, by one class at most, at" in output


async def test_a_retraining_that_takes_longer_than_its_interval_was_due_at_once(api: Api) -> None:
    spec = await retraining(api)
    spec.retrain.min_interval_seconds = 3_600
    job = await submitted(api, spec, 500)
    assert (await explained(api, job.job_id)).start_by == job.create_time
    assert not (await explained(api, (await api.submit(await api.inputs())).job_id)).HasField("start_by")


async def test_people_are_told_that_it_is_filler(filling: Api, tmp_path: Path) -> None:
    job = await submitted(filling, await search(filling), 500)
    code, output, errors = await CommandLine(filling, tmp_path, filling.token).run("why", job.job_id)
    assert code == ExitCode.OK, errors
    assert "filler by policy" in output
    assert "scavenger, priority 99" in output
