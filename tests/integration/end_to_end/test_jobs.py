"""Jobs through the whole system: real servers, real training in processes of its own, and kill -9 in the middle."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import boto3
import mlflow
import psutil
import pytest
from google.protobuf.json_format import MessageToDict

from headway.jobs.v1 import job_event_pb2, job_pb2
from headway_client.errors import HeadwayError
from tests.integration.end_to_end.conftest import PROJECT, System

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[3]
KILLS = ["runner", "agent", "gpu-worker"]


@pytest.fixture(scope="module")
def uninterrupted(system: System) -> job_pb2.Job:
    """A job that nobody disturbed: what the disturbed ones are held against."""
    return system.finished(system.submit("undisturbed"))


def _adapter_sha256(system: System, job: job_pb2.Job) -> str:
    """The hash of the trained weights, from the package's manifest."""
    manifest = json.loads(system.read(system.version(job).manifest_uri))
    [adapter] = [file for file in manifest["files"] if file["name"].endswith("adapter_model.safetensors")]
    return adapter["sha256"]


def test_a_job_ends_with_a_registered_model_that_got_better(system: System, uninterrupted: job_pb2.Job) -> None:
    job = uninterrupted
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    result = system.result(job)
    assert set(result) == {"prepare", "train", "evaluate", "gate", "package", "register"}
    assert result["evaluate"]["gain"] > 2 * result["evaluate"]["gain_se"] > 0
    assert result["prepare"]["train_rows"] > result["prepare"]["eval_rows"] > 0
    version = system.version(job)
    lineage = version.lineage
    assert list(version.aliases) == ["dev"]
    assert lineage.job_id == job.job_id
    assert lineage.dataset_sha256 == job.spec.fine_tune.dataset.sha256
    assert lineage.spec_sha256 == job.spec_sha256
    assert lineage.trace_id == job.trace_id
    for digest in (lineage.base_model_sha256, lineage.environment_lock_sha256, version.manifest_sha256):
        assert len(digest) == 64
    assert lineage.code_version


def test_use_is_settled_and_cpu_time_is_no_gpu_time(system: System, uninterrupted: job_pb2.Job) -> None:
    assert set(uninterrupted.accelerator_seconds) == {"cpu"}
    assert uninterrupted.accelerator_seconds["cpu"] > 1
    with system.client() as client:
        [usage] = client.get_usage(PROJECT)
        assert (usage.accelerator_kind, usage.gpu_hours) == ("cpu", 0)
        assert usage.accelerator_seconds >= uninterrupted.accelerator_seconds["cpu"]
        assert all(worker.accelerators_leased == 0 for worker in client.list_workers())


def test_mlflow_mirrors_the_version(system: System, uninterrupted: job_pb2.Job) -> None:
    version = system.version(uninterrupted)
    registry = mlflow.MlflowClient(system.mlflow_url, registry_uri=system.mlflow_url)
    mirrored = registry.get_model_version(f"{PROJECT}.{version.model}", version.mlflow_version)
    assert mirrored.source == version.manifest_uri
    assert uninterrupted.job_id in mirrored.tags.values()
    assert version.lineage.dataset_sha256 in mirrored.tags.values()


def test_the_gpu_is_asked_for_only_after_the_data_is_prepared(system: System, uninterrupted: job_pb2.Job) -> None:
    kinds = [(event.type, event.phase) for event in system.events(uninterrupted.job_id)]
    prepared = kinds.index((job_event_pb2.JOB_EVENT_TYPE_PHASE_FINISHED, job_pb2.JOB_PHASE_PREPARE))
    asked = kinds.index((job_event_pb2.JOB_EVENT_TYPE_LEASE_REQUESTED, job_pb2.JOB_PHASE_TRAIN))
    assert prepared < asked


def test_logs_and_progress_are_whole_and_carry_the_trace(system: System, uninterrupted: job_pb2.Job) -> None:
    steps: list[int] = []
    sequences: dict[int, list[int]] = {}
    with system.client() as client:
        for batch in client.tail_logs(uninterrupted.job_id):
            for record in batch.records:
                sequences.setdefault(record.attempt, []).append(record.sequence)
                if record.WhichOneof("body") == "progress" and record.progress.phase == "train":
                    steps.append(record.progress.step)
                    assert record.progress.metrics["loss"] > 0
                    assert record.progress.metrics["tokens_per_second"] > 0
                assert record.trace_id == uninterrupted.trace_id
    assert steps == list(range(1, uninterrupted.spec.fine_tune.training.steps + 1))
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in sequences.values())


