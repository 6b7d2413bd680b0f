"""From what went wrong to what is printed and how the command exits. Nobody is shown a stack trace unasked."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from headway_client.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from headway_client.errors import HeadwayError

_EXIT_CODES = {
    "INVALID_ARGUMENT": ExitCode.INVALID,
    "OUT_OF_RANGE": ExitCode.INVALID,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "FAILED_PRECONDITION": ExitCode.REFUSED,
    "ALREADY_EXISTS": ExitCode.REFUSED,
    "ABORTED": ExitCode.REFUSED,
    "PERMISSION_DENIED": ExitCode.REFUSED,
    "UNAUTHENTICATED": ExitCode.REFUSED,
    "RESOURCE_EXHAUSTED": ExitCode.REFUSED,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
}
_HINTS = {
    "UNAVAILABLE": "is it running? `headway status` shows what is, `headway up` starts it",
    "JOB_NOT_FOUND": "`headway jobs` lists a project's jobs",
    "MODEL_NOT_FOUND": "`headway models` lists a project's models",
}


class InputError(Exception):
    """What the user gave cannot be used; the message says what, where, and what was expected."""


@dataclass(frozen=True)
class Report:
    """What is told about a failure."""

    exit_code: ExitCode
    code: str
    """The gRPC status code, or the name of the exit code where no call was made."""
    message: str
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    violations: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    hint: str = ""


def describe(error: Exception) -> Report:
    """What to tell about `error`."""
    # Imported here: when nothing failed, nothing of this is needed.
    from headway_client.connection import NoAddressError
    from headway_client.errors import HeadwayError

    if isinstance(error, HeadwayError):
        return _describe_call(error)
    if isinstance(error, InputError):
        return Report(ExitCode.INVALID, "INVALID", str(error))
    if isinstance(error, NoAddressError):
        return Report(ExitCode.UNAVAILABLE, "UNAVAILABLE", str(error))
    hint = "HEADWAY_DEBUG=1 shows where; this is a fault of Headway, please report it"
    return Report(ExitCode.INTERNAL, "INTERNAL", f"{type(error).__name__}: {error}", hint=hint)


def _describe_call(error: HeadwayError) -> Report:
    hint = _HINTS.get(error.reason) or (_HINTS.get(error.code.name, "") if not error.reason else "")
    if error.reason == "INTERNAL" and (trace_id := error.metadata.get("trace_id")):
        hint = f"its trace is {trace_id}"
    violations = [asdict(violation) for violation in error.violations]
    exit_code = _EXIT_CODES.get(error.code.name, ExitCode.INTERNAL)
    return Report(exit_code, error.code.name, error.message, error.reason, dict(error.metadata), violations, hint)


def show(report: Report, as_json: bool) -> None:
    """Prints to standard error: one JSON document, or lines for people."""
    if as_json:
        content = {key: value for key, value in asdict(report).items() if key != "exit_code" and value}
        print(json.dumps({"error": content}, ensure_ascii=False), file=sys.stderr)
        return
    first, *rest = report.message.splitlines() or [report.code]
    lines = [f"headway: {first}", *(f"         {line}" for line in rest)]
    lines += [f"  {violation['field']}: {violation['description']}" for violation in _unsaid(report)]
    lines += [f"  {report.hint}"] if report.hint else []
    print("\n".join(lines), file=sys.stderr)


def _unsaid(report: Report) -> list[dict[str, str]]:
    """The violations, unless there is one and the message says it."""
    said = len(report.violations) == 1 and report.violations[0]["description"] in report.message
    return [] if said else report.violations


def show_traceback_if_asked(error: Exception) -> None:
    """With HEADWAY_DEBUG set, for developers."""
    if os.environ.get("HEADWAY_DEBUG"):
        traceback.print_exception(error)
