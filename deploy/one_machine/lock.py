"""One supervisor for a data directory. The lock outlives a killed supervisor until its last process is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.layout import Layout, naming_storage_faults

_ORPHANS_SECONDS = 30.0
_POLL_SECONDS = 0.05


@contextlib.contextmanager
def held(layout: Layout) -> Generator[int]:
    """Holds the data directory inside the block; gives the lock's file descriptor, for the guardians to hold too.

    Raises:
        OneMachineError: a live supervisor has it, or the processes of a dead one do not end.
    """
    with naming_storage_faults(layout.root):
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _acquire(fd, layout)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {_start_time(os.getpid())}".encode(), 0)
        yield fd
    finally:
        os.close(fd)


def _acquire(fd: int, layout: Layout) -> None:
    deadline = time.monotonic() + _ORPHANS_SECONDS
    while not _try(fd):
        pid = supervisor_pid(layout)
        if pid is not None:
            raise OneMachineError(
                Reason.IN_USE,
                f"the data directory {layout.root} is in use by the supervisor with pid {pid}; "
                "`headway status` shows it, `headway down` stops it, --data-dir names another directory",
            )
        if time.monotonic() > deadline:
            raise OneMachineError(
                Reason.IN_USE,
                f"the supervisor of {layout.root} is gone, but processes it started are still running after "
                f"{_ORPHANS_SECONDS:.0f} s; `fuser {layout.lock}` names them",
            )
        time.sleep(_POLL_SECONDS)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(layout: Layout) -> bool:
    """Whether a supervisor, or anything that one started, runs in the data directory."""
    try:
        fd = os.open(layout.lock, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try(fd)
    finally:
        os.close(fd)


def supervisor_pid(layout: Layout) -> int | None:
    """The supervisor that last took the lock, if it is alive. A process that merely got its pid is not taken for it."""
    try:
        pid, started = layout.lock.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if _start_time(int(pid)) == started else None


def _start_time(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
