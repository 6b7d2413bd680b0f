"""What the runner's tests share: starting a program with its event pipe, collecting events, and rows to learn from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workers.runner.events import EventWriter

ROWS = [
    {"prompt": f"What is {number} and {other}?", "completion": f"It is {number + other}, as {number} is not {other}."}
    for number in range(2, 12)
    for other in range(20, 24)
]


@dataclass(frozen=True)
class Finished:
    """A program that ended."""

    code: int
    output_dir: Path
    result: dict[str, Any]
    events: list[dict[str, Any]]
    stderr: str


@dataclass
class Running:
    """A program that runs, and the events it has written."""

    process: subprocess.Popen[bytes]
    output_dir: Path
    pipe: BinaryIO
    stderr_path: Path

    def events(self) -> Iterable[dict[str, Any]]:
        """Events as they come, until the program has closed its pipe."""
        for line in self.pipe:
            yield json.loads(line)

    def finish(self, seconds: float = 120) -> Finished:
        """Waits for the end."""
        with self.pipe:
            events = list(self.events())
        code = self.process.wait(seconds)
        path = self.output_dir / "result.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        return Finished(code, self.output_dir, result, events, self.stderr_path.read_text())


def start(
    program: str,
    spec: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Running:
    """Starts `python -m workers.runner.<program>` with an event pipe; `before` runs in the child."""
    output_dir = Path(spec["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)
    spec_path = output_dir / "spec.json"
    spec_path.write_text(json.dumps(spec, default=str))
    stderr_path = output_dir / "stderr.txt"
    reader, writer = os.pipe()
    with stderr_path.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", f"workers.runner.{program}", str(spec_path)],
            env={**os.environ, "HEADWAY_RUNNER_PIPE_FD": str(writer), "OMP_NUM_THREADS": "1", **(environment or {})},
            pass_fds=[writer],
            stderr=stderr,
            preexec_fn=before,  # noqa: PLW1509 - the tests that set limits start no threads
        )
    os.close(writer)
    return Running(process, output_dir, os.fdopen(reader, "rb"), stderr_path)


def run(program: str, spec: Mapping[str, Any], *, environment: Mapping[str, str] | None = None) -> Finished:
    """Runs a program to its end."""
    return start(program, spec, environment=environment).finish()


class CollectedEvents(EventWriter):
    """Keeps events instead of writing them."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _fields: None

    def _write(self, kind: str, fields: Mapping[str, object]) -> None:
        self.seen.append((kind, dict(fields)))
        self.on_event(kind, dict(fields))
