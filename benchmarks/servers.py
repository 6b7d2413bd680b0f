"""What most benchmarks run against: a durable PostgreSQL, and a control plane process on it with the settings of production."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.db.migrate import upgrade
from control_plane.identity.service_tokens import bootstrap_token_id, new_secret
from control_plane.settings import S3Settings
from deploy.one_machine import ports
from deploy.one_machine import servers as one_machine
from deploy.one_machine.postgres import Postgres
from deploy.one_machine.supervisor import Supervisor

PROJECT = "bench"
DATASET = "data"
BASE_MODEL = "base"
_ADMIN = "bench"
_WORKER = "bench-worker"


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of one benchmark.

    Attributes:
        dsn: of the database.
        address: host:port of the control plane.
        token: of an admin of the organisation.
        worker_token: of a worker.
        secret_key: `identity.secret_key` of the control plane.
        pid: of the control plane.
        log: what the control plane says.
    """

    dsn: str
    address: str
    token: str
    worker_token: str
    secret_key: str
    pid: int
    log: Path

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return bearer(self.token)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """A credential as metadata."""
    return (("authorization", f"Bearer {token}"),)


def own_channel(address: str) -> grpc.aio.Channel:
    """A channel with a connection of its own: channels of one process share one otherwise."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


@asynccontextmanager
async def database() -> AsyncGenerator[str]:
    """A durable PostgreSQL by itself, whose database has the schema and the names that benchmarks use; yields its DSN."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        server = Postgres(root / "postgres", ports.choose(["postgres"], {}, {})["postgres"], "bench", root / "postgres.log")
        supervisor = Supervisor([server.component()], root, None, lambda _: None)
        await supervisor.start()
        try:
            await server.create_database()
            await asyncio.to_thread(upgrade, server.dsn())
            await _names(server.dsn())
            yield server.dsn()
        finally:
            await supervisor.stop()


@asynccontextmanager
async def servers(changes: Mapping[str, Mapping[str, Any]] | None = None) -> AsyncGenerator[Servers]:
    """Runs them; the database holds the project, the dataset and the base model that the benchmarks name.

    Args:
        changes: settings that a benchmark needs other than in production, by section.
    """
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        # The database's server runs as another user where this one is root.
        root.chmod(0o755)
        chosen = ports.choose(["postgres", "control-plane"], {}, {})
        database = Postgres(root / "postgres", chosen["postgres"], "bench", root / "postgres.log")
        supervisor = Supervisor([database.component()], root, None, lambda _: None)
        await supervisor.start()
        try:
            await database.create_database()
            await asyncio.to_thread(upgrade, database.dsn())
            await _names(database.dsn())
            address = f"127.0.0.1:{chosen['control-plane']}"
            async with _control_plane(root, database.dsn(), address, changes or {}) as running:
                yield running
        finally:
            await supervisor.stop()


@asynccontextmanager
async def object_store(folder: Path) -> AsyncGenerator[S3Settings]:
    """Runs an object store with an empty bucket; its bytes are in `folder`."""
    keys, bucket = ("BENCH", os.urandom(12).hex()), "headway"
    chosen = ports.choose(one_machine.S3_PORTS, {}, {})
    supervisor = Supervisor([one_machine.s3(folder, chosen, *keys, bucket)], folder.parent, None, lambda _: None)
    await supervisor.start()
    try:
        yield one_machine.s3_settings(chosen["s3"], *keys, bucket)
    finally:
        await supervisor.stop()


async def _names(dsn: str) -> None:
    """What a spec names. Nothing reads its bytes here."""
    connection = await asyncpg.connect(dsn)
    sha256 = "0" * 64
    await connection.execute("INSERT INTO projects (project, creator) VALUES ($1, 'system:bench')", PROJECT)
    await connection.execute(
        "INSERT INTO datasets (project, name, sha256, size_bytes, uri, license, attribution)"
        " VALUES ($1, $2, $3, 1, 's3://headway/x', '', '')",
        PROJECT,
        DATASET,
        sha256,
    )
    await connection.execute(
        "INSERT INTO base_models (name, sha256, size_bytes, uri, format, license, attribution)"
        " VALUES ($1, $2, 1, 's3://headway/x', 'GGUF', '', '')",
        BASE_MODEL,
        sha256,
    )
    await connection.close()


@asynccontextmanager
async def _control_plane(
    root: Path, dsn: str, address: str, changes: Mapping[str, Mapping[str, Any]]
) -> AsyncGenerator[Servers]:
    token, worker_token = new_secret(bootstrap_token_id(_ADMIN)), new_secret(bootstrap_token_id(_WORKER))
    secret_key = secrets.token_urlsafe(48)
    tokens = [_bootstrap(_ADMIN, "ORG_ADMIN", token), _bootstrap(_WORKER, "WORKER", worker_token)]
    sections: dict[str, dict[str, Any]] = {
        "postgres": {"dsn": dsn, "pool_size": 64},
        "s3": {"access_key_id": "none", "secret_access_key": "none"},
        "control_plane": {"address": address},
        "identity": {"secret_key": secret_key, "bootstrap_tokens": tokens, "bootstrap_projects": [PROJECT]},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    settings, log = root / "settings.json", root / "control-plane.log"
    settings.write_text(json.dumps(sections))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control_plane", "serve"),
            env={**os.environ, "HEADWAY_SETTINGS": str(settings)},
            stdout=output,
            stderr=output,
        )
    try:
        await _healthy(address, process, log)
        yield Servers(dsn, address, token, worker_token, secret_key, process.pid, log)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


def _bootstrap(name: str, role: str, token: str) -> dict[str, str]:
    return {"name": name, "role": role, "secret_sha256": hashlib.sha256(token.encode()).hexdigest()}


async def _healthy(address: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(30):
        health: Any = health_pb2_grpc.HealthStub(channel)
        answered = asyncio.ensure_future(health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True))
        exited = asyncio.create_task(process.wait())
        await asyncio.wait([answered, exited], return_when=asyncio.FIRST_COMPLETED)
        exited.cancel()
        if not answered.done():
            answered.cancel()
            raise RuntimeError(f"the control plane did not start: {log.read_text()[-2_000:]}")
