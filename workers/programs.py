"""Runner programs as child processes: their environment, their command, and how they end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from control_plane.settings import TelemetrySettings
from headway_client import telemetry
from workers.runner.specs import RunnerSpec

OkT = TypeVar("OkT", bound=BaseModel)

# A runner reads what users wrote, so it gets no credentials: only what programs need to start is passed on.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_HOME")


def runner_environment(settings: TelemetrySettings, **extra: str) -> dict[str, str]:
    """The whole environment of a runner program that continues the current trace."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment["TRACEPARENT"] = telemetry.traceparent()
    environment["PYTHONUNBUFFERED"] = "1"
    if settings.otlp_traces_url is not None:
        environment["HEADWAY_OTLP_TRACES_URL"] = settings.otlp_traces_url
        environment["HEADWAY_OTLP_HEADERS"] = json.dumps(settings.otlp_headers)
    return environment | extra


ProgramCommand = Callable[[str, RunnerSpec, Path], list[str]]
"""Makes the command of a program, of its spec, and of where to write its spec file."""


def program_command(program: str, spec: RunnerSpec, spec_path: Path) -> list[str]:
    """Writes the spec file and returns the command that runs `program` on it."""
    spec_path.write_text(spec.model_dump_json(indent=1))
    return [sys.executable, "-m", f"workers.runner.{program}", str(spec_path)]


def describe_exit(code: int) -> str:
    """An exit code for people: 128 + n is a death by signal n."""
    if code <= 128:
        return f"exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    hint = " (killed: by the kernel when memory ran out, or by an operator)" if name == "SIGKILL" else ""
    return f"signal {name}{hint}"
