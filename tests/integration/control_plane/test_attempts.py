"""What workers write: once, only for the current attempt, and only under a lease where one is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from headway.attempts.v1 import attempt_service_pb2 as pb
from headway.jobs.v1 import job_event_pb2, job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.registry.v1 import registry_service_pb2 as registry_pb
from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused

TRAIN = job_pb2.JOB_PHASE_TRAIN


def _checkpoint(
    job_id: str, attempt: int, step: int, sha256: str = "a" * 64, metric: float | None = None
) -> pb.CommitCheckpointRequest:
    return pb.CommitCheckpointRequest(
        job_id=job_id,
        attempt=attempt,
        checkpoint=pb.Checkpoint(
            step=step,
            manifest_uri=f"s3://headway/projects/support/manifests/{sha256}.json",
            manifest_sha256=sha256,
            metric=metric,
        ),
    )


async def _event_types(api: Api, job_id: str) -> list[str]:
    rows = await api.sql("SELECT type FROM job_events WHERE job_id = :job_id ORDER BY sequence", job_id=job_id)
    return [row[0] for row in rows]


async def test_phases_are_recorded_once_and_what_they_found_is_the_jobs_result(api: Api) -> None:
    job_id = await api.running()
    finish = pb.FinishPhaseRequest(job_id=job_id, phase=job_pb2.JOB_PHASE_PREPARE)
    finish.detail.update({"train_rows": 811, "nested": {"list": [1, 2.5, None, "x", True]}})
    for _ in range(3):
        await api.attempts.StartPhase(pb.StartPhaseRequest(job_id=job_id, phase=job_pb2.JOB_PHASE_PREPARE))
        await api.attempts.FinishPhase(finish)
    job = await api.get(job_id)
    assert job.state == job_pb2.JOB_STATE_RUNNING
    found = {"train_rows": 811, "nested": {"list": [1, 2.5, None, "x", True]}}
    assert MessageToDict(job.result) == {"prepare": found}
    assert await _event_types(api, job_id) == ["SUBMITTED", "STATE_CHANGED", "PHASE_STARTED", "PHASE_FINISHED"]


async def test_a_lease_is_asked_for_once_and_settled_to_the_millisecond_when_it_ends(api: Api) -> None:
    job_id, lease_id = await api.leased()
    await api.sql("UPDATE leases SET granted_at = now() - interval '90 seconds' WHERE lease_id = :id", id=lease_id)
    release = pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="completed")
    answers = [await api.attempts.ReleaseLease(release) for _ in range(2)]
    assert answers[0] == answers[1]
    assert 90 <= answers[0].accelerator_seconds < 100
    job = await api.get(job_id)
    assert dict(job.accelerator_seconds) == {"cpu": answers[0].accelerator_seconds}
    assert (await _event_types(api, job_id)).count("LEASE_ENDED") == 1


async def test_asking_again_for_the_same_lease_changes_nothing_even_after_the_grant(api: Api) -> None:
    job_id, lease_id = await api.leased()
    again = pb.RequestLeaseRequest(
        lease_id=lease_id,
        job_id=job_id,
        attempt=0,
        phase=TRAIN,
        shape=pb.Shape(accelerators=1, accelerator_kind="any"),
        max_run_seconds=60,
    )
    await api.attempts.RequestLease(again)
    assert await api.sql("SELECT state FROM leases") == [("GRANTED",)]


async def test_a_lease_is_prolonged_only_while_it_is_held(api: Api) -> None:
    job_id, lease_id = await api.leased()
    renew = pb.RenewLeaseRequest(lease_id=lease_id, job_id=job_id, attempt=1)
    await api.sql("UPDATE leases SET expires_at = now() + interval '1 second'")
    assert (await api.attempts.RenewLease(renew)).remaining_seconds == 30
    [(left,)] = await api.sql("SELECT extract(epoch FROM expires_at - now()) FROM leases")
    assert 25 < left <= 30
    await api.sql("UPDATE leases SET expires_at = now() - interval '1 second'")
    answer = await refused(api.attempts.RenewLease(renew))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_NOT_HELD")


async def _steps(api: Api, job_id: str) -> list[int]:
    listed = (await api.attempts.ListCheckpoints(pb.ListCheckpointsRequest(job_id=job_id))).checkpoints
    return [checkpoint.step for checkpoint in listed]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://headway/projects/other/manifests/{sha256}.json",
        "s3://headway/projects/support/manifests/{other}.json",
        "s3://headway/projects/support/../other/projects/support/manifests/{sha256}.json",
        "s3://headway/elsewhere/projects/support/manifests/{sha256}.json",
        "s3:///projects/support/manifests/{sha256}.json",
        "s3://headway/projects/support/manifests/{sha256}.json?versionId=1",
        "s3://headway/projects/SUPPORT/manifests/{sha256}.json",
        "s3n://headway/projects/support/manifests/{sha256}.json",
        "file:///projects/support/manifests/{sha256}.json",
        "https://headway/projects/support/manifests/{sha256}.json",
        "",
    ],
)
async def test_an_attempt_names_only_what_its_own_project_stored(api: Api, uri: str) -> None:
    job_id, _ = await api.leased()
    sha256 = "a" * 64
    request = _checkpoint(job_id, 1, 4, sha256)
    request.checkpoint.manifest_uri = uri.format(sha256=sha256, other="b" * 64)
    answer = await refused(api.attempts.CommitCheckpoint(request))
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["checkpoint.manifest_uri"])
    version = _version(api, job_id)
    version.manifest_uri = uri.format(sha256="c" * 64, other="b" * 64)
    answer = await refused(
        api.registry.RegisterModelVersion(
            registry_pb.RegisterModelVersionRequest(job_id=job_id, attempt=1, model_version=version)
        )
    )
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["model_version.manifest_uri"])


async def test_a_commit_lets_go_what_nothing_keeps(api: Api) -> None:
    job_id, _ = await api.leased()
    for step, metric in ((1, 2.0), (2, 1.0), (3, 3.0), (4, None), (5, None), (6, 1.5)):
        await api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, step, metric=metric))
    assert await _steps(api, job_id) == [6, 5, 4, 2]
    rows = await api.sql(
        "SELECT detail FROM job_events WHERE job_id = :job_id AND type = 'CHECKPOINT_COMMITTED' ORDER BY sequence",
        job_id=job_id,
    )
    assert [row.detail.get("released_steps") for row in rows] == [None, None, None, [1], None, [3]]


async def test_what_an_attempt_went_on_from_and_what_a_version_refers_to_stay(api: Api) -> None:
    job_id, lease_id = await api.leased()
    for step in (1, 2, 3):
        await api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, step, str(step) * 64))
    await api.sql(
        """
        INSERT INTO model_versions (project, model, version, job_id, manifest_uri, manifest_sha256, lineage, metrics)
        VALUES ('support', 'assistant', 1, :job_id, '', :sha256, '{}', '{}')
        """,
        job_id=job_id,
        sha256="1" * 64,
    )
    await api.attempts.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="lost"))
    await api.leased(job_id, 1)
    await api.attempts.RecordResume(pb.RecordResumeRequest(job_id=job_id, attempt=2, step=2, damaged_steps=[3]))
    for step in (4, 5, 6, 7):
        await api.attempts.CommitCheckpoint(_checkpoint(job_id, 2, step))
    assert await _steps(api, job_id) == [7, 6, 5, 2, 1]
    # Who was replaced lets nothing go.
    assert (await refused(api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, 8)))).reason == "STALE_ATTEMPT"
    assert await _steps(api, job_id) == [7, 6, 5, 2, 1]


async def test_a_checkpoint_needs_a_lease_that_has_not_expired(api: Api) -> None:
    job_id, lease_id = await api.leased()
    for _ in range(2):
        await api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, 4))
    assert (await api.get(job_id)).checkpoint_step == 4
    assert (await _event_types(api, job_id)).count("CHECKPOINT_COMMITTED") == 1
    await api.sql("UPDATE leases SET expires_at = now() - interval '1 second' WHERE lease_id = :id", id=lease_id)
    answer = await refused(api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, 8)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_NOT_HELD")
    assert (await api.get(job_id)).checkpoint_step == 4


async def test_a_newer_attempt_replaces_a_damaged_step_and_an_older_one_never_returns(api: Api) -> None:
    job_id, lease_id = await api.leased()
    for step in (4, 8):
        await api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, step))
    await api.attempts.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="lost"))
    await api.leased(job_id, attempt=1)
    resume = pb.RecordResumeRequest(job_id=job_id, attempt=2, step=4, damaged_steps=[8])
    for _ in range(2):
        await api.attempts.RecordResume(resume)
    listed = (await api.attempts.ListCheckpoints(pb.ListCheckpointsRequest(job_id=job_id))).checkpoints
    assert [checkpoint.step for checkpoint in listed] == [4]
    await api.attempts.CommitCheckpoint(_checkpoint(job_id, 2, 8, "b" * 64))
    listed = (await api.attempts.ListCheckpoints(pb.ListCheckpointsRequest(job_id=job_id))).checkpoints
    assert [(checkpoint.step, checkpoint.attempt) for checkpoint in listed] == [(8, 2), (4, 1)]
    assert (await refused(api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, 12)))).reason == "STALE_ATTEMPT"
    assert (await _event_types(api, job_id)).count("RESUMED") == 1


STALE_WRITES: list[Callable[[Api, str], Any]] = [
    lambda api, job: api.attempts.StartPhase(pb.StartPhaseRequest(job_id=job, attempt=0, phase=TRAIN)),
    lambda api, job: api.attempts.FinishPhase(pb.FinishPhaseRequest(job_id=job, attempt=0, phase=TRAIN)),
    lambda api, job: api.attempts.CommitCheckpoint(_checkpoint(job, 0, 4)),
    lambda api, job: api.attempts.RecordResume(pb.RecordResumeRequest(job_id=job, attempt=0)),
    lambda api, job: api.attempts.RequestLease(
        pb.RequestLeaseRequest(
            lease_id=new_id(), job_id=job, attempt=0, phase=TRAIN, shape=pb.Shape(accelerators=1), max_run_seconds=1
        )
    ),
    lambda api, job: api.attempts.FinishJob(pb.FinishJobRequest(job_id=job, attempt=0, state=job_pb2.JOB_STATE_SUCCEEDED)),
    lambda api, job: api.registry.RegisterModelVersion(
        registry_pb.RegisterModelVersionRequest(job_id=job, attempt=0, model_version=_version(api, job))
    ),
    lambda api, job: api.registry.RecordMirror(registry_pb.RecordMirrorRequest(job_id=job, attempt=0, mlflow_version="1")),
]


@pytest.mark.parametrize("write", STALE_WRITES)
async def test_a_stale_attempt_changes_nothing(api: Api, write: Callable[[Api, str], Any]) -> None:
    job_id, _ = await api.leased()
    before = await api.get(job_id)
    answer = await refused(write(api, job_id))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_ATTEMPT")
    assert answer.metadata == {"job_id": job_id, "attempt": "0", "current_attempt": "1"}
    assert await api.get(job_id) == before


async def test_the_end_gives_back_what_is_held_and_is_final(api: Api) -> None:
    job_id, _ = await api.leased()
    finish = pb.FinishJobRequest(job_id=job_id, attempt=1, state=job_pb2.JOB_STATE_FAILED)
    finish.failure.kind = job_pb2.FAILURE_KIND_NUMERIC
    finish.failure.message = "loss became NaN at step 3"
    finish.failure.violations.add(path="/completion", line=7, code="empty_completion", message="expected text")
    finish.failure.violation_count = 1
    for _ in range(2):
        assert (await api.attempts.FinishJob(finish)).state == job_pb2.JOB_STATE_FAILED
    job = await api.get(job_id)
    assert job.failure == finish.failure
    assert await api.sql("SELECT state, outcome FROM leases") == [("ENDED", "failed")]
    assert await api.sql("SELECT count(*) FROM outbox WHERE state <> 'done'") == [(0,)]
    types = await _event_types(api, job_id)
    assert types[-2:] == ["LEASE_ENDED", "STATE_CHANGED"]
    succeed = pb.FinishJobRequest(job_id=job_id, attempt=1, state=job_pb2.JOB_STATE_SUCCEEDED)
    assert (await api.attempts.FinishJob(succeed)).state == job_pb2.JOB_STATE_FAILED
    for late in (
        api.attempts.StartPhase(pb.StartPhaseRequest(job_id=job_id, attempt=1, phase=TRAIN)),
        api.attempts.CommitCheckpoint(_checkpoint(job_id, 1, 4)),
    ):
        assert (await refused(late)).reason == "STALE_ATTEMPT"


async def test_a_job_asked_to_stop_ends_as_cancelled_whatever_its_workflow_says(api: Api) -> None:
    job_id = await api.running()
    await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job_id))
    finish = pb.FinishJobRequest(job_id=job_id, attempt=0, state=job_pb2.JOB_STATE_SUCCEEDED)
    assert (await api.attempts.FinishJob(finish)).state == job_pb2.JOB_STATE_CANCELLED


async def test_bad_worker_requests_name_their_fields(api: Api) -> None:
    job_id = await api.running()
    cases: list[tuple[Any, str]] = [
        (api.attempts.StartPhase(pb.StartPhaseRequest(job_id=job_id)), "phase"),
        (api.attempts.StartPhase(pb.StartPhaseRequest(job_id="x", phase=TRAIN)), "job_id"),
        (
            api.attempts.RequestLease(pb.RequestLeaseRequest(lease_id=new_id(), job_id=job_id, phase=TRAIN)),
            "shape.accelerators",
        ),
        (
            api.attempts.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=new_id(), job_id=job_id, outcome="tired")),
            "outcome",
        ),
        (api.attempts.CommitCheckpoint(_checkpoint(job_id, 0, 0)), "checkpoint.step"),
        (api.attempts.CommitCheckpoint(_checkpoint(job_id, 0, 1, metric=float("nan"))), "checkpoint.metric"),
        (api.attempts.CommitCheckpoint(_checkpoint(job_id, 0, 1, "zz")), "checkpoint.manifest_sha256"),
        (api.attempts.FinishJob(pb.FinishJobRequest(job_id=job_id)), "state"),
        (api.attempts.FinishJob(pb.FinishJobRequest(job_id=job_id, state=job_pb2.JOB_STATE_FAILED)), "failure"),
    ]
    for call, field in cases:
        answer = await refused(call)
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


def _version(api: Api, job_id: str) -> registry_pb.ModelVersion:
    uri = f"s3://{api.bucket}/projects/support/manifests/{'c' * 64}.json"
    version = registry_pb.ModelVersion(project=PROJECT, model="assistant", manifest_uri=uri, manifest_sha256="c" * 64)
    version.lineage.job_id = job_id
    version.lineage.dataset_sha256 = "d" * 64
    version.metrics.update({"tuned_loss": 3.02})
    return version


async def test_a_job_registers_exactly_one_version_however_often_it_says_so(api: Api) -> None:
    job_id = await api.running()
    request = registry_pb.RegisterModelVersionRequest(job_id=job_id, model_version=_version(api, job_id))
    answers = await asyncio.gather(*(api.registry.RegisterModelVersion(request) for _ in range(16)))
    assert {answer.model_version.version for answer in answers} == {1}
    await api.registry.RecordMirror(registry_pb.RecordMirrorRequest(job_id=job_id, mlflow_version="7"))
    by_alias = registry_pb.GetModelVersionRequest(project=PROJECT, model="assistant", alias="dev")
    stored = (await api.registry.GetModelVersion(by_alias)).model_version
    assert (stored.version, list(stored.aliases), stored.mlflow_version) == (1, ["dev"], "7")
    assert stored.lineage.dataset_sha256 == "d" * 64


async def test_versions_of_a_model_count_without_a_hole_and_dev_is_the_newest(api: Api) -> None:
    spec = await api.inputs()
    jobs = [await api.running(spec) for _ in range(8)]
    await asyncio.gather(
        *(
            api.registry.RegisterModelVersion(
                registry_pb.RegisterModelVersionRequest(job_id=job_id, model_version=_version(api, job_id))
            )
            for job_id in jobs
        )
    )
    listed: list[int] = []
    aliases: list[list[str]] = []
    token = ""
    while True:
        request = registry_pb.ListModelVersionsRequest(project=PROJECT, page_size=3, page_token=token)
        page = await api.registry.ListModelVersions(request)
        listed += [version.version for version in page.model_versions]
        aliases += [list(version.aliases) for version in page.model_versions]
        token = page.next_page_token
        if not token:
            break
    assert listed == list(range(8, 0, -1))
    assert aliases == [["dev"]] + [[]] * 7


async def test_an_event_of_every_kind_has_its_number_on_the_wire(api: Api) -> None:
    job_id, lease_id = await api.leased()
    await api.attempts.RecordResume(pb.RecordResumeRequest(job_id=job_id, attempt=1))
    await api.attempts.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="lost"))
    await api.attempts.FinishJob(pb.FinishJobRequest(job_id=job_id, attempt=1, state=job_pb2.JOB_STATE_CANCELLED))
    seen: list[job_event_pb2.JobEvent] = []
    async for message in api.jobs.WatchEvents(jobs_pb.WatchEventsRequest(job_id=job_id)):
        seen += message.events
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert all(event.type != job_event_pb2.JOB_EVENT_TYPE_UNSPECIFIED for event in seen)
    assert seen[-1].state == job_pb2.JOB_STATE_CANCELLED
