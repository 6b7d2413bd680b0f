"""From what went wrong to what is printed and how the command exits. Nobody is shown a stack trace unasked."""

from __future__ import annotations

import json
import os
import re
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
    "PROJECT_NOT_FOUND": "`headway project list` lists the projects you may see",
    "UNAUTHENTICATED": "expected --token-file FILE, HEADWAY_TOKEN or HEADWAY_TOKEN_FILE with a token that is valid",
    "PERMISSION_DENIED": "`headway whoami` shows what you may do",
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
    quotas: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    preconditions: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    retry_after_seconds: float | None = None
    hint: str = ""
    said: tuple[str, list[str]] | None = None
    """For people: a sentence and a line for each fault, everything once. None: the message."""


def describe(error: Exception) -> Report:
    """What to tell about `error`."""
    # Imported here: when nothing failed, nothing of this is needed.
    from headway_client.connection import NoAddressError
    from headway_client.credentials import CredentialsError
    from headway_client.errors import HeadwayError

    if isinstance(error, HeadwayError):
        return _describe_call(error)
    if isinstance(error, InputError | CredentialsError):
        return Report(ExitCode.INVALID, "INVALID", str(error))
    if isinstance(error, NoAddressError):
        return Report(ExitCode.UNAVAILABLE, "UNAVAILABLE", str(error))
    hint = "HEADWAY_DEBUG=1 shows where; this is a fault of Headway, please report it"
    return Report(ExitCode.INTERNAL, "INTERNAL", f"{type(error).__name__}: {error}", hint=hint)


def _describe_call(error: HeadwayError) -> Report:
    hint = _HINTS.get(error.reason) or (_HINTS.get(error.code.name, "") if not error.reason else "")
    if error.reason == "PERMISSION_DENIED" and (project := error.metadata.get("project")):
        hint += f", `headway member list -p {project}` whom to ask"
    if any(command in error.message for command in re.findall("`.*?`", hint)):
        hint = ""  # the message has said it
    if error.reason == "INTERNAL" and (trace_id := error.metadata.get("trace_id")):
        hint = f"its trace is {trace_id}"
    if error.retry_after_seconds is not None:
        hint = hint or f"try again in {error.retry_after_seconds:.1f} s"
    return Report(
        _EXIT_CODES.get(error.code.name, ExitCode.INTERNAL),
        error.code.name,
        error.message,
        error.reason,
        dict(error.metadata),
        violations=[asdict(one) for one in error.violations],
        quotas=[asdict(one) for one in error.quotas],
        preconditions=[asdict(one) for one in error.preconditions],
        retry_after_seconds=error.retry_after_seconds,
        hint=hint,
        said=error.faults,
    )


def show(report: Report, as_json: bool) -> None:
    """Prints to standard error: one JSON document, or lines for people."""
    if as_json:
        content = {key: value for key, value in asdict(report).items() if key not in ("exit_code", "said") and value}
        print(json.dumps({"error": content}, ensure_ascii=False), file=sys.stderr)
        return
    sentence, faults = report.said or (report.message, [])
    first, *rest = sentence.splitlines() or [report.code]
    lines = [f"headway: {first}", *(f"         {line}" for line in rest), *(f"  {fault}" for fault in faults)]
    lines += [f"  {report.hint}"] if report.hint else []
    print("\n".join(lines), file=sys.stderr)


def show_traceback_if_asked(error: Exception) -> None:
    """With HEADWAY_DEBUG set, for developers."""
    if os.environ.get("HEADWAY_DEBUG"):
        traceback.print_exception(error)
