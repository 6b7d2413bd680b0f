"""Jobs whose agents are those of production, on a real control plane and object store, driven without Temporal or scheduler."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from pydantic import SecretStr

from benchmarks import small_training
from benchmarks.checkpoint_mutations import job_of
from benchmarks.decisions_durable import running_jobs
from benchmarks.servers import PROJECT, Servers, bearer, own_channel
from control_plane.settings import S3Settings
from headway.logs.v1 import log_record_pb2, log_service_pb2, log_service_pb2_grpc
from workers.child import Child, spawn
from workers.gpu.agent.spec import AgentSpec, TrainStage
from workers.storage import ObjectStore
from workers.stored_files import project_prefix, upload
from workers.workflows import contracts as c

Row = Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """What jobs run on, and what each kind of them is given."""

    address: str
    token: str
    connection: asyncpg.Connection
    store: ObjectStore
    folder: Path
    prepared: Mapping[str, c.PreparedData]

    @classmethod
    async def of(
        cls,
        running: Servers,
        s3: S3Settings,
        connection: asyncpg.Connection,
        folder: Path,
        inputs: small_training.Inputs,
        rows_of: Mapping[str, Callable[[Row], Row]],
    ) -> World:
        """Stores the base model and the rows of each kind, made of supervised ones, and writes down where the servers are."""
        store, prefix = ObjectStore(s3), project_prefix(PROJECT)
        base_model = await asyncio.to_thread(upload, store, inputs.base_model, prefix)
        prepared: dict[str, c.PreparedData] = {}
        for name, row_of in rows_of.items():
            data = folder / "data" / name
            data.mkdir(parents=True)
            for part in ("train.jsonl", "eval.jsonl"):
                rows = [json.loads(line) for line in (inputs.data / part).read_text().splitlines()]
                (data / part).write_text("".join(json.dumps(row_of(row)) + "\n" for row in rows))
            dataset = await asyncio.to_thread(upload, store, data, prefix)
            prepared[name] = c.PreparedData(
                dataset=dataset, base_model=base_model, train_rows=1, eval_rows=1, train_tokens=1, eval_tokens=1
            )
        settings = {
            "control_plane": {"address": running.address},
            "worker": {"token": running.worker_token},
            "s3": {
                "endpoint_url": s3.endpoint_url,
                "bucket": s3.bucket,
                "access_key_id": _revealed(s3.access_key_id),
                "secret_access_key": _revealed(s3.secret_access_key),
            },
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        return cls(running.address, running.token, connection, store, folder, prepared)

    async def records(self, job_id: str) -> list[log_record_pb2.LogRecord]:
        """Everything that the log service has of a job."""
        async with own_channel(self.address) as channel:
            stub: Any = log_service_pb2_grpc.LogServiceStub(channel)
            request = log_service_pb2.TailLogsRequest(job_id=job_id)
            return [record async for answer in stub.TailLogs(request, metadata=bearer(self.token)) for record in answer.records]

    async def new_job(self) -> uuid.UUID:
        """A job in state RUNNING."""
        async with _one_at_a_time:
            [job_id] = await running_jobs(self.connection, 1, PROJECT)
        return job_id

    async def attempt(
        self,
        job_id: uuid.UUID,
        attempt: int,
        phase: c.LeasedPhase,
        kind: str,
        stage: TrainStage,
        trained: c.TrainedModel | None = None,
    ) -> AgentSpec:
        """Grants a job's next lease, as the scheduler does; returns what its agent is told."""
        lease_id = uuid.uuid4()
        statements: list[tuple[str, tuple[Any, ...]]] = [
            ("UPDATE leases SET state = 'ENDED', ended_at = now() WHERE job_id = $1", (job_id,)),
            ("UPDATE jobs SET attempt = $2 WHERE job_id = $1", (job_id, attempt)),
            (
                "INSERT INTO leases (lease_id, job_id, project, phase, state, accelerators, accelerator_kind, priority,"
                " max_run_seconds, attempt, worker, granted_kind, granted_at, expires_at) VALUES"
                " ($1, $2, $3, $4, 'GRANTED', 1, 'any', 500, 3600, $5, 'w', 'cpu', now(), now() + interval '1 hour')",
                (lease_id, job_id, PROJECT, phase.value, attempt),
            ),
        ]
        async with _one_at_a_time, self.connection.transaction():
            for statement, values in statements:
                await self.connection.execute(statement, *values)
        workdir = self.folder / "attempts" / f"{job_id}-{attempt}"
        workdir.mkdir(parents=True)
        return AgentSpec(
            phase=phase,
            context=c.PhaseContext(job=job_of(str(job_id), PROJECT), attempt=attempt),
            grant=c.LeaseGrant(lease_id=str(lease_id), attempt=attempt, worker="w", accelerators=1, accelerator_kind="cpu"),
            prepared=self.prepared[kind],
            stage=stage,
            trained=trained,
            run_seconds_left=3_600.0,
            workdir=workdir,
            cache_dir=self.folder / "cache",
            threads=1,
            stop_grace_seconds=10.0,
        )

    async def start(self, spec: AgentSpec) -> Child:
        """Starts an attempt's agent; what it says goes to agent.log in its working directory."""
        path = spec.workdir / "agent_spec.json"
        path.write_text(spec.model_dump_json())
        with (spec.workdir / "agent.log").open("wb") as log:
            return await spawn(
                [sys.executable, "-m", "workers.gpu.agent", str(path)],
                env={**os.environ, "HEADWAY_SETTINGS": str(self.folder / "settings.json")},
                stdout=log,
                stderr=log,
            )


_one_at_a_time = asyncio.Lock()
"""Jobs share a connection."""


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
