"""Several processes of one program: which this one is, and how they are started. No torch here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from workers.runner.events import PIPE_VARIABLE
from workers.runner.exit_codes import ExitCode

RENDEZVOUS_VARIABLE = "HEADWAY_RENDEZVOUS_FILE"
_GRACE_SECONDS = 60.0


def rank_of_this_process() -> int:
    """0 for the process that speaks and writes, or the only one."""
    return int(os.environ.get("RANK", "0"))


def is_launched() -> bool:
    """Whether this process is one of several already, started by `launch` or by torchrun."""
    return "RANK" in os.environ


def launch(command: Sequence[str], count: int) -> int:
    """Runs `count` processes of a command to their end and returns what rank 0 ended with, or else the one that failed first.

    Signals to stop are passed on. When one process fails, the others have a minute to end by themselves: they may wait for it.
    """
    processes: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(signum: int, _frame: object) -> None:
        asked.append(signum)
        for process in processes:
            process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, pass_on)
    pipe = os.environ.get(PIPE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="headway-ranks-") as folder:
        common = {"WORLD_SIZE": str(count), RENDEZVOUS_VARIABLE: str(Path(folder) / "rendezvous")}
        for rank in range(count):
            environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            speaks = pipe is not None and rank == 0
            if not speaks:
                environment.pop(PIPE_VARIABLE, None)
            processes.append(
                subprocess.Popen(list(command), env=environment, pass_fds=[int(pipe)] if pipe is not None and speaks else [])
            )
        if pipe is not None:
            os.close(int(pipe))
        for signum in tuple(asked):
            # Those that came before all had been started.
            pass_on(signum, None)
        return _ends(processes)


def _ends(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    waiting = {process.pid: process for process in processes}
    failed = 0
    while waiting and not failed:
        pid, status = os.waitpid(-1, 0)
        process = waiting.pop(pid, None)
        if process is not None:
            process.returncode = os.waitstatus_to_exitcode(status)
            failed = process.returncode
    for process in waiting.values():
        try:
            # Whoever was killed says nothing to the others, so there is nothing to wait for.
            process.wait(_GRACE_SECONDS if failed > 0 else 0.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    code = processes[0].returncode or failed
    if code < 0:
        sys.stderr.write(f"a process of the training was killed by signal {-code}\n")
        return ExitCode.INTERNAL
    return code
