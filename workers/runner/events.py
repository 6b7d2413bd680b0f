"""The events a runner program reports while it runs: JSON lines on an inherited pipe, numbered from 1 without gaps."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from opentelemetry import trace

PIPE_VARIABLE = "HEADWAY_RUNNER_PIPE_FD"


class EventWriter:
    """Writes events; from any thread. Without a pipe, or when its reader has gone, events go nowhere.

    A reader that is slow slows the program down: no event is dropped while there is a reader.
    """

    def __init__(self, stream: io.RawIOBase | None) -> None:
        self._stream = stream
        self._sequence = 0
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> EventWriter:
        """Takes the pipe named by HEADWAY_RUNNER_PIPE_FD, and keeps it from any child."""
        value = os.environ.get(PIPE_VARIABLE)
        if not value:
            return cls(None)
        descriptor = int(value)
        os.set_inheritable(descriptor, False)
        return cls(os.fdopen(descriptor, "wb", buffering=0))

    def log(self, text: str, level: str = "INFO") -> None:
        """A line for people."""
        self._write("log", {"level": level, "text": text})

    def progress(self, phase: str, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """How far `phase` ("train" or "evaluate") has come, with finite `metrics`."""
        self._write("progress", {"phase": phase, "step": step, "total_steps": total_steps, "metrics": dict(metrics)})

    def checkpoint(self, step: int, path: Path) -> None:
        """A complete checkpoint directory is at `path`."""
        self._write("checkpoint", {"step": step, "path": str(path)})

    def close(self) -> None:
        """Closes the pipe, so that its reader sees the end."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def _write(self, kind: str, fields: Mapping[str, object]) -> None:
        span = trace.get_current_span().get_span_context()
        with self._lock:
            if self._stream is None:
                return
            self._sequence += 1
            event = {
                "sequence": self._sequence,
                "time": time.time(),
                "type": kind,
                "trace_id": f"{span.trace_id:032x}" if span.is_valid else "",
                "span_id": f"{span.span_id:016x}" if span.is_valid else "",
                **fields,
            }
            rest = memoryview(json.dumps(event, allow_nan=False).encode() + b"\n")
            try:
                while rest:
                    rest = rest[self._stream.write(rest) :]
            except BrokenPipeError:
                # Whoever supervised this process has died; its guardian is about to end us too.
                self._stream.close()
                self._stream = None
