"""The whole of Headway on this machine, as `headway up` runs it, with a base model small enough to train in seconds."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import mlflow
import psutil
import pytest
from google.protobuf.json_format import MessageToDict
from mlflow.exceptions import MlflowException

from control_plane.settings import S3Settings
from headway.jobs.v1 import job_event_pb2, job_pb2, job_spec_pb2
from headway.registry.v1 import registry_service_pb2
from headway_client import telemetry
from headway_client.client import Client
from headway_client.credentials import FileToken
from tests.integration.conftest import Stack
from tests.small_model import write_small_gguf

PROJECT = "trial"
DATASET = "questions"
BASE_MODEL = "small"
# Enough steps that a kill after the first checkpoint is a kill in mid-training.
STEPS = 24
CHECKPOINT_EVERY = 2
DEADLINE_SECONDS = 240.0


@dataclass(frozen=True)
class Span:
    """One span as the trace store has it."""

    service: str
    name: str
    span_id: str
    parent_id: str | None


class System:
    """A running Headway and what tests ask of it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._settings = stack.settings
        self.mlflow_url = stack.state.mlflow_url
        self.data = Path(__file__).parents[3] / "examples/data/chatterbot_english.jsonl"

    @property
    def _s3(self) -> S3Settings:
        assert self._settings.s3 is not None
        return self._settings.s3

    @property
    def s3_arguments(self) -> dict[str, Any]:
        """What boto3 needs to reach the object store."""
        s3 = self._s3
        assert s3.access_key_id is not None
        assert s3.secret_access_key is not None
        return {
            "endpoint_url": s3.endpoint_url,
            "region_name": s3.region,
            "aws_access_key_id": s3.access_key_id.get_secret_value(),
            "aws_secret_access_key": s3.secret_access_key.get_secret_value(),
        }

    def client(self) -> Client:
        return Client(self.address, token=FileToken(self.token_file))

    @property
    def token_file(self) -> Path:
        """The administrator's."""
        return Path(self._stack.state.admin_token_file)

    def read(self, uri: str) -> bytes:
        """An object's bytes."""
        parts = urlsplit(uri)
        answer = boto3.client("s3", **self.s3_arguments).get_object(Bucket=parts.netloc, Key=parts.path[1:])
        return answer["Body"].read()

    def object_of(self, dataset: str) -> tuple[str, str]:
        """Bucket and key of a dataset's bytes."""
        with self.client() as client:
            [uri] = [found.uri for found in client.list_datasets(PROJECT) if found.name == dataset]
        parts = urlsplit(uri)
        return parts.netloc, parts.path[1:]

    @property
    def address(self) -> str:
        """host:port of the control plane."""
        return self._stack.state.control_plane

    def add_dataset(self, name: str, path: Path, project: str = PROJECT) -> str:
        with self.client() as client:
            client.register_dataset(project, name, client.upload(project, path))
        return name

    def add_base_model(self, name: str, path: Path) -> str:
        with self.client() as client:
            client.register_base_model(name, client.upload(PROJECT, path))
        return name

    def submit(self, name: str, **changes: Any) -> str:
        """Submits a job and returns its id. Jobs of one size share an output model, so that they can be compared."""
        with self.client() as client:
            return client.submit_job(PROJECT, _spec(name, **changes), name=name).job_id

    def finished(self, job_id: str) -> job_pb2.Job:
        """The job, once it is final."""
        for _ in self._watched(job_id):
            pass
        with self.client() as client:
            return client.get_job(job_id)

    def events(self, job_id: str) -> list[job_event_pb2.JobEvent]:
        """Every event of a final job."""
        return list(self._watched(job_id))

    def await_event(self, job_id: str, kind: job_event_pb2.JobEventType.ValueType) -> job_event_pb2.JobEvent:
        """The first event of a kind, as soon as there is one."""
        for event in self._watched(job_id):
            if event.type == kind:
                return event
        raise AssertionError(f"job {job_id} ended without an event of kind {kind}: {self.finished(job_id)}")

    def await_state(self, job_id: str, state: job_pb2.JobState.ValueType) -> None:
        """Returns as soon as the job is, or was, in a state."""
        for event in self._watched(job_id):
            if event.state == state:
                return
        raise AssertionError(f"job {job_id} ended without having been {state}: {self.finished(job_id)}")

    def _watched(self, job_id: str) -> Generator[job_event_pb2.JobEvent]:
        ends_at = time.monotonic() + DEADLINE_SECONDS
        with self.client() as client:
            for message in client.watch_events(job_id=job_id):
                yield from message.events
                assert time.monotonic() < ends_at, f"job {job_id} is not final after {DEADLINE_SECONDS} s"

    def result(self, job: job_pb2.Job) -> dict[str, Any]:
        return MessageToDict(job.result)

    def version(self, job: job_pb2.Job) -> registry_service_pb2.ModelVersion:
        """The version that a job registered."""
        with self.client() as client:
            versions = client.list_model_versions(PROJECT, job.spec.fine_tune.output_model)
            [found] = [version for version in versions if version.lineage.job_id == job.job_id]
        return found

    def leased_spans(self, job_id: str) -> list[tuple[float, float]]:
        """When each lease of a job was granted and when it ended, in seconds."""
        granted: dict[int, float] = {}
        spans: list[tuple[float, float]] = []
        for event in self.events(job_id):
            at = event.time.ToDatetime().timestamp()
            if event.type == job_event_pb2.JOB_EVENT_TYPE_LEASE_GRANTED:
                granted[event.attempt] = at
            elif event.type == job_event_pb2.JOB_EVENT_TYPE_LEASE_ENDED:
                spans.append((granted[event.attempt], at))
        return spans

    def traced_job(self) -> tuple[job_pb2.Job, str]:
        """A finished job submitted by a client that traces, and the id of its trace."""
        settings = self._settings.telemetry
        provider = telemetry.configure_tracing("test-client", settings.otlp_traces_url, settings.otlp_headers)
        with telemetry.tracer().start_as_current_span("submit and wait") as span:
            trace_id = f"{span.get_span_context().trace_id:032x}"
            job_id = self.submit("traced", steps=2)
        # Flushes, and ends the exporting thread: what retries in the background would disturb other tests of this process.
        provider.shutdown()
        return self.finished(job_id), trace_id

    def spans(self, trace_id: str, until: set[str]) -> list[Span]:
        """The spans of a trace, once every service in `until` has exported one and the whole is connected."""
        store = mlflow.MlflowClient(self.mlflow_url)
        ends_at = time.monotonic() + 60
        spans: list[Span] = []
        while time.monotonic() < ends_at:
            try:
                stored = store.get_trace(f"tr-{trace_id}").data.spans
            except MlflowException:
                stored = []
            spans = [Span(_service(one), one.name, one.span_id, one.parent_id) for one in stored]
            ids = {span.span_id for span in spans}
            whole = all(span.parent_id is None or span.parent_id in ids for span in spans)
            if whole and until <= {span.service for span in spans}:
                break
            # Exporters batch for a second; there is nothing to wait on but the store itself.
            time.sleep(0.5)
        return spans

    def training_processes(self) -> list[psutil.Process]:
        """The agents, runners and guardians of leased phases that run now."""
        scratch = str(self._stack.data_dir)
        return [
            process
            for process in psutil.process_iter()
            if scratch in (line := _command_line(process)) and ("workers.gpu.agent" in line or "workers.runner" in line)
        ]

    def process(self, role: str) -> psutil.Process:
        """The process of a role: "runner", "agent" or a component's name; never its guardian."""
        if role in {"runner", "agent"}:
            module = {"runner": "workers.runner.train", "agent": "workers.gpu.agent"}[role]
            found = [one for one in self.training_processes() if module in _command_line(one)]
            [process] = [one for one in found if "guardian.py" not in _command_line(one)]
            return process
        return psutil.Process(self._stack.pids[role])


