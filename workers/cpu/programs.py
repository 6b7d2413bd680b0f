"""Runner programs as children of CPU activities, and what their end means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from temporalio import activity
from temporalio.exceptions import ApplicationError

from control_plane.jobs.states import FailureKind
from headway_client import telemetry
from workers.activities import WorkerStopsError, supervise, verdict, verdict_of
from workers.child import spawn
from workers.programs import describe_exit, program_command
from workers.runner.exit_codes import ExitCode
from workers.runner.specs import ResultFile, RunnerSpec, read_result
from workers.workflows.contracts import JobFailure

OkT = TypeVar("OkT", bound=BaseModel)

# With the pauses between tries about half a minute: longer than a short want of memory, shorter than a person's patience.
_CRASHES_MAX = 6
_LOG_TAIL_BYTES = 2_000


async def run_program(
    program: str, spec: RunnerSpec, ok_type: type[OkT], environment: Mapping[str, str], *, grace_seconds: float
) -> OkT:
    """Runs a program under the current CPU activity and returns what it found.

    Its output goes to `<output_dir>.log`.

    Raises:
        ApplicationError: its verdict on the job, or, retryable, its crash. A third crash is a verdict too.
        CancelledError: the activity was cancelled; the program is gone.
    """
    log_path = spec.output_dir.with_suffix(".log")
    command = program_command(program, spec, spec.output_dir.with_suffix(".spec.json"))
    with telemetry.tracer().start_as_current_span(f"program.{program}"), log_path.open("wb") as log:
        child = await spawn(command, env=environment, cwd=spec.output_dir.parent, stdout=log, stderr=log)
        try:
            code = await supervise(child, grace_seconds)
        except WorkerStopsError as error:
            raise ApplicationError(str(error), type="WORKER_STOPS") from error
    result = _result(spec, ok_type) if code <= 128 else None
    if result is not None and result.ok is not None and code == ExitCode.DONE:
        return result.ok
    failure = result.failure if result is not None else None
    if failure is not None and failure.kind is not FailureKind.PLATFORM:
        raise verdict(failure)
    raise _crash(program, code, failure, log_path)


def _result(spec: RunnerSpec, ok_type: type[OkT]) -> ResultFile[OkT] | None:
    try:
        return read_result(spec.output_dir, ok_type)
    except (FileNotFoundError, ValidationError):
        return None


def _crash(program: str, code: int, failure: JobFailure | None, log_path: Path) -> ApplicationError:
    said = failure.message if failure is not None else _tail(log_path)
    message = f"the {program} program ended with {describe_exit(code)}: {said or 'it said nothing'}"
    if activity.info().attempt >= _CRASHES_MAX:
        return verdict_of(FailureKind.PLATFORM, f"{message} (for the {_CRASHES_MAX}th time)")
    return ApplicationError(message, type="PROGRAM_CRASHED")


def _tail(path: Path) -> str:
    """The last lines of a log file, as text."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip()
