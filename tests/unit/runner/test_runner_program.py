"""What all programs share: result file and exit code agree, events are numbered, and nothing heavy is imported early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from opentelemetry import trace
from pydantic import BaseModel

from control_plane.jobs.states import FailureKind
from workers.runner import program
from workers.runner.events import PIPE_VARIABLE, EventWriter
from workers.runner.exit_codes import ExitCode, exit_code_of
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.files import atomic_directory, write_atomically
from workers.runner.program import Context
from workers.runner.specs import ImportBaseModelOk, RunnerSpec, read_result


class Body(ModuleType):
    """A module with a body that can be set."""

    run: Callable[[Context, RunnerSpec], BaseModel]


@pytest.fixture
def body(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Body]:
    """A program's body, to be given its `run`; what the harness sets in this process is put back."""
    module = Body("runner_test_body")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec_path = tmp_path / "spec.json"
    spec_path.write_text(json.dumps({"output_dir": str(tmp_path / "out")}))
    monkeypatch.setattr(sys, "argv", ["program", str(spec_path)])
    for name in program._ENVIRONMENT:  # pyright: ignore[reportPrivateUsage] - restored by monkeypatch
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(trace, "set_tracer_provider", lambda _provider: None)  # pyright: ignore[reportUnknownLambdaType] - once a process
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield module
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def _run(body: Body) -> int:
    return program.run("test", RunnerSpec, body.__name__)


def _raise(error: BaseException) -> Callable[[Context, RunnerSpec], BaseModel]:
    def run(_context: Context, _spec: RunnerSpec) -> BaseModel:
        raise error

    return run


def test_success_is_told(body: Body, tmp_path: Path) -> None:
    body.run = lambda _context, _spec: ImportBaseModelOk(architecture="A", parameters=3)
    assert _run(body) == ExitCode.DONE
    result = read_result(tmp_path / "out", ImportBaseModelOk)
    assert result.ok == ImportBaseModelOk(architecture="A", parameters=3)
    assert result.failure is None
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == {"ok": {"architecture": "A", "parameters": 3}}


CASES: list[tuple[BaseException, int, FailureKind]] = [
    (RunnerError(FailureKind.INVALID_DATASET, "bad rows"), 64, FailureKind.INVALID_DATASET),
    (RunnerError(FailureKind.INTEGRITY, "other bytes"), 64, FailureKind.INTEGRITY),
    (RunnerError(FailureKind.RUN_TIME_EXCEEDED, "too long"), 64, FailureKind.RUN_TIME_EXCEEDED),
    (RunnerError(FailureKind.NUMERIC, "nan"), 76, FailureKind.NUMERIC),
    (MemoryError(), 77, FailureKind.OUT_OF_MEMORY),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 77, FailureKind.OUT_OF_MEMORY),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 77, FailureKind.OUT_OF_MEMORY),
    (OSError(28, "No space left on device"), 70, FailureKind.PLATFORM),
    (ZeroDivisionError("a bug"), 70, FailureKind.PLATFORM),
]


@pytest.mark.parametrize(("error", "code", "kind"), CASES, ids=lambda value: repr(value)[:40])
def test_failures_are_typed(
    error: BaseException, code: int, kind: FailureKind, body: Body, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body.run = _raise(error)
    assert _run(body) == code
    failure = read_result(tmp_path / "out", ImportBaseModelOk).failure
    assert failure is not None
    assert failure.kind is kind
    assert failure.message
    # A traceback is for those who run the platform: not in the message, and not for what users did.
    assert "Traceback" not in failure.message
    assert ("Traceback" in capfd.readouterr().err) == (not isinstance(error, RunnerError))


def test_every_kind_of_failure_has_an_exit_code_that_is_not_success() -> None:
    assert {exit_code_of(kind) for kind in FailureKind} == {
        ExitCode.USER_ERROR,
        ExitCode.NUMERIC,
        ExitCode.OUT_OF_MEMORY,
        ExitCode.INTERNAL,
    }


def test_a_signal_sets_the_stop_and_preemption_is_told(body: Body, tmp_path: Path) -> None:
    def run(context: Context, _spec: RunnerSpec) -> BaseModel:
        assert not context.stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert context.stop.wait(10)
        raise PreemptedError(7, Path("/somewhere/step-00000007"))

    body.run = run
    assert _run(body) == ExitCode.PREEMPTED
    preempted = read_result(tmp_path / "out", ImportBaseModelOk).preempted
    assert preempted is not None
    assert (preempted.step, preempted.checkpoint) == (7, Path("/somewhere/step-00000007"))


def test_an_old_result_is_gone_before_the_body_runs(body: Body, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text('{"ok": {}}')
    seen: list[bool] = []

    def run(_context: Context, spec: RunnerSpec) -> ImportBaseModelOk:
        seen.append((spec.output_dir / "result.json").exists())
        return ImportBaseModelOk(architecture="A", parameters=1)

    body.run = run
    _run(body)
    assert seen == [False]


def test_events_are_json_lines_numbered_from_one_whatever_thread_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv(PIPE_VARIABLE, str(writer))
    events = EventWriter.from_environment()
    assert not os.get_inheritable(writer)
    threads = [threading.Thread(target=lambda: [events.log("x" * 100) for _ in range(50)]) for _ in range(4)]
    with os.fdopen(reader, "rb") as pipe:
        for thread in threads:
            thread.start()
        events.progress("train", 3, 10, {"loss": 1.5})
        events.checkpoint(4, Path("/x"))
        for thread in threads:
            thread.join()
        events.close()
        lines = [json.loads(line) for line in pipe]
    assert [line["sequence"] for line in lines] == list(range(1, 203))
    (progress,) = [line for line in lines if line["type"] == "progress"]
    assert {**progress, "sequence": 0, "time": 0} == {
        "sequence": 0,
        "time": 0,
        "type": "progress",
        "trace_id": "",
        "span_id": "",
        "phase": "train",
        "step": 3,
        "total_steps": 10,
        "metrics": {"loss": 1.5},
    }


def test_events_without_a_reader_are_dropped_and_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv(PIPE_VARIABLE, str(writer))
    events = EventWriter.from_environment()
    with pytest.raises(ValueError, match="not JSON compliant"):
        events.progress("train", 1, 1, {"loss": float("nan")})
    os.close(reader)
    events.log("into the void")
    events.log("again")
    events.close()


def test_a_directory_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "target"
    with pytest.raises(FileNotFoundError), atomic_directory(target) as folder:
        folder.joinpath("whole").write_text(folder.joinpath("missing").read_text())
    assert list(target.parent.iterdir()) == []
    for content in ("one", "two"):
        with atomic_directory(target) as folder:
            (folder / content).write_text(content)
            assert not (target / content).exists()
        assert [path.name for path in target.iterdir()] == [content]
    write_atomically(target / "two", b"three")
    assert (target / "two").read_bytes() == b"three"
    assert [path.name for path in target.iterdir()] == ["two"]


@pytest.mark.parametrize("module", ["specs", "exit_codes", "program", "prepare", "train", "evaluate", "import_base_model"])
def test_what_callers_import_and_what_runs_first_brings_no_torch(module: str) -> None:
    code = f"import sys, workers.runner.{module}; print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_preparing_needs_no_torch() -> None:
    code = "import sys, workers.runner.data.preparation; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
