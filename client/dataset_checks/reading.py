"""Rows of a file of any format, one pass, each with the line it stands on; what is wrong with them is collected."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dataset_checks import csv_rows, parquet_rows
from dataset_checks.faults import DEFAULT_LIMITS, Code, Fault, Limits
from dataset_checks.file_kinds import BYTE_ORDER_MARK, HEAD_BYTES, file_fault, file_format_of
from dataset_checks.formats import FileFormat, RowFormat
from dataset_checks.json_lines import LineParser
from dataset_checks.rows import Layout, RowChecker, layout_of
from dataset_checks.texts import TextChecker

_SAMPLE_ROWS = 200


@dataclass(frozen=True, slots=True)
class Opened:
    """What a file is, by its beginning."""

    path: Path
    file_format: FileFormat
    layout: Layout | None
    """None where the columns are of no format."""
    faults: Sequence[Fault] = ()
    """What is wrong with the file as a whole."""
    readable: bool = True


def open_dataset(
    path: Path,
    name: str = "",
    file_format: FileFormat | None = None,
    row_format: RowFormat | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Opened:
    """Looks at the beginning of a file. What is given is not detected; `name` is the file's own, where `path` is not.

    Raises:
        OSError: the file cannot be read.
        MissingLibraryError: it is Parquet, and pyarrow is not installed.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    fault = file_fault(head, name or path.name)
    if fault is not None:
        return Opened(path, file_format or FileFormat.JSONL, None, (fault,), readable=False)
    found_format = file_format_of(head, name or path.name)
    if file_format is None or FileFormat.PARQUET in (file_format, found_format):
        file_format = found_format
    faults: list[Fault] = []
    if head.startswith(BYTE_ORDER_MARK):
        faults.append(Fault(1, "", Code.BYTE_ORDER_MARK, "the file begins with a byte order mark; expected none"))
    ignored: list[Fault] = []  # Those of rows are found again when all of the file is read.
    rows = [row for _, row in islice(_sample(path, head, file_format, limits, ignored), _SAMPLE_ROWS)]
    layout = layout_of(rows, row_format)
    if layout is None and rows:
        names = ", ".join(sorted({str(name)[:40] for row in rows[:10] for name in row})[:10])
        message = f"the columns are {names or 'none'}; expected those of a format, such as prompt and completion"
        faults.append(Fault(0, "", Code.UNKNOWN_COLUMNS, message))
    elif layout is None and file_format is FileFormat.JSONL:
        # Not one row at the beginning can be read: what is wrong with each is told all the same.
        layout = layout_of((), RowFormat.PROMPT_COMPLETION)
    elif layout is None:
        faults += ignored or [Fault(0, "", Code.EMPTY_FILE, "the file has no rows; expected rows")]
    return Opened(path, file_format, layout, tuple(faults))


def _sample(
    path: Path, head: bytes, file_format: FileFormat, limits: Limits, found: list[Fault]
) -> Iterator[tuple[int, dict[str, Any]]]:
    if file_format is FileFormat.PARQUET:
        yield from parquet_rows.read_records(path, limits, found)
    elif file_format is FileFormat.CSV:
        yield from csv_rows.read_records(io.BytesIO(head), limits, found)
    else:
        parser = LineParser(limits)
        for line in head.removeprefix(BYTE_ORDER_MARK).splitlines():
            row = parser.parse(1, line, found) if line.strip() else None
            if row is not None:
                yield 1, row


@dataclass(slots=True)
class Checked:
    """What a part of a file held."""

    lines: int = 0
    rows: int = 0
    faulty_rows: int = 0
    faults: list[Fault] = field(default_factory=list[Fault])
    sound: list[tuple[int, dict[str, Any]]] = field(default_factory=list[tuple[int, dict[str, Any]]])
    """Rows without an error, each with its line."""
    ends: Sequence[tuple[int, str]] = ()
    """How lines end: the first line, and the first that ends otherwise."""


class LineChecker:
    """Checks lines of JSON: numbers them from 1 in each chunk; whoever joins the chunks adds what came before."""

    def __init__(self, layout: Layout, texts: TextChecker, limits: Limits) -> None:
        self._parser = LineParser(limits)
        self._rows = RowChecker(layout, texts)

    def check(self, data: bytes, tail: bool) -> Checked:
        """Checks whole lines; `tail`: what comes after a file's last line end."""
        result = Checked()
        faults = result.faults
        parse, check = self._parser.parse, self._rows.check
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, 1):
            if not line or line.isspace():
                continue
            result.rows += 1
            before = len(faults)
            row = parse(number, line, faults)
            if row is not None:
                if len(faults) == before:
                    check(number, row, faults)
                else:
                    # What the parser has told of a value is not told again as its wrong type.
                    told = {fault.pointer for fault in faults[before:]}
                    more: list[Fault] = []
                    check(number, row, more)
                    faults += (fault for fault in more if fault.pointer not in told)
            elif tail and faults[-1].code is Code.INVALID_JSON:
                message = "the file ends within a row; expected its end"
                faults[-1] = Fault(number, "", Code.TRUNCATED_FILE, message)
            note(result, number, row, before)
        result.lines = len(lines)
        result.ends = _line_ends(data, lines)
        return result


def _line_ends(data: bytes, lines: Sequence[bytes]) -> list[tuple[int, str]]:
    ended = data.count(b"\n")
    returns = data.count(b"\r\n")
    if not ended:
        return []
    if returns in (0, ended):
        return [(1, "CRLF" if returns else "LF")]
    first = lines[0][-1:] == b"\r"
    changed = next(number for number, line in enumerate(lines[:ended], 1) if (line[-1:] == b"\r") != first)
    return [(1, "CRLF" if first else "LF"), (changed, "LF" if first else "CRLF")]


def note(result: Checked, line: int, row: dict[str, Any] | None, before: int) -> None:
    """Counts a row, whose faults are those from index `before` on."""
    if len(result.faults) > before and any(fault.code.severity == "error" for fault in result.faults[before:]):
        result.faulty_rows += 1
    elif row is not None:
        result.sound.append((line, row))


def checked_records(opened: Opened, layout: Layout, texts: TextChecker, limits: Limits, batch_rows: int) -> Iterator[Checked]:
    """Checks the rows of a CSV or Parquet file, some at a time, with their own line numbers."""
    checker = RowChecker(layout, texts)
    result = Checked()
    with opened.path.open("rb") as file:
        if opened.file_format is FileFormat.CSV:
            records = csv_rows.read_records(file, limits, result.faults)
        else:
            records = parquet_rows.read_records(opened.path, limits, result.faults)
        while True:
            # A record that cannot be read is a fault, and no record.
            taken = list(islice(records, batch_rows))
            unreadable = len(result.faults)
            result.rows = len(taken) + unreadable
            result.faulty_rows = unreadable
            for line, row in taken:
                before = len(result.faults)
                checker.check(line, row, result.faults)
                note(result, line, row, before)
            faults = result.faults[:]
            faults.sort(key=lambda fault: fault.line)
            yield Checked(len(taken), result.rows, result.faulty_rows, faults, result.sound)
            if len(taken) < batch_rows:
                return
            result.faults.clear()
            result.sound = []
