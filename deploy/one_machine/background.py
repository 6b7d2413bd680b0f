"""`headway up --detach`: the supervisor as a process of its own, watched until all is healthy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.layout import Layout
from deploy.one_machine.programs import environment
from deploy.one_machine.reports import Report, replay
from deploy.one_machine.running import Options
from deploy.one_machine.supervised import appending, tail


def command(options: Options, progress_fd: int) -> list[str]:
    """What starts the supervisor process; it writes its progress as JSON lines to the descriptor."""
    line = [sys.executable, "-m", "deploy.one_machine", "--data-dir", str(options.data_dir.absolute())]
    line += ["--progress-fd", str(progress_fd)]
    line += [] if options.port is None else ["--port", str(options.port)]
    return line + ([] if options.settings is None else ["--settings", str(options.settings.absolute())])


def start(options: Options, report: Report) -> None:
    """Returns when all is healthy; the supervisor then runs on by itself.

    Raises:
        OneMachineError: it cannot be brought up; then nothing is left running.
        KeyboardInterrupt: the same.
    """
    layout = Layout.at(options.data_dir)
    layout.prepare()
    log = layout.log("supervisor")
    reader, writer = os.pipe()
    with appending(log) as output, os.fdopen(reader, encoding="utf-8") as lines:
        offset = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command(options, writer),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            pass_fds=[writer],
            start_new_session=True,
        )
        os.close(writer)
        try:
            if any(replay(line, report) for line in lines):
                process.returncode = 0  # It is nobody's child from here on.
                return
        except BaseException:
            _end(process)
            raise
        code = process.wait()
    said = "".join(f"\n  | {line}" for line in tail(log, offset))
    raise OneMachineError(
        Reason.COMPONENT_FAILED, f"the supervisor ended with code {code}; its log, {log}, says:{said or ' nothing'}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    process.wait()
