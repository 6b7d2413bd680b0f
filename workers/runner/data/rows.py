"""Reads prompt and completion rows from JSONL and finds every fault of every row in one pass. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, cast

from workers.workflows.contracts import DataViolation

MAX_LINE_BYTES = 1024 * 1024
MAX_LISTED = 1000

_FIELDS = ("prompt", "completion")
_JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


class Code(StrEnum):
    """What can be wrong with a row, or with the rows together."""

    INVALID_UTF8 = "invalid_utf8"
    LINE_TOO_LONG = "line_too_long"
    INVALID_JSON = "invalid_json"
    DUPLICATE_FIELD = "duplicate_field"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_TEXT = "empty_text"
    NULL_CHARACTER = "null_character"
    INVALID_UNICODE = "invalid_unicode"
    CONTROL_SEQUENCE = "control_sequence"
    NOTHING_TO_TRAIN = "nothing_to_train"
    TOO_FEW_ROWS = "too_few_rows"
    NOTHING_TO_EVALUATE = "nothing_to_evaluate"


@dataclass(frozen=True, slots=True)
class Row:
    """A row without faults of its own."""

    line: int
    prompt: str
    completion: str


class _UnreadableError(Exception):
    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class Violations:
    """Counts all faults and keeps the first thousand."""

    def __init__(self) -> None:
        self.listed: list[DataViolation] = []
        self.count = 0

    def add(self, line: int, path: str, code: Code, message: str) -> None:
        """Notes one fault. `path` is a JSON pointer (RFC 6901) into the row; "" is the row itself."""
        self.count += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append(DataViolation(path=path, line=line, code=code.value, message=message))

    def summary(self) -> str:
        """One sentence for the job's failure: how many faults, and the first."""
        first = self.listed[0]
        place = f"line {first.line}{': ' + first.path if first.path else ''}: " if first.line else ""
        return f"the dataset has {self.count} fault{'s' if self.count > 1 else ''}; first: {place}{first.message}"


def read_dataset(path: Path, violations: Violations) -> Iterator[Row]:
    """Yields the sound rows of a JSONL file in order; each fault of the others goes to `violations`.

    Lines of white space only are no rows. Memory does not grow with the file.
    """
    with path.open("rb") as file:
        for number, line in _lines(file):
            row = _check_line(number, line, violations)
            if row is not None:
                yield row


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines, without their end; None for one that is too long."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(text) <= MAX_LINE_BYTES:
            yield number, text
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield number, None


def _check_line(number: int, line: bytes | None, violations: Violations) -> Row | None:
    if line is not None and not line.strip():
        return None
    repeated: list[str] = []
    try:
        value = _parse(line, repeated)
    except _UnreadableError as error:
        violations.add(number, "", error.code, str(error))
        return None
    before = violations.count
    for name in repeated:
        violations.add(number, _pointer(name), Code.DUPLICATE_FIELD, f"{name!r} is given twice; expected it once")
    fields = _check_fields(number, value, violations)
    if violations.count > before:
        return None
    return Row(number, fields["prompt"], fields["completion"])


def _parse(line: bytes | None, repeated: list[str]) -> Any:
    """The JSON value of a line; names that one of its objects has twice go to `repeated`."""
    if line is None:
        raise _UnreadableError(Code.LINE_TOO_LONG, f"expected at most {MAX_LINE_BYTES} bytes in a line")
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=lambda pairs: _object(pairs, repeated))
    except UnicodeDecodeError as error:
        what = f"expected UTF-8, found byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        raise _UnreadableError(Code.INVALID_UTF8, what) from error
    except json.JSONDecodeError as error:
        raise _UnreadableError(Code.INVALID_JSON, f"expected JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(Code.INVALID_JSON, f"expected JSON of ordinary size and depth: {error}") from error


def _object(pairs: Sequence[tuple[str, Any]], repeated: list[str]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated.extend(sorted({name for name in names if names.count(name) > 1}))
    return fields


def _check_fields(number: int, value: Any, violations: Violations) -> dict[str, Any]:
    if not isinstance(value, dict):
        violations.add(number, "", Code.NOT_AN_OBJECT, f"expected an object, found {_type_name(value)}")
        return {}
    fields = cast("dict[str, Any]", value)
    for name in fields:
        if name not in _FIELDS:
            violations.add(
                number, _pointer(name), Code.UNKNOWN_FIELD, f"{name!r} is unknown; expected prompt and completion only"
            )
    for name in _FIELDS:
        if name not in fields:
            violations.add(number, _pointer(name), Code.MISSING_FIELD, f"{name} is missing; expected a string")
        else:
            _check_text(number, name, fields[name], violations)
    return fields


def _check_text(number: int, name: str, value: Any, violations: Violations) -> None:
    path = _pointer(name)
    if not isinstance(value, str):
        violations.add(number, path, Code.WRONG_TYPE, f"{name} is {_type_name(value)}; expected a string")
    elif not value.strip():
        violations.add(number, path, Code.EMPTY_TEXT, f"{name} is empty; expected text")
    elif "\x00" in value:
        violations.add(number, path, Code.NULL_CHARACTER, f"{name} holds U+0000; expected text without it")
    elif not _is_encodable(value):
        violations.add(number, path, Code.INVALID_UNICODE, f"{name} holds half a surrogate pair; expected whole characters")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pointer(name: str) -> str:
    # A name that is itself broken must not break the report.
    readable = name[:100].encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return "/" + readable.replace("~", "~0").replace("/", "~1")


def _type_name(value: Any) -> str:
    return "null" if value is None else f"a {_JSON_TYPES[type(value)]}".replace("a o", "an o").replace("a a", "an a")
