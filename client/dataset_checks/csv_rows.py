"""CSV (RFC 4180): records of quoted fields, of which each may go over several lines."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from dataset_checks.faults import Code, Fault, Limits, pointer_to
from dataset_checks.file_kinds import BYTE_ORDER_MARK

_READ_BYTES = 64 * 1024
# A field is quoted from its first character to its last, with quotes inside doubled, or holds no quote at all.
_FIELD = rb'(?:"(?:[^"]|"")*+"|[^",]*+)'
_SOUND = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+\Z")
_OPEN = re.compile(rb"(?:" + _FIELD + rb',)*+"(?:[^"]|"")*+\Z')
_QUOTES = "the record has a quote that does not begin, end or double one; expected quoting as of RFC 4180"
_CHECKED_LINES = 100
"""Lines of a record after each of which its quotes are checked; after more only at its end, so that time stays in bounds."""
_BOOLEANS = {"true": True, "false": False}


def read_records(file: BinaryIO, limits: Limits, found: list[Fault]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line on which each record begins, and its fields, all of them texts but `label`, which may be true or false."""
    records = _records(file, limits, found)
    first = next(records, None)
    if first is None:
        return
    number, names = first
    if not _check_header(number, names, limits, found):
        return
    for number, fields in records:
        if len(fields) != len(names):
            message = f"the record has {len(fields)} fields; expected {len(names)}, as in the header"
            found.append(Fault(number, "", Code.RAGGED_ROW, message))
            continue
        row: dict[str, Any] = dict(zip(names, fields, strict=True))
        if "label" in row:
            row["label"] = _BOOLEANS.get(row["label"].strip().lower(), row["label"])
        yield number, row


def _check_header(number: int, names: list[str], limits: Limits, found: list[Fault]) -> bool:
    if len(names) > limits.columns:
        message = f"the header has {len(names)} columns; expected at most {limits.columns}"
        found.append(Fault(number, "", Code.TOO_MANY_COLUMNS, message))
        return False
    if len(names) == 1 and (separator := next((one for one in ";\t|" if one in names[0]), None)):
        message = f"the columns are separated by {separator!r}; expected commas"
        found.append(Fault(number, "", Code.WRONG_DELIMITER, message))
        return False
    repeated = sorted({name for name in names if names.count(name) > 1})
    for name in repeated:
        message = f"the column {name[:40]!r} is there twice; expected it once"
        found.append(Fault(number, pointer_to(name), Code.DUPLICATE_COLUMN, message))
    return not repeated


def _lines(file: BinaryIO, limits: Limits) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines with their ends; None for one that is too long."""
    number = 0
    while line := file.readline(limits.line_bytes + 2):
        number += 1
        if len(line) > limits.line_bytes + 1:
            while not line.endswith(b"\n") and (line := file.readline(_READ_BYTES)):
                pass
            yield number, None
            continue
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def _records(file: BinaryIO, limits: Limits, found: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """Records of sound quoting. After a broken one the search goes on with the line after that on which it began."""
    lines = _lines(file, limits)
    again: deque[tuple[int, bytes | None]] = deque()
    record: list[tuple[int, bytes]] = []
    size, quotes = 0, 0

    def give_up(after: tuple[int, bytes | None] | None) -> None:
        found.append(Fault(record[0][0], "", Code.INVALID_CSV_QUOTES, _QUOTES))
        again.extendleft(reversed([*record[1:], *([after] if after else [])]))

    while True:
        number, line = again.popleft() if again else next(lines, (0, b""))
        if record and (not number or line is None or size + len(line) > limits.line_bytes):
            give_up((number, line) if number else None)
            record, size, quotes = [], 0, 0
            continue
        if not number:
            return
        if line is None:
            message = f"the line is longer than {limits.line_bytes} bytes; expected at most that"
            found.append(Fault(number, "", Code.LINE_TOO_LONG, message))
            continue
        if not record and not line.strip():
            continue
        record.append((number, line))
        size += len(line)
        added = line.count(b'"')
        quotes += added
        # Quotes come in pairs in a record that has ended, doubled ones too.
        ended = quotes % 2 == 0
        if ended or (added and len(record) <= _CHECKED_LINES):
            body = b"".join(part for _, part in record).rstrip(b"\r\n")
            if quotes and not (_SOUND if ended else _OPEN).match(body):
                give_up(None)
            elif ended:
                fields = _fields(record[0][0], body, found)
                if fields is not None:
                    yield record[0][0], fields
            else:
                continue
            record, size, quotes = [], 0, 0


def _fields(number: int, body: bytes, found: list[Fault]) -> list[str] | None:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        what = f"byte 0x{body[error.start]:02x} at byte {error.start + 1} is not UTF-8; expected UTF-8"
        found.append(Fault(number, "", Code.INVALID_UTF8, what))
        return None
    # The process's, and others rely on it: it is only ever raised.
    if len(text) >= csv.field_size_limit():
        csv.field_size_limit(len(text) + 1)
    return next(csv.reader(io.StringIO(text, newline=""), strict=True))
