"""Child processes that cannot outlive their parent, nor leave anything behind: each runs under a guardian."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1
from typing import IO

_GUARDIAN = Path(__file__).with_name("guardian.py")
_FORWARDED = frozenset({SIGTERM, SIGINT, SIGUSR1})

Output = int | IO[bytes] | None


class Child:
    """A command under its guardian; made by `spawn`, owned by the event loop that spawned it."""

    def __init__(
        self, process: asyncio.subprocess.Process, command_pid: int, lifeline: int, report: asyncio.StreamReader
    ) -> None:
        self._process = process
        self._command_pid = command_pid
        self._lifeline = lifeline
        self._exited = asyncio.create_task(self._watch(report))

    @property
    def pid(self) -> int:
        """The guardian's."""
        return self._process.pid

    @property
    def command_pid(self) -> int:
        """The command's: of use to look at it. Signals go through `signal`."""
        return self._command_pid

    @property
    def exit_code(self) -> int | None:
        """As `wait` returns it; None while it runs."""
        done = self._exited.done() and not self._exited.cancelled()
        return self._exited.result() if done else None

    async def wait(self) -> int:
        """The exit code of the command, 128 + n if signal n ended it, once nothing of its tree is left."""
        return await asyncio.shield(self._exited)

    def signal(self, signum: int) -> None:
        """Forwards SIGTERM, SIGINT or SIGUSR1 to the command; nothing happens if it has exited.

        Raises:
            ValueError: a signal that the guardian does not forward.
        """
        if signum not in _FORWARDED:
            raise ValueError(
                f"cannot forward signal {signum} to {self._command_pid}: expected one of {sorted(_FORWARDED)}; "
                "to kill the whole tree call kill()"
            )
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    def kill(self) -> None:
        """Kills the whole tree at once; `wait` returns when it is gone."""
        if not self._exited.done():
            # Nobody reads it any more if the outer guardian is gone, but then the inner one is at it.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, b"K")

    async def stop(self, grace_seconds: float, signum: int = SIGTERM) -> int:
        """Asks the command to stop, kills the whole tree after the grace; returns the exit code as `wait` does."""
        self.signal(signum)
        try:
            return await asyncio.wait_for(self.wait(), grace_seconds)
        except TimeoutError:
            self.kill()
        return await self.wait()

    async def _watch(self, report: asyncio.StreamReader) -> int:
        code = await self._process.wait()
        # If the outer guardian was killed, the inner one still ends the tree: it keeps the report open meanwhile.
        await report.read()
        os.close(self._lifeline)
        return code if code >= 0 else 128 - code


async def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: Output = None,
    stderr: Output = None,
    pass_fds: Sequence[int] = (),
    hold_fd: int | None = None,
    stop_signal: int = SIGTERM,
    orphan_grace_seconds: float = 2.0,
) -> Child:
    """Starts a command under a guardian, in a session of its own, with no standard input.

    Args:
        command: the program and its arguments.
        env: its whole environment; None: this process's.
        cwd: its working directory; None: this process's.
        stdout: where its output goes, as for `subprocess.Popen`; None: where this process's goes.
        stderr: the same for its errors.
        pass_fds: file descriptors that the command inherits under the same numbers.
        hold_fd: a file descriptor that stays open until nothing of the tree is left, such as a lock's.
        stop_signal: what asks the command to stop if this process dies.
        orphan_grace_seconds: how long it then has.

    Raises:
        OSError: the command cannot be executed; it names the command.
        CancelledError: the caller was cancelled; nothing of it is left.
    """
    own = [f"--stop-signal={int(stop_signal)}", f"--grace-seconds={orphan_grace_seconds}"]
    if hold_fd is not None:
        own.append(f"--hold-fd={hold_fd}")
    inherited = [*pass_fds] if hold_fd is None else [*pass_fds, hold_fd]
    # A cancellation in the middle of a start would lose sight of what has been started.
    starting = asyncio.create_task(_start(command, own, inherited, env=env, cwd=cwd, stdout=stdout, stderr=stderr))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_kill_started)
        await asyncio.wait({starting})
        if starting.exception() is None:
            await starting.result().wait()
        raise


def _kill_started(starting: asyncio.Task[Child]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().kill()


async def _start(
    command: Sequence[str],
    options: Sequence[str],
    inherited: Sequence[int],
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    stdout: Output,
    stderr: Output,
) -> Child:
    """Starts the guardian, and waits until it has started the command."""
    lifeline_end, lifeline = os.pipe()
    report, report_end = os.pipe()
    options = [f"--lifeline-fd={lifeline_end}", f"--report-fd={report_end}", *options]
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(_GUARDIAN)),
            *[part for option in options for part in option.split("=", 1)],
            *("--", *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            cwd=cwd,
            pass_fds=sorted({*inherited, lifeline_end, report_end}),
            # A Ctrl-C at the terminal is for the parent, which then stops its children in its own order.
            start_new_session=True,
        )
    except BaseException:
        os.close(lifeline)
        os.close(report)
        raise
    finally:
        os.close(lifeline_end)
        os.close(report_end)
    return await _reported(command, process, lifeline, report)


async def _reported(command: Sequence[str], process: asyncio.subprocess.Process, lifeline: int, report: int) -> Child:
    """Waits until the guardian has said what became of the command."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(report, "rb", 0)
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        line = (await reader.readline()).decode().split()
        if line[:1] == ["pid"]:
            return Child(process, int(line[1]), lifeline, reader)
        code = await process.wait()
    except BaseException:
        os.close(lifeline)  # Ends whatever was started.
        raise
    os.close(lifeline)
    if line[:1] == ["error"]:
        raise OSError(int(line[1]), os.strerror(int(line[1])), command[0])
    raise ChildProcessError(f"the guardian of {command[0]} exited with code {code} before it had started it")