def test_one_trace_holds_every_hop_connected(system: System) -> None:
    job, trace_id = system.traced_job()
    assert job.trace_id == trace_id
    spans = system.spans(trace_id, until={"headway-runner", "headway-agent", "headway-cpu-worker", "headway-gpu-worker"})
    ids = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_id is None]
    assert [root.service for root in roots] == ["test-client"]
    orphans = [f"{span.service}: {span.name}" for span in spans if span.parent_id is not None and span.parent_id not in ids]
    assert not orphans
    assert {span.service for span in spans} >= {
        "test-client",
        "headway-control-plane",
        "headway-scheduler",
        "headway-cpu-worker",
        "headway-gpu-worker",
        "headway-agent",
        "headway-runner",
    }


@pytest.mark.parametrize("victim", KILLS)
def test_kill_minus_nine_in_mid_training(system: System, uninterrupted: job_pb2.Job, victim: str) -> None:
    job_id = system.submit(f"kill {victim}")
    system.await_event(job_id, job_event_pb2.JOB_EVENT_TYPE_CHECKPOINT_COMMITTED)
    before = system.training_processes()
    system.process(victim).kill()
    gone, alive = psutil.wait_procs(before, timeout=30)
    assert not alive, "whatever is killed, nothing of the attempt may live on"
    assert gone
    job = system.finished(job_id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
    events = system.events(job_id)
    resumed = [event for event in events if event.type == job_event_pb2.JOB_EVENT_TYPE_RESUMED]
    assert MessageToDict(resumed[-1].detail)["step"] >= 2, "it must go on from a checkpoint, not from the beginning"
    assert resumed[-1].attempt == 2
    assert any(event.type == job_event_pb2.JOB_EVENT_TYPE_ATTEMPT_LOST for event in events)
    assert _adapter_sha256(system, job) == _adapter_sha256(system, uninterrupted), "the finished model is the same model"
    assert not system.training_processes(), "no process may be left of the job"


def test_a_cancel_in_mid_training_gives_everything_back(system: System) -> None:
    job_id = system.submit("cancel", steps=400)
    system.await_event(job_id, job_event_pb2.JOB_EVENT_TYPE_CHECKPOINT_COMMITTED)
    with system.client() as client:
        client.cancel_job(job_id, reason="changed my mind")
    job = system.finished(job_id)
    assert job.state == job_pb2.JOB_STATE_CANCELLED
    assert job.accelerator_seconds["cpu"] > 0
    assert not system.training_processes()
    with system.client() as client:
        assert all(worker.accelerators_leased == 0 for worker in client.list_workers())


def _outcomes(events: list[job_event_pb2.JobEvent]) -> list[str]:
    ended = [event for event in events if event.type == job_event_pb2.JOB_EVENT_TYPE_LEASE_ENDED]
    return [MessageToDict(event.detail)["outcome"] for event in ended]


def test_a_pause_in_mid_training_costs_no_step_and_frees_the_accelerator(system: System, uninterrupted: job_pb2.Job) -> None:
    job_id = system.submit("pause")
    system.await_event(job_id, job_event_pb2.JOB_EVENT_TYPE_CHECKPOINT_COMMITTED)
    with system.client() as client:
        client.pause_job(job_id, reason="somebody else is in a hurry")
    system.await_state(job_id, job_pb2.JOB_STATE_PAUSED)
    assert not system.training_processes()
    # The machine has one accelerator: another job can only end if this one let go of it.
    assert system.finished(system.submit("in a hurry", steps=2)).state == job_pb2.JOB_STATE_SUCCEEDED
    with system.client() as client:
        assert client.get_job(job_id).state == job_pb2.JOB_STATE_PAUSED
        client.resume_job(job_id)
    job, events = system.finished(job_id), system.events(job_id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
    assert _outcomes(events) == ["paused", "completed", "completed"]
    assert not [event for event in events if event.type == job_event_pb2.JOB_EVENT_TYPE_ATTEMPT_LOST]
    [resumed] = [event for event in events if event.type == job_event_pb2.JOB_EVENT_TYPE_RESUMED and event.attempt == 2]
    assert MessageToDict(resumed.detail)["step"] >= 2
    assert _adapter_sha256(system, job) == _adapter_sha256(system, uninterrupted), "the finished model is the same model"


def test_a_preempted_job_goes_on_under_another_lease(system: System, uninterrupted: job_pb2.Job) -> None:
    job_id = system.submit("preempt")
    system.await_event(job_id, job_event_pb2.JOB_EVENT_TYPE_CHECKPOINT_COMMITTED)
    with system.client() as client:
        client.preempt_job(job_id, reason="a machine goes to repair")
    job, events = system.finished(job_id), system.events(job_id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
    assert _outcomes(events) == ["preempted", "completed", "completed"]
    [ended, *_] = [event for event in events if event.type == job_event_pb2.JOB_EVENT_TYPE_LEASE_ENDED]
    assert "a machine goes to repair" in MessageToDict(ended.detail)["reason"]
    assert _adapter_sha256(system, job) == _adapter_sha256(system, uninterrupted)


def test_unusable_rows_are_named_and_no_gpu_is_asked_for(system: System, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"prompt": "fine", "completion": "fine"}\n{"prompt": "", "completion": 7}\nnot json\n', encoding="utf-8")
    job = system.finished(system.submit("bad rows", dataset=system.add_dataset("bad-rows", data)))
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.failure.kind == job_pb2.FAILURE_KIND_INVALID_DATASET
    assert {violation.line for violation in job.failure.violations} == {2, 3}
    assert all(violation.code and violation.message for violation in job.failure.violations)
    assert "Traceback" not in str(job.failure)
    kinds = {event.type for event in system.events(job.job_id)}
    assert job_event_pb2.JOB_EVENT_TYPE_LEASE_REQUESTED not in kinds


def test_bytes_that_changed_in_the_store_are_never_trained_on(system: System, tmp_path: Path) -> None:
    data = tmp_path / "changed.jsonl"
    data.write_text(
        (system.data.read_text(encoding="utf-8") + '{"prompt": "one more", "completion": "row"}\n'), encoding="utf-8"
    )
    name = system.add_dataset("changed", data)
    bucket, key = system.object_of(name)
    s3 = boto3.client("s3", **system.s3_arguments)
    body = bytearray(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    body[100] ^= 1
    s3.put_object(Bucket=bucket, Key=key, Body=bytes(body))
    job = system.finished(system.submit("changed", dataset=name))
    assert job.failure.kind == job_pb2.FAILURE_KIND_INTEGRITY
    assert job_event_pb2.JOB_EVENT_TYPE_LEASE_REQUESTED not in {event.type for event in system.events(job.job_id)}


def test_a_base_model_that_is_none_fails_without_a_gpu(system: System, tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF" + bytes(range(256)) * 8)
    job = system.finished(system.submit("junk", base_model=system.add_base_model("junk", junk)))
    assert job.failure.kind == job_pb2.FAILURE_KIND_INVALID_BASE_MODEL
    assert "Traceback" not in str(job.failure)
    assert job_event_pb2.JOB_EVENT_TYPE_LEASE_REQUESTED not in {event.type for event in system.events(job.job_id)}


def test_the_gate_refuses_what_did_not_get_better_enough(system: System) -> None:
    job = system.finished(system.submit("refused", steps=1, learning_rate=1e-9))
    assert job.failure.kind == job_pb2.FAILURE_KIND_GATE_REFUSED
    assert "register" not in system.result(job)
    with system.client() as client, pytest.raises(HeadwayError) as refused:
        client.get_model_version(PROJECT, "refused", alias="dev")
    assert refused.value.reason == "MODEL_NOT_FOUND"


def test_two_jobs_share_one_accelerator_one_after_the_other(system: System) -> None:
    first, second = system.submit("first", steps=2), system.submit("second", steps=2)
    jobs = [system.finished(first), system.finished(second)]
    assert [job.state for job in jobs] == [job_pb2.JOB_STATE_SUCCEEDED] * 2
    held = sorted(span for job in jobs for span in system.leased_spans(job.job_id))
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(held)), "never two leases at once"


def test_the_example_job_runs_from_the_command_line(system: System, small_model: Path) -> None:
    """examples/fine_tune.yaml as a person submits it; only the base model behind its name is a smaller one here."""
    system.add_base_model("smollm2-135m-instruct", small_model)
    system.add_dataset("chatterbot-english", system.data, project="demo")
    submit = ["submit", "examples/fine_tune.yaml", "--watch", "--json", "--address", system.address]
    submit += ["--token-file", str(system.token_file)]
    ran = subprocess.run(
        [sys.executable, "-m", "headway_client.cli", *submit],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    with system.client() as client:
        version = client.get_model_version("demo", "support-assistant", alias="dev")
    assert version.version == 1
    assert any(version.lineage.job_id in line for line in ran.stdout.splitlines())
