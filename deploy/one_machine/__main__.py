"""The supervisor as a process of its own. `headway up` is what people call."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from deploy.one_machine.component import Progress
from deploy.one_machine.errors import OneMachineError
from deploy.one_machine.reports import JsonLines
from deploy.one_machine.running import Options, run


def main() -> int:
    """Runs the supervisor; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.one_machine", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--progress-fd", type=int, required=True, help="gets progress as JSON lines")
    arguments = parser.parse_args()
    os.set_inheritable(arguments.progress_fd, False)
    report = JsonLines(os.fdopen(arguments.progress_fd, "w", encoding="utf-8"))
    try:
        options = Options(arguments.data_dir, arguments.port, arguments.settings)
        asyncio.run(run(options, lambda progress: _note(progress, report), report.ready))
    except OneMachineError as error:
        report.failed(error)
        print(error.message, file=sys.stderr)
        return 1
    return 0


def _note(progress: Progress, report: JsonLines) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(f"{now} {progress.component} {progress.state} {progress.detail}".rstrip(), flush=True)
    report.progress(progress)


if __name__ == "__main__":
    sys.exit(main())
