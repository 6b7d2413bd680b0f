"""Working files of one start of a worker. They may be lost at any time: whatever matters is in the object store."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import BinaryIO

import structlog

_LOCK_NAME = "lock"
_log = structlog.get_logger()


class Scratch:
    """A folder of this start's own; those that earlier starts of the same worker left are removed first."""

    def __init__(self, root: Path, role: str, worker: str) -> None:
        """Args:
        root: the machine's scratch directory, shared by its workers.
        role: "cpu" or "gpu".
        worker: the worker's name.
        """
        self.incarnation = str(uuid.uuid4())
        """Names this start."""
        self.cache_dir = root.absolute() / "cache"
        """Verified copies that outlive this start, shared by the machine's workers."""
        own = root.absolute() / role / worker
        own.mkdir(parents=True, exist_ok=True)
        for folder in own.iterdir():
            _remove_if_abandoned(folder)
        self._folder = own / self.incarnation
        self._folder.mkdir()
        self._lock: BinaryIO = (self._folder / _LOCK_NAME).open("wb")
        # Held until this process ends, however it ends: what is not locked has no owner.
        flock(self._lock, LOCK_EX | LOCK_NB)

    @contextmanager
    def workdir(self, name: str) -> Generator[Path]:
        """A new folder for one phase, removed afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


def _remove_if_abandoned(folder: Path) -> None:
    lock_file = folder / _LOCK_NAME
    if lock_file.exists():
        with lock_file.open("rb") as lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                return  # Another process of this worker still runs.
    _log.info("removing the scratch directory of an earlier start", directory=str(folder))
    shutil.rmtree(folder, ignore_errors=True)
