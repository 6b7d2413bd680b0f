"""What a runner program says by its exit code; the details are in its result file."""

from __future__ import annotations

from enum import IntEnum

from control_plane.jobs.states import FailureKind


class ExitCode(IntEnum):
    """Exit codes of the runner programs. A death by signal (128 + n at the guardian) is a crash: no result file counts."""

    DONE = 0
    USER_ERROR = 64
    """Data, base model, checkpoint, spec or the run time limit: the same input fails again, so no retry. See `failure.kind`."""
    INTERNAL = 70
    """A fault of the platform or of its machine."""
    PREEMPTED = 75
    """Stopped on request at a step boundary; what is to be kept is in the last checkpoint. Start again with `resume_from`."""
    NUMERIC = 76
    """NaN or infinity; nothing was updated with it."""
    OUT_OF_MEMORY = 77
    """An allocation was refused. (The kernel's out-of-memory killer is a crash instead.)"""


_BY_KIND = {
    FailureKind.NUMERIC: ExitCode.NUMERIC,
    FailureKind.OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
    FailureKind.PLATFORM: ExitCode.INTERNAL,
}


def exit_code_of(kind: FailureKind) -> ExitCode:
    """The exit code of a program that fails with `kind`."""
    return _BY_KIND.get(kind, ExitCode.USER_ERROR)
