"""A leased job on a real control plane with short leases, and an agent for it whose runner plays a script."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from control_plane.app import ControlPlane
from control_plane.db.engine import create_engine
from control_plane.jobs.spec import FineTuneSpec
from control_plane.settings import (
    ControlPlaneSettings,
    PostgresSettings,
    S3Settings,
    SchedulerSettings,
    Settings,
    WorkerSettings,
)
from deploy.one_machine.probes import s3_client
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as logs_pb
from tests.integration.control_plane.callers import IDENTITY, WORKER_TOKEN
from tests.integration.control_plane.conftest import Api
from workers.gpu.agent import agent
from workers.gpu.agent.spec import AgentResult, AgentSpec
from workers.runner.specs import RunnerSpec
from workers.storage import ObjectStore
from workers.stored_files import upload
from workers.workflows import contracts as c

LEASE_SECONDS = 3.0
_SCRIPTED = Path(__file__).with_name("scripted_runner.py")
_ROOT = Path(__file__).parents[3]


def scripted_command(program: str, spec: RunnerSpec, spec_path: Path) -> list[str]:
    """As `workers.programs.program_command`, for the scripted runner."""
    assert program == "train"
    spec_path.write_text(spec.model_dump_json())
    return [sys.executable, str(_SCRIPTED), str(spec_path)]


@dataclass
class Restartable:
    """A control plane that can be away for a while, on one address."""

    settings: Settings
    running: ControlPlane | None = None
    address: str = field(default="", init=False)

    async def start(self) -> None:
        own = ControlPlaneSettings(address=self.address or "127.0.0.1:0", stream_heartbeat_seconds=0.2)
        self.running = ControlPlane(self.settings.model_copy(update={"control_plane": own}))
        await self.running.__aenter__()
        self.address = f"127.0.0.1:{self.running.port}"

    async def with_leases_of(self, seconds: float) -> None:
        """Starts again with other leases."""
        await self.stop()
        scheduler = SchedulerSettings(lease_seconds=seconds)
        self.settings = self.settings.model_copy(update={"scheduler": scheduler})
        await self.start()

    async def stop(self) -> None:
        if self.running is not None:
            await self.running.__aexit__(None, None, None)
            self.running = None


@dataclass
class Attempt:
    """One attempt of a training phase."""

    api: Api
    spec: AgentSpec
    settings: Settings
    store: ObjectStore
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> AgentResult:
        return await agent.run(self.spec, self.settings, self.stop, scripted_command)

    @property
    def job_id(self) -> str:
        return self.spec.context.job.job_id

    async def records(self) -> list[log_record_pb2.LogRecord]:
        """Everything stored so far."""
        request = logs_pb.TailLogsRequest(job_id=self.job_id)
        return [record async for answer in self.api.logs.TailLogs(request) for record in answer.records]

    async def until_step(self, step: int) -> None:
        """Waits until the log service has the measurement of a step."""
        request = logs_pb.StreamProgressRequest(job_id=self.job_id)
        call = self.api.logs.StreamProgress(request)
        async with asyncio.timeout(20):
            async for answer in call:
                if any(record.progress.step == step for record in answer.records):
                    break
        call.cancel()

    async def events(self, kind: str) -> list[dict[str, object]]:
        rows = await self.api.sql(
            "SELECT detail FROM job_events WHERE job_id = :job_id AND type = :kind ORDER BY sequence",
            job_id=self.job_id,
            kind=kind,
        )
        return [row.detail for row in rows]


@dataclass
class World:
    """A job with its inputs in the store; each call of `attempt` grants its next lease."""

    api: Api
    control_plane: Restartable
    store: ObjectStore
    settings: Settings
    tmp_path: Path
    job_id: str
    prepared: c.PreparedData
    attempts: int = 0

    async def attempt(self, script: dict[int | str, str] | None = None, *, steps: int = 4) -> Attempt:
        _, lease_id = await self.api.leased(self.job_id, self.attempts)
        self.attempts += 1
        workdir = self.tmp_path / f"attempt-{self.attempts}"
        workdir.mkdir()
        spec = AgentSpec(
            phase=c.LeasedPhase.TRAIN,
            context=c.PhaseContext(job=self._job(steps), attempt=self.attempts),
            grant=c.LeaseGrant(lease_id=lease_id, attempt=self.attempts, worker="w", accelerators=1, accelerator_kind="cpu"),
            prepared=self.prepared,
            run_seconds_left=60.0,
            workdir=workdir,
            cache_dir=self.tmp_path / "cache",
            threads=1,
            stop_grace_seconds=10.0,
            runner_environment={
                "SCRIPT": json.dumps({str(step): deed for step, deed in (script or {}).items()}),
                "PYTHONPATH": str(_ROOT),
            },
        )
        return Attempt(self.api, spec, self.settings, self.store)

    def overwrite(self, uri: str, content: bytes) -> None:
        """What nobody but a fault does: other bytes under a content's name."""
        assert self.settings.s3 is not None
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        s3_client(self.settings.s3).put_object(Bucket=bucket, Key=key, Body=content)

    def _job(self, steps: int) -> c.JobInput:
        spec = FineTuneSpec.model_validate(
            {
                "base_model": "base",
                "dataset": {"name": "questions"},
                "output_model": "assistant",
                "training": {"steps": steps},
            }
        )
        return c.JobInput(
            job_id=self.job_id,
            project="support",
            spec=spec,
            spec_sha256="0" * 64,
            dataset_uri="",
            base_model_uri="",
            base_model_sha256="0" * 64,
            trace_id="",
        )


@pytest.fixture
async def world(postgres_dsn: str, s3_settings: S3Settings, tmp_path: Path) -> AsyncIterator[World]:
    postgres = PostgresSettings(dsn=SecretStr(postgres_dsn), pool_size=8)
    settings = Settings(
        postgres=postgres,
        s3=s3_settings,
        identity=IDENTITY,
        scheduler=SchedulerSettings(lease_seconds=LEASE_SECONDS),
        worker=WorkerSettings(token=SecretStr(WORKER_TOKEN)),
    )
    control_plane = Restartable(settings)
    await control_plane.start()
    engine = create_engine(postgres)
    store = ObjectStore(s3_settings)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "train.jsonl").write_text("{}\n")
    files = await asyncio.to_thread(upload, store, inputs, "projects/support")
    prepared = c.PreparedData(dataset=files, base_model=files, train_rows=1, eval_rows=1, train_tokens=1, eval_tokens=1)
    own = ControlPlaneSettings(address=control_plane.address)
    assert control_plane.running is not None
    async with Api(control_plane.running.port, engine, s3_settings) as api:
        yield World(
            api,
            control_plane,
            store,
            settings.model_copy(update={"control_plane": own}),
            tmp_path,
            await api.running(),
            prepared,
        )
    with suppress(RuntimeError):
        await control_plane.stop()
    await engine.dispose()
