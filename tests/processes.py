"""Looks at real processes through /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from pathlib import Path

_MARK = "HEADWAY_TEST_MARK"


class Marked:
    """Processes that a test started, and all that these started: found by a variable in their environment."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    @property
    def env(self) -> dict[str, str]:
        """An environment that marks who runs in it."""
        return {**os.environ, _MARK: self.mark}

    def alive(self) -> dict[int, str]:
        """Those that run, pid to command line. A zombie has no environment left and does not count."""
        needle = f"{_MARK}={self.mark}".encode()
        return {
            int(entry.name): _read(entry / "cmdline").replace(b"\0", b" ").decode().strip()
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and needle in _read(entry / "environ").split(b"\0")
        }

    def kill(self) -> None:
        """Ends what a failed test has left."""
        while alive := self.alive():
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # It has just exited.
        return b""
