"""What all runner programs share: environment, spec, signals, tracing, result file and exit code."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from opentelemetry.trace import Status, StatusCode
from pydantic import BaseModel

from control_plane.jobs.states import FailureKind
from headway_client import telemetry
from workers.runner.events import EventWriter
from workers.runner.exit_codes import ExitCode, exit_code_of
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.files import write_atomically
from workers.runner.rank import rank_of_this_process
from workers.runner.specs import RESULT_NAME, Preemption, ResultFile, RunnerSpec
from workers.workflows.contracts import JobFailure

SpecT = TypeVar("SpecT", bound=RunnerSpec)

# Set before any library is imported: nothing is fetched from a hub, nothing is reported to one, no progress bars in logs.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True)
class Context:
    """What a program's body is given besides its spec."""

    events: EventWriter
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the program was asked to stop; the body looks at it between steps and raises PreemptedError."""
    started: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when the program began."""


def run(program: str, spec_type: type[SpecT], body: str) -> int:
    """Runs one program to its end: the spec file is `sys.argv[1]`; returns the exit code.

    Args:
        program: its name, for spans and messages.
        spec_type: the model of its spec.
        body: module with `run(context, spec)`, which returns the `ok` model. It is imported only after environment and signal
            handlers are set, because the libraries it needs read the one and take seconds to load.
    """
    if len(sys.argv) != 2:
        sys.stderr.write(f"usage: python -m workers.runner.{program} SPEC.json\n")
        return ExitCode.INTERNAL
    os.environ.update(_ENVIRONMENT)
    spec = spec_type.model_validate_json(Path(sys.argv[1]).read_bytes())
    _set_threads(spec)
    context = Context(EventWriter.from_environment())
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda _signum, _frame: context.stop.set())
    spec.output_dir.mkdir(parents=True, exist_ok=True)
    speaks = rank_of_this_process() == 0
    if speaks:
        (spec.output_dir / RESULT_NAME).unlink(missing_ok=True)
    provider = telemetry.configure(
        "headway-runner",
        os.environ.get("HEADWAY_OTLP_TRACES_URL") or None,
        json.loads(os.environ.get("HEADWAY_OTLP_HEADERS") or "{}"),
    )
    try:
        result, code = _traced(program, body, context, spec)
        content = result.model_dump_json(exclude_none=True)
        if speaks:
            write_atomically(spec.output_dir / RESULT_NAME, content.encode())
    finally:
        context.events.close()
        provider.shutdown()
    return code


def _set_threads(spec: RunnerSpec) -> None:
    threads: object = getattr(spec, "threads", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        # A thread that waits for another spins only briefly, then sleeps. Left to itself libgomp spins for milliseconds and so
        # takes the core from the thread it waits for: on a busy machine a step then takes three to five times as long.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _traced(program: str, body: str, context: Context, spec: RunnerSpec) -> tuple[ResultFile[BaseModel], ExitCode]:
    with (
        telemetry.continued(os.environ.get("TRACEPARENT", "")),
        telemetry.tracer().start_as_current_span(f"runner.{program}") as span,
    ):
        result, code = _outcome(program, body, context, spec)
        if result.failure is not None:
            span.set_status(Status(StatusCode.ERROR, result.failure.message))
            context.events.log(result.failure.message, "ERROR")
        span.set_attribute("headway.exit_code", int(code))
        return result, code


def _outcome(program: str, body: str, context: Context, spec: RunnerSpec) -> tuple[ResultFile[BaseModel], ExitCode]:
    try:
        ok = importlib.import_module(body).run(context, spec)
        return ResultFile[BaseModel](ok=ok), ExitCode.DONE
    except PreemptedError as stop:
        return ResultFile(preempted=Preemption(step=stop.step, checkpoint=stop.checkpoint)), ExitCode.PREEMPTED
    except RunnerError as error:
        failure = error.failure
    # Anything else is turned into an exit code and a result file here, at the program's outermost edge.
    except Exception as error:
        traceback.print_exc()
        failure = _unexpected(program, error, spec.output_dir)
    return ResultFile(failure=failure), exit_code_of(failure.kind)


def _unexpected(program: str, error: Exception, output_dir: Path) -> JobFailure:
    if _is_out_of_memory(error):
        return JobFailure(
            kind=FailureKind.OUT_OF_MEMORY,
            message=f"{program} ran out of memory; lower micro_batch_size, max_tokens or batch_size, or use a larger machine",
        )
    if _is_disk_full(error):
        usage = shutil.disk_usage(output_dir)
        return JobFailure(
            kind=FailureKind.PLATFORM,
            message=f"{program} ran out of disk space below worker.scratch_dir: {usage.free:,} of {usage.total:,} bytes are "
            "free; checkpoints that were complete before are whole. Make room there, or give it a larger disk",
        )
    # The traceback is in the program's standard error; the message is for people who cannot do anything about it.
    return JobFailure(kind=FailureKind.PLATFORM, message=f"{program} failed unexpectedly: {type(error).__name__}: {error}")


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or what caused it, is that there is no room: of the system, or as safetensors tells of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        if type(error).__name__ == "SafetensorError" and ("os error 28" in str(error) or "os error 122" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or what caused it, is a refused allocation: of Python, of CUDA or of torch's CPU allocator."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text):
            return True
        error = error.__cause__ or error.__context__
    return False
