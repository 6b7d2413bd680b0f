"""Ends a whole process tree when its parent dies, however it dies.

    python -I -S workers/guardian.py --lifeline-fd N [OPTIONS] -- COMMAND...

The parent keeps the other end of the lifeline, a pipe. The guardian starts COMMAND in a new session and then

- when COMMAND exits, kills what it left behind and exits with its code (128 + n if signal n ended it);
- when the lifeline ends, because the parent closed it or died, asks COMMAND to stop, kills the whole tree after a short
  grace and exits; a byte "K" on the lifeline kills the tree at once;
- forwards SIGTERM, SIGINT and SIGUSR1 to COMMAND.

A guardian is two processes, parent and child, each guarding what is below it: if either is killed, the other one still
ends the tree. Both are child subreapers, so that descendants that left their session or lost their parent are found
among their own descendants. COMMAND is also killed by the kernel when the inner guardian dies; that alone would not do,
for a changed uid clears the parent-death signal and grandchildren never have it.

Options:
    --grace-seconds S   from asking COMMAND to stop to killing the tree, when the lifeline ends (2)
    --stop-signal N     what asks COMMAND to stop, when the lifeline ends (15)
    --report-fd N       gets one line, "pid PID" or "error ERRNO", and stays open until the guardian has ended
    --hold-fd N         stays open until the guardian has ended, unseen by COMMAND: for instance a lock

Only the standard library, and little of it: a guardian stands beside every child process, so it must start fast and be
small. Linux only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Callable

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OUTER_EXTRA_GRACE_SECONDS = 2.0
"""How much longer the outer guardian waits than the inner one, before it does the killing itself."""


class _Options:
    """The command line, parsed by hand: argparse would double the start-up time."""

    def __init__(self, arguments: list[str]) -> None:
        if "--" not in arguments:
            raise SystemExit("guardian: expected '-- COMMAND...' at the end of the arguments")
        split = arguments.index("--")
        flags, self.command = arguments[:split], arguments[split + 1 :]
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        if not self.command or "--lifeline-fd" not in given:
            raise SystemExit("guardian: expected --lifeline-fd N and a command")
        self.lifeline = int(given.pop("--lifeline-fd"))
        self.grace_seconds = float(given.pop("--grace-seconds", "2"))
        self.stop_signal = int(given.pop("--stop-signal", str(int(signal.SIGTERM))))
        self.report = _optional_fd(given.pop("--report-fd", None))
        self.hold = _optional_fd(given.pop("--hold-fd", None))
        if given:
            raise SystemExit(f"guardian: unknown options {sorted(given)}")

    def own_fds(self) -> set[int]:
        """What the guardians need and COMMAND must not see."""
        return {fd for fd in (self.lifeline, self.report, self.hold) if fd is not None}


def _optional_fd(text: str | None) -> int | None:
    return None if text is None else int(text)


def main(arguments: list[str]) -> int:
    """Runs the guardian; returns the exit code."""
    options = _Options(arguments)
    for fd in options.own_fds():
        os.set_inheritable(fd, False)
    inner_lifeline, to_inner = os.pipe()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with _SignalsBlocked():
        inner = os.fork()
        if inner == 0:
            _end_with(lambda: _inner(options, inner_lifeline, to_inner))
        wakeup = _watch_signals()
    _close_all_but({options.lifeline, to_inner, *wakeup} | options.own_fds())
    grace = options.grace_seconds + _OUTER_EXTRA_GRACE_SECONDS
    return _guard(inner, options.lifeline, wakeup[0], lambda: os.close(to_inner), grace)


def _inner(options: _Options, lifeline: int, to_inner: int) -> int:
    """The inner guardian: starts the command and guards it."""
    os.close(to_inner)
    os.close(options.lifeline)
    # A session of its own: a signal to the outer guardian's process group reaches only one of the two.
    os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        command = _start(options.command)
    except OSError as error:
        _report(options.report, f"error {error.errno}")
        return 127 if error.errno == errno.ENOENT else 126
    wakeup = _watch_signals()
    _unblock_signals()
    _close_all_but({lifeline, *wakeup} | options.own_fds())
    _report(options.report, f"pid {command}")
    return _guard(command, lifeline, wakeup[0], lambda: _send(command, options.stop_signal), options.grace_seconds)


def _start(command: list[str]) -> int:
    """Starts the command; returns its pid.

    Raises:
        OSError: it could not be executed.
    """
    guardian = os.getpid()
    failed, failure = os.pipe()  # Closed by a successful exec, written by one that failed.
    pid = os.fork()
    if pid == 0:
        try:
            _become(command, guardian)
        except OSError as error:
            os.write(failure, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(failure)
    code = os.read(failed, 16)
    os.close(failed)
    if code:
        os.waitpid(pid, 0)
        raise OSError(int(code), os.strerror(int(code)), command[0])
    return pid


def _become(command: list[str], guardian: int) -> None:
    """Turns this process, a fresh fork, into the command."""
    signal.set_wakeup_fd(-1)
    # What this interpreter or whoever started it had changed is not the command's business.
    for signum in (*_FORWARDED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    _unblock_signals()
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:  # It died before the line above.
        os.kill(os.getpid(), signal.SIGKILL)
    os.execvp(command[0], command)  # noqa: S606 - no shell is what is wanted.


def _guard(child: int, lifeline: int, wakeup: int, ask_to_stop: Callable[[], object], grace_seconds: float) -> int:
    """Waits for the child or for the end of the lifeline, leaves no descendant, returns the child's exit code."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    deadline: float | None = None
    while (code := _reap(child)) is None:
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            break
        for fd, _ in poll.poll(None if remaining is None else remaining * 1000 + 1):
            if fd == wakeup:
                _forward(wakeup, child)
            elif os.read(lifeline, 1):
                deadline = time.monotonic()
            else:
                poll.unregister(lifeline)
                ask_to_stop()
                deadline = time.monotonic() + grace_seconds
    return _kill_descendants(child, code)


