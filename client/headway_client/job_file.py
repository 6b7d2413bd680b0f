"""Job files: YAML for people, read strictly, with every fault named by line and field.

A job file holds `project`, `name`, `priority` and `spec` of a SubmitJobRequest. What is YAML here is the JSON-compatible core
of YAML 1.2: `no` is a word and `1e-3` a number. A file that says one thing twice, or something no field is named for, is
refused rather than guessed at.

Two things are shorter here than on the wire: the values of an enum are words (`sampler: tpe`), and a number that the platform
is to choose is `auto` (`learning_rate: auto`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from google.protobuf.json_format import ParseDict, ParseError

from headway.jobs.v1.job_service_pb2 import SubmitJobRequest
from headway_client.yaml_nodes import Fault, YamlFaultError, check_message, compose, construct_message

_FIELDS = ("project", "name", "priority", "spec")
_BYTES_MAX = 1024 * 1024


class JobFileError(Exception):
    """The file is not a job file; the message has a line per fault: file:line: field: what was found and expected."""

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        self.path = path
        self.faults = faults
        super().__init__("\n".join(f"{path}{fault}" for fault in faults))


def read_job_file(path: Path) -> SubmitJobRequest:
    """The request that the file describes, without request id.

    Raises:
        JobFileError: the file cannot be read or is not a job file.
    """
    return parse_job(path, read_text(path))


def parse_job(path: Path, text: str, line: int = 1) -> SubmitJobRequest:
    """The request that a text describes, which is that of `path` from `line` on.

    Raises:
        JobFileError: it does not describe a job.
    """
    try:
        node = compose(text)
        faults = check_message(node, SubmitJobRequest.DESCRIPTOR, _FIELDS)
        if faults:
            raise JobFileError(path, [_moved(fault, line) for fault in faults])
        return ParseDict(construct_message(node, SubmitJobRequest.DESCRIPTOR), SubmitJobRequest())
    except YamlFaultError as error:
        raise JobFileError(path, [_moved(error.fault, line)]) from error
    except ParseError as error:
        # What the check above lets through and the converter does not; it names the field but knows no line.
        raise JobFileError(path, [Fault(line if line > 1 else 0, "", str(error))]) from error


def _moved(fault: Fault, line: int) -> Fault:
    return replace(fault, line=fault.line + line - 1) if fault.line else fault


def read_text(path: Path, bytes_max: int = _BYTES_MAX) -> str:
    """The text of a file that is not endless.

    Raises:
        JobFileError: it cannot be read, is too large, or is not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise JobFileError(path, [Fault(0, "", f"cannot be read: {error.strerror}")]) from error
    if len(content) > bytes_max:
        raise JobFileError(path, [Fault(0, "", f"is larger than {bytes_max:,} bytes; a job file is short")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise JobFileError(path, [Fault(line, "", "is not UTF-8 text; expected YAML")]) from error
