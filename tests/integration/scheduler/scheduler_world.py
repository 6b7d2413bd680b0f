"""A database with jobs, leases and workers, valid by default, so that a test states only what matters to it."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

from sqlalchemy import func, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.scheduling_tables import queue_nodes
from control_plane.db.tables import jobs, leases, outbox, workers
from control_plane.jobs.repository import get_job
from control_plane.jobs.spec import DatasetRef, FineTuneSpec, ResourceSpec, canonical_sha256

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE_PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


class World:
    """What a test puts into the database, and how it looks at what became of it."""

    def __init__(self, engine: AsyncEngine, dsn: str) -> None:
        self.engine = engine
        self.dsn = dsn

    async def worker(self, name: str = "w1", *, accelerators: int = 1, kind: str = "cpu") -> str:
        """Registers a worker, or a new start of it; returns its incarnation."""
        incarnation = str(uuid.uuid4())
        async with self.engine.begin() as connection:
            await connection.execute(text("DELETE FROM workers WHERE name = :name"), {"name": name})
            await connection.execute(
                insert(workers).values(name=name, incarnation=incarnation, accelerator_kind=kind, accelerators=accelerators)
            )
        return incarnation

    async def job(
        self,
        *,
        project: str = "red",
        priority: int = 500,
        state: str = "QUEUED",
        accelerators: int = 1,
        job_type: str = "fine_tune",
    ) -> str:
        """A job with its start row: held while it is queued, done once it is under way."""
        job_id = str(uuid.uuid4())
        spec = FineTuneSpec(
            base_model="smol",
            dataset=DatasetRef(name="questions", sha256="a" * 64),
            output_model="tuned",
            resources=ResourceSpec(accelerators=accelerators),
        )
        async with self.engine.begin() as connection:
            await connection.execute(
                insert(jobs).values(
                    job_id=job_id,
                    project=project,
                    name="a job",
                    type=job_type,
                    spec=spec.model_dump(mode="json"),
                    spec_sha256=canonical_sha256(spec),
                    inputs={
                        "dataset_uri": "s3://headway/d",
                        "base_model_uri": "s3://headway/b",
                        "base_model_sha256": "b" * 64,
                    },
                    priority=priority,
                    state=state,
                    admitted_at=None if state == "QUEUED" else func.now(),
                    trace_parent=TRACE_PARENT,
                )
            )
            if state != "QUEUED":
                await connection.execute(
                    insert(outbox).values(
                        kind="start_workflow",
                        job_id=job_id,
                        dedupe_key=f"start/{job_id}",
                        trace_parent=TRACE_PARENT,
                        state="done",
                    )
                )
        return job_id

    async def request(self, job_id: str, *, accelerators: int = 1, kind: str = "any", priority: int = 500) -> str:
        """A lease request of a job."""
        lease_id = str(uuid.uuid4())
        project = (await self.row("SELECT project FROM jobs WHERE job_id = :id", id=job_id)).project
        async with self.engine.begin() as connection:
            await connection.execute(
                insert(leases).values(
                    lease_id=lease_id,
                    job_id=job_id,
                    project=project,
                    phase="TRAIN",
                    state="REQUESTED",
                    accelerators=accelerators,
                    accelerator_kind=kind,
                    priority=priority,
                    max_run_seconds=3600,
                )
            )
        return lease_id

    async def quota(self, project: str, pool: str, **quota: int | None) -> None:
        """Gives a project a quota of accelerators."""
        cell = {"pool": pool, "resource": "accelerators", "nominal": 0, "borrowing_limit": None, "lending_limit": None}
        async with self.engine.begin() as connection:
            await connection.execute(insert(queue_nodes).values(kind="PROJECT", name=project, quotas=[cell | quota]))

    async def send(self, job_id: str, kind: str, payload: dict[str, Any] | None = None) -> None:
        """A row of the outbox, ready."""
        row = {"kind": kind, "job_id": job_id, "payload": payload or {}, "trace_parent": TRACE_PARENT}
        async with self.engine.begin() as connection:
            await connection.execute(insert(outbox).values(**row, dedupe_key=str(uuid.uuid4()), state="ready"))

    async def execute(self, statement: str, **parameters: Any) -> None:
        """Any change."""
        async with self.engine.begin() as connection:
            await connection.execute(text(statement), parameters)

    async def row(self, statement: str, **parameters: Any) -> Any:
        """The one row of a query."""
        async with self.engine.connect() as connection:
            return (await connection.execute(text(statement), parameters)).one()

    async def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """The rows of a query."""
        async with self.engine.connect() as connection:
            return list((await connection.execute(text(statement), parameters)).all())

    async def waiting_reason(self, job_id: str) -> str:
        """Why a job waits, as its reader is told."""
        async with self.engine.connect() as connection:
            return (await get_job(connection, job_id))["waiting_reason"]

    async def state(self, job_id: str) -> str:
        """The state of a job."""
        return (await self.row("SELECT state FROM jobs WHERE job_id = :id", id=job_id)).state

    async def events(self, job_id: str) -> list[str]:
        """The types of a job's events in order, with the attempt of each."""
        query = "SELECT type, attempt FROM job_events WHERE job_id = :id ORDER BY sequence"
        return [f"{row.type} {row.attempt}" for row in await self.rows(query, id=job_id)]


class Gate:
    """A TCP way to a server that can be shut: no new connections, and the open ones cut."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> None:
        """Lets connections through; the port stays the same."""
        self._server = await asyncio.start_server(self._through, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Cuts every connection and takes no new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            try:
                await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
            finally:
                self._drop(far_writer)
        finally:
            self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
