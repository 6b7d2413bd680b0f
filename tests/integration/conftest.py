"""Real servers for tests: started when a test first asks, one set for each test process, on free ports.

They run as `headway up` runs them, under guardians: a killed test run leaves none of them behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from control_plane.db.migrate import upgrade
from control_plane.settings import S3Settings, Settings
from deploy.one_machine import background, ports, servers
from deploy.one_machine import state as state_file
from deploy.one_machine.component import Component, Progress
from deploy.one_machine.layout import Layout
from deploy.one_machine.postgres import Postgres
from deploy.one_machine.probes import s3_client
from deploy.one_machine.programs import environment
from deploy.one_machine.reports import replay
from deploy.one_machine.running import Options
from deploy.one_machine.state import ComponentState, MachineState
from deploy.one_machine.supervised import appending
from deploy.one_machine.supervisor import Supervisor
from workers.child import Child, spawn

_S3_KEYS = ("TESTACCESSKEY", "test-secret-access-key")


@contextlib.asynccontextmanager
async def _running(component: Component, logs: Path) -> AsyncGenerator[None]:
    supervisor = Supervisor([component], logs, None, lambda _: None)
    await supervisor.start()
    try:
        yield
    finally:
        await supervisor.stop()


@pytest.fixture(scope="session")
def servers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers of this test process keep their data and their logs."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
async def postgres(servers_dir: Path) -> AsyncGenerator[Postgres]:
    """A server whose database "headway" has the schema and is a template for others."""
    port = ports.choose(["postgres"], {}, {})["postgres"]
    server = Postgres(servers_dir / "postgres", port, "test-password", servers_dir / "postgres.log", durable=False)
    async with _running(server.component(), servers_dir):
        await server.create_database()
        await asyncio.to_thread(upgrade, server.dsn())
        yield server


@pytest.fixture
async def postgres_dsn(postgres: Postgres) -> AsyncGenerator[str]:
    """A database of its own with the schema, and nothing in it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres.dsn("postgres"))
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE headway STRATEGY file_copy")
    yield postgres.dsn(name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture(scope="session")
async def temporal_address(servers_dir: Path) -> AsyncGenerator[str]:
    """host:port of a Temporal server with the namespace "default"."""
    chosen = ports.choose(["port", "http_port", "metrics_port", "ui_port"], {}, {})
    component = servers.temporal(servers_dir / "temporal", **chosen)
    async with _running(component, servers_dir):
        yield component.address


@pytest.fixture(scope="session")
async def _s3(servers_dir: Path) -> AsyncGenerator[S3Settings]:
    chosen = ports.choose(servers.S3_PORTS, {}, {})
    async with _running(servers.s3(servers_dir / "s3", chosen, *_S3_KEYS, "headway", many_buckets=True), servers_dir):
        yield servers.s3_settings(chosen["s3"], *_S3_KEYS, "headway")


@pytest.fixture
async def s3_settings(_s3: S3Settings) -> S3Settings:
    """An object store and a bucket in it that is new and empty."""
    settings = _s3.model_copy(update={"bucket": f"test-{uuid.uuid4().hex[:12]}"})
    await asyncio.to_thread(s3_client(settings).create_bucket, Bucket=settings.bucket)
    return settings


@pytest.fixture(scope="session")
async def mlflow_uri(servers_dir: Path) -> AsyncGenerator[str]:
    """URL of an MLflow server."""
    port = ports.choose(["mlflow"], {}, {})["mlflow"]
    component = servers.mlflow(servers_dir / "mlflow", port)
    async with _running(component, servers_dir):
        yield component.url


@dataclass(frozen=True)
class Stack:
    """The whole of Headway in a data directory, under a supervisor process as `headway up --detach` starts it."""

    data_dir: Path
    supervisor: Child

    @property
    def settings_path(self) -> Path:
        """What HEADWAY_SETTINGS names for its processes."""
        return Layout.at(self.data_dir).settings

    @property
    def settings(self) -> Settings:
        """The settings object of its processes."""
        return Settings.model_validate_json(self.settings_path.read_bytes())

    @property
    def state(self) -> MachineState:
        """As the supervisor last wrote it."""
        state = state_file.read(Layout.at(self.data_dir))
        assert state is not None, f"the supervisor has stopped; see {self.data_dir}/logs/supervisor.log"
        return state

    def components(self) -> list[ComponentState]:
        """As the supervisor last wrote them. A component's pid is its command's, not its guardian's."""
        return self.state.components

    def component(self, name: str) -> ComponentState:
        """One of them."""
        (found,) = [one for one in self.components() if one.name == name]
        return found

    @property
    def pids(self) -> dict[str, int]:
        """Pid by component, of those that run."""
        return {one.name: one.pid for one in self.components() if one.pid is not None}


@contextlib.asynccontextmanager
async def started_stack(options: Options) -> AsyncGenerator[Stack]:
    """Headway up and healthy inside the block."""
    layout = Layout.at(options.data_dir)
    layout.prepare()
    reader, writer = os.pipe()
    with appending(layout.log("supervisor")) as log, os.fdopen(reader, encoding="utf-8") as lines:
        supervisor = await spawn(
            background.command(options, writer), env=environment(), stdout=log, stderr=log, pass_fds=[writer]
        )
        os.close(writer)
        try:
            await asyncio.to_thread(lambda: any(replay(line, _Silent()) for line in lines))
            yield Stack(layout.root, supervisor)
        finally:
            await supervisor.stop(90)


class _Silent:
    """Tells nobody."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def ready(self, state: MachineState, seconds: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """The whole of Headway, for all tests of this process."""
    data_dir = tmp_path_factory.mktemp("stack")
    async with started_stack(Options(data_dir)) as running:
        yield running
    for path in data_dir.iterdir():
        if path.name != "logs" and path.is_dir():
            shutil.rmtree(path)
