"""One runner program under the agent: started, listened to, asked to stop, killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError

from workers.child import Child, spawn
from workers.gpu.agent.logs import LogForwarder
from workers.gpu.agent.pipes import LinePipe
from workers.programs import ProgramCommand, describe_exit
from workers.runner.events import PIPE_VARIABLE
from workers.runner.specs import ResultFile, RunnerSpec, read_result

OkT = TypeVar("OkT", bound=BaseModel)
_LAST_WORDS = 20


@dataclass(frozen=True, slots=True)
class RunnerEnd(Generic[OkT]):
    """How a runner ended."""

    code: int
    """128 + n for a death by signal n."""
    result: ResultFile[OkT] | None
    """What it left; None after a crash."""
    last_words: str
    """The last lines of its standard error."""

    @property
    def description(self) -> str:
        """For people."""
        said = f": {self.last_words}" if self.last_words else ""
        return f"the runner ended with {describe_exit(self.code)}{said}"


class StoppedError(Exception):
    """The runner was not started, because it was asked to stop before."""


class Runner:
    """Runs one program. `on_checkpoint` is told of each complete checkpoint: its step and its directory."""

    def __init__(self, logs: LogForwarder, on_checkpoint: Callable[[int, Path], None], command: ProgramCommand) -> None:
        self._logs = logs
        self._command = command
        self._on_checkpoint = on_checkpoint
        self._child: Child | None = None
        self._stopping = False
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping

    def ask_to_stop(self) -> None:
        """Asks the program to stop at its next step; if it has not begun, it will not."""
        self._stopping = True
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the program and all it started, at once."""
        self._stopping = True
        if self._child is not None:
            self._child.kill()

    async def run(self, program: str, spec: RunnerSpec, ok_type: type[OkT], environment: Mapping[str, str]) -> RunnerEnd[OkT]:
        """Runs the program to its end; everything it says is forwarded. Cancelled, it leaves nothing behind.

        Raises:
            StoppedError: it was asked to stop before it began.
        """
        if self._stopping:
            raise StoppedError("asked to stop before the runner began")
        events, stdout, stderr = LinePipe(), LinePipe(), LinePipe()
        listeners = [
            asyncio.create_task(self._listen(events)),
            asyncio.create_task(self._echo(stdout, "stdout")),
            asyncio.create_task(self._echo(stderr, "stderr")),
        ]
        try:
            child = await spawn(
                self._command(program, spec, spec.output_dir.with_suffix(".spec.json")),
                env={**environment, PIPE_VARIABLE: str(events.write_end)},
                cwd=spec.output_dir.parent,
                stdout=stdout.write_end,
                stderr=stderr.write_end,
                pass_fds=[events.write_end],
            )
        finally:
            for pipe in (events, stdout, stderr):
                pipe.close_write_end()
        self._child = child
        if self._stopping:
            child.signal(signal.SIGTERM)
        try:
            code = await child.wait()
        except asyncio.CancelledError:
            child.kill()
            await asyncio.shield(child.wait())
            raise
        finally:
            # The tree is gone, so the pipes have ended and everything in them is read.
            await asyncio.gather(*listeners)
        result = _result(spec, ok_type) if code <= 128 else None
        return RunnerEnd(code=code, result=result, last_words="\n".join(self._last_words))

    async def _listen(self, pipe: LinePipe) -> None:
        async for line in pipe.lines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # The runner handles what users wrote; whatever it says must not end its supervision.
                self._logs.line(f"the runner wrote an event that is none: {error!r}", "agent", "WARNING")

    def _take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "log":
                self._logs.line(str(event["text"]), "runner", str(event["level"]), event)
            case "progress":
                self._logs.progress(event)
            case "checkpoint":
                self._on_checkpoint(int(event["step"]), Path(cast("str", event["path"])))
            case other:
                raise ValueError(f"type is {other!r}; expected log, progress or checkpoint")

    async def _echo(self, pipe: LinePipe, source: str) -> None:
        async for content in pipe.lines():
            text = content.decode(errors="replace").rstrip()
            if not text:
                continue
            self._logs.line(text, source)
            if source == "stderr":
                self._last_words.append(text)
                sys.stderr.write(text + "\n")


def _result(spec: RunnerSpec, ok_type: type[OkT]) -> ResultFile[OkT] | None:
    try:
        return read_result(spec.output_dir, ok_type)
    except (FileNotFoundError, ValidationError):
        return None
