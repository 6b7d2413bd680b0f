"""What the command line's exit codes mean. Documented in docs/reference/cli.md."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """One meaning each."""

    OK = 0
    JOB_NOT_SUCCEEDED = 1
    """The job that was followed failed, was refused by its gate, or was cancelled."""
    INVALID = 2
    """The command, the file or the request is not valid."""
    NOT_FOUND = 3
    """Something named does not exist, or no job matched."""
    REFUSED = 4
    """The state of things, the caller's role or a limit does not allow it, or a name or request id is taken."""
    UNAVAILABLE = 5
    """The control plane, or a server it needs, does not answer."""
    TAMPERED = 6
    """The audit log is not what was written."""
    INTERNAL = 70
    """A fault of Headway itself."""
    INTERRUPTED = 130
    """Ctrl-C."""
