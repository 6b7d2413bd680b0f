"""The data directory: what lies where, and writing it so that a crash leaves the old or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from deploy.one_machine.errors import OneMachineError, Reason
from headway_client.connection import ADMIN_TOKEN_NAME

_FREE_BYTES_MIN = 512 * 2**20
_LOG_BYTES_MAX = 16 * 2**20


@dataclass(frozen=True)
class Layout:
    """Paths below one data directory; all absolute."""

    root: Path

    @classmethod
    def at(cls, data_dir: Path) -> Layout:
        """The layout of a data directory, which need not exist."""
        return cls(data_dir.absolute())

    @property
    def lock(self) -> Path:
        """Held by the supervisor and by the guardian of each of its processes."""
        return self.root / "lock"

    @property
    def state(self) -> Path:
        """What runs now, for clients, `status` and `down`."""
        return self.root / "state.json"

    @property
    def settings(self) -> Path:
        """The settings object of every process of Headway."""
        return self.root / "settings.json"

    @property
    def ports(self) -> Path:
        """The ports chosen at the first start."""
        return self.root / "ports.json"

    @property
    def credentials(self) -> Path:
        """Passwords and keys made at the first start."""
        return self.root / "credentials.json"

    @property
    def admin_token(self) -> Path:
        """The token of the machine's administrator, for the command line and whoever else may read the file."""
        return self.root / ADMIN_TOKEN_NAME

    @property
    def logs(self) -> Path:
        """A file for each component."""
        return self.root / "logs"

    def log(self, component: str) -> Path:
        """A component's log."""
        return self.logs / f"{component}.log"

    def server(self, name: str) -> Path:
        """Where a server keeps its data."""
        return self.root / name

    def scratch(self, worker: str) -> Path:
        """Where a worker keeps files of running phases."""
        return self.root / "scratch" / worker

    def prepare(self) -> None:
        """Makes the directories.

        Raises:
            OneMachineError: the directory cannot be written, or its disk is nearly full.
        """
        with naming_storage_faults(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            # Secrets lie in here. Postgres, which may run under another uid, has to get through.
            self.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            probe = self.root / ".write-test"
            probe.write_bytes(b"x")
            probe.unlink()
        free = shutil.disk_usage(self.root).free
        if free < _FREE_BYTES_MIN:
            raise OneMachineError(
                Reason.STORAGE,
                f"the disk of {self.root} has {free // 2**20} MiB left, expected at least {_FREE_BYTES_MIN // 2**20} MiB; "
                "make room, or name another directory with --data-dir",
            )

    def turn_over_logs(self) -> None:
        """Puts logs that have grown large aside, one generation of them. Nothing may be writing to them."""
        for log in self.logs.glob("*.log"):
            if log.stat().st_size > _LOG_BYTES_MAX:
                log.replace(log.with_suffix(".log.1"))


def write_private(path: Path, text: str) -> None:
    """Replaces a file that only its owner may read; after a crash there is the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123 - only open() takes a descriptor.
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def naming_storage_faults(root: Path) -> Generator[None]:
    """Turns what the file system refuses inside the block into a clear message.

    Raises:
        OneMachineError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        hint = "make room" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "see to its permissions"
        raise OneMachineError(
            Reason.STORAGE,
            f"the data directory {root} cannot be used: {error.strerror}: {error.filename or root}; "
            f"{hint}, or name another directory with --data-dir",
        ) from error