def _service(span: Any) -> str:
    return str(span.attributes.get("service.name", ""))


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _spec(
    name: str,
    *,
    steps: int = STEPS,
    learning_rate: float = 1e-3,
    dataset: str = DATASET,
    base_model: str = BASE_MODEL,
) -> job_spec_pb2.JobSpec:
    spec = job_spec_pb2.JobSpec()
    fine_tune = spec.fine_tune
    fine_tune.base_model = base_model
    fine_tune.dataset.name = dataset
    fine_tune.output_model = "".join(character if character.isalnum() else "-" for character in name)
    fine_tune.training.steps = steps
    fine_tune.training.micro_batch_size = 4
    fine_tune.training.gradient_accumulation = 2
    fine_tune.training.learning_rate = learning_rate
    fine_tune.training.checkpoint_every_steps = CHECKPOINT_EVERY
    fine_tune.lora.dropout = 0.1
    fine_tune.evaluation.max_new_tokens = 4
    fine_tune.evaluation.sample_prompts.append("What is your name?")
    return spec


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that trains in seconds."""
    model = tmp_path_factory.mktemp("base-model") / "small.gguf"
    write_small_gguf(model)
    return model


@pytest.fixture(scope="session")
def system(stack: Stack, small_model: Path) -> System:
    running = System(stack)
    with running.client() as client:
        client.create_project(PROJECT)
    running.add_dataset(DATASET, running.data)
    running.add_base_model(BASE_MODEL, small_model)
    return running
