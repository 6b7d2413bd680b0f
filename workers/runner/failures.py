"""How a runner program ends early: typed, so that the harness can turn it into exit code and result file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from control_plane.jobs.states import FailureKind
from workers.workflows.contracts import DataViolation, JobFailure


class RunnerError(Exception):
    """The program cannot go on, and why is known."""

    def __init__(
        self, kind: FailureKind, message: str, violations: Sequence[DataViolation] = (), violation_count: int = 0
    ) -> None:
        super().__init__(message)
        self.failure = JobFailure(kind=kind, message=message, violations=tuple(violations), violation_count=violation_count)


class PreemptedError(Exception):
    """The program was asked to stop and did, at a point where nothing is lost that was kept.

    Args:
        step: optimizer steps completed, 0 where there are none to count.
        checkpoint: the checkpoint that holds them, or None.
    """

    def __init__(self, step: int = 0, checkpoint: Path | None = None) -> None:
        super().__init__(f"stopped on request after step {step}")
        self.step = step
        self.checkpoint = checkpoint