def _forward(wakeup: int, child: int) -> None:
    for signum in os.read(wakeup, 512):
        if signum in _FORWARDED:
            _send(child, signum)


def _reap(child: int) -> int | None:
    """Collects every dead child; the exit code of `child` if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = _exit_code(status)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _kill_descendants(child: int, code: int | None) -> int:
    """Kills until nothing is left, also of what forks meanwhile; returns the child's exit code."""
    untouchable: set[int] = set()  # Of another uid, should we not be root: nothing could end them.
    pause = 0.001
    while pids := _descendants() - untouchable:
        for pid in pids:
            if not _send(pid, signal.SIGKILL):
                untouchable.add(pid)
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
        found = _reap(child)
        code = found if code is None else code
    return 128 + signal.SIGKILL if code is None else code


def _descendants() -> set[int]:
    """All processes below this one."""
    children: dict[int, list[int]] = {}
    with os.scandir("/proc") as entries:
        for pid in (entry.name for entry in entries if entry.name.isdigit()):
            if (parent := _parent_of(pid)) is not None:
                children.setdefault(parent, []).append(int(pid))
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting.extend(below)
    return found


def _parent_of(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib would cost more than the whole guardian.
            # The command's name, in parentheses, may itself hold blanks and parentheses.
            return int(file.read().rsplit(b")", 1)[1].split()[1])
    except OSError:
        return None


def _send(pid: int, signum: int) -> bool:
    """Signals a process that may be gone already; false if this process may not."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def _watch_signals() -> tuple[int, int]:
    """Makes each signal a byte in a pipe; returns the pipe's two ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for signum in (*_FORWARDED, signal.SIGCHLD):
        signal.signal(signum, _noted)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # A closed terminal is the parent's matter.
    return reader, writer


def _noted(_signum: int, _frame: object) -> None:
    """The wakeup pipe has the signal already."""


class _SignalsBlocked:
    """Keeps signals pending while a fork is neither yet this process nor the next."""

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))

    def __exit__(self, *_: object) -> None:
        _unblock_signals()


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_all_but(kept: set[int]) -> None:
    """Lets go of what was meant for the command, so that its reader sees the end when the command ends."""
    with os.scandir("/proc/self/fd") as entries:
        open_fds = {int(entry.name) for entry in entries}
    for fd in open_fds - kept - {0, 1, 2}:
        try:
            os.close(fd)
        except OSError:
            continue  # It was the listing's own.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _report(fd: int | None, line: str) -> None:
    if fd is not None:
        try:
            os.write(fd, f"{line}\n".encode())
        except BrokenPipeError:
            return  # The parent is gone; the lifeline says so too.


def _end_with(run: Callable[[], int]) -> None:
    """Ends this process, a fork, with the code that `run` returns."""
    code = 70
    try:
        code = run()
    except BaseException as error:
        os.write(2, f"guardian: {error!r}\n".encode())
    finally:
        os._exit(code)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
