"""Validates a dataset: one pass over the file finds everything that is wrong with it."""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataset_checks.faults import DEFAULT_LIMITS, Code, Fault, Limits, Severity
from dataset_checks.file_kinds import BYTE_ORDER_MARK
from dataset_checks.fingerprints import Fingerprints, compare
from dataset_checks.formats import FileFormat, RowFormat
from dataset_checks.json_lines import Chunk, chunks
from dataset_checks.reading import Checked, LineChecker, Opened, checked_records, open_dataset
from dataset_checks.rows import Layout
from dataset_checks.sensitive import look_for_sensitive
from dataset_checks.texts import KNOWN_CONTROL_TOKENS, TextChecker, look_for_nothing

_BATCH_ROWS = 4_096
_NEAR_ROWS_MAX = 5_000_000
"""Rows after which no more are held against the others for being nearly the same: 96 bytes each."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is looked for."""

    sensitive: bool = False
    """Secrets and personal data too."""
    near_duplicates: bool = True
    control_tokens: Sequence[str] = KNOWN_CONTROL_TOKENS
    limits: Limits = DEFAULT_LIMITS

    def texts(self) -> TextChecker:
        """Checks texts as the policy asks."""
        return TextChecker(self.control_tokens, look_for_sensitive if self.sensitive else look_for_nothing)


DEFAULT_POLICY = Policy()


@dataclass(slots=True)
class Report:
    """What a file holds and what is wrong with it, in numbers. Faults themselves are handed out as they are found."""

    file_format: FileFormat
    row_format: RowFormat | None
    bytes: int = 0
    rows: int = 0
    faulty_rows: int = 0
    """Rows with an error of their own."""
    counts: Counter[Code] = field(default_factory=Counter[Code])
    near_duplicates_in: int = 0
    """Rows among which near duplicates were looked for."""

    @property
    def errors(self) -> int:
        """Faults that keep the file from being trained on."""
        return sum(count for code, count in self.counts.items() if code.severity is Severity.ERROR)

    @property
    def warnings(self) -> int:
        """The others."""
        return self.counts.total() - self.errors


OnFaults = Callable[[Sequence[Fault]], None]
OnRows = Callable[[Sequence[tuple[int, dict[str, Any]]]], Iterable[Fault]]
"""Looks further at sound rows, such as at their tokens; what it finds is told with the rest."""


def _tell_nobody(_bytes: int) -> None:
    pass


def validate(
    opened: Opened,
    tell: OnFaults,
    policy: Policy = DEFAULT_POLICY,
    evaluation: Opened | None = None,
    progress: Callable[[int], None] = _tell_nobody,
    processes: int = 1,
    on_rows: OnRows | None = None,
) -> Report:
    """Reads all of a file and hands every fault to `tell`, those of rows together last.

    Args:
        opened: the file.
        tell: is given faults as they are found, in the order of lines but for those of rows together.
        policy: what is looked for.
        evaluation: rows that must not be in the file.
        progress: told how many more bytes have been read.
        processes: among how many JSON lines are shared out; with `on_rows` there is one.
        on_rows: looks further at sound rows.

    Raises:
        OSError: a file cannot be read.
        MissingLibraryError: a library is not installed that the file needs.
    """
    report = Report(opened.file_format, opened.layout.row_format if opened.layout else None, opened.path.stat().st_size)

    def found(faults: Sequence[Fault]) -> None:
        report.counts.update(fault.code for fault in faults)
        if faults:
            tell(faults)

    if opened.layout is None or not opened.readable:
        found(opened.faults or (Fault(0, "", Code.UNKNOWN_COLUMNS, "no row can be read; expected rows of a format"),))
        return report
    parts: list[Fingerprints] = []
    labels: set[object] = set()
    pending = list(opened.faults)
    near = policy.near_duplicates
    for checked, prints in _checked(opened, opened.layout, policy, progress, processes, on_rows is not None):
        report.rows += checked.rows
        report.faulty_rows += checked.faulty_rows
        faults = [*pending, *checked.faults]
        pending = []
        if on_rows is not None:
            faults += on_rows(checked.sound)
            faults.sort(key=lambda fault: fault.line)
        found(faults)
        if near and report.rows > _NEAR_ROWS_MAX:
            near = False
        parts.append(prints if near else prints.without_sketches())
        report.near_duplicates_in += len(prints.lines) if near else 0
        labels |= prints.labels
    found(pending)
    if report.rows == 0 and not report.counts:
        found([Fault(0, "", Code.EMPTY_FILE, "the file has no rows; expected rows")])
    if parts:
        held_out = None if evaluation is None else fingerprints(evaluation, policy)
        found(list(compare(Fingerprints.joined(parts), held_out)))
    if report.row_format is RowFormat.UNPAIRED_PREFERENCE and len(labels) == 1:
        message = f"every label is {str(*labels).lower()}; expected rows of both"
        found([Fault(0, "", Code.ONE_LABEL_ONLY, message)])
    return report


def fingerprints(opened: Opened, policy: Policy) -> Fingerprints | None:
    """Those of the sound rows of a file; None when none is."""
    if opened.layout is None:
        return None
    parts = [prints for _, prints in _checked(opened, opened.layout, policy, _tell_nobody, 1, keep_rows=False)]
    return Fingerprints.joined(parts) if parts else None


def read_rows(
    path: Path, tell: OnFaults, policy: Policy, row_format: RowFormat | None = None
) -> tuple[Opened, Iterator[tuple[int, dict[str, Any]]]]:
    """The sound rows of a file with their lines, for a caller that goes on with them; faults of the others go to `tell`."""
    opened = open_dataset(path, row_format=row_format, limits=policy.limits)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        if opened.faults:
            tell(opened.faults)
        if opened.layout is None or not opened.readable:
            if not opened.faults:
                tell((Fault(0, "", Code.UNKNOWN_COLUMNS, "no row can be read; expected rows of a format"),))
            return
        for checked in _parts(opened, opened.layout, policy, _tell_nobody):
            if checked.faults:
                tell(checked.faults)
            yield from checked.sound

    return opened, rows()


def _checked(
    opened: Opened, layout: Layout, policy: Policy, progress: Callable[[int], None], processes: int, keep_rows: bool
) -> Iterator[tuple[Checked, Fingerprints]]:
    if opened.file_format is FileFormat.JSONL and processes > 1 and not keep_rows:
        yield from _shared_out(opened, layout, policy, progress, processes)
        return
    for checked in _parts(opened, layout, policy, progress):
        yield checked, _prints(checked, layout, policy)


def _prints(checked: Checked, layout: Layout, policy: Policy) -> Fingerprints:
    lines, rows = [line for line, _ in checked.sound], [row for _, row in checked.sound]
    return Fingerprints.of(lines, rows, layout.row_format, policy.near_duplicates)


def _parts(opened: Opened, layout: Layout, policy: Policy, progress: Callable[[int], None]) -> Iterator[Checked]:
    """Checks a file here, part after part."""
    if opened.file_format is not FileFormat.JSONL:
        yield from checked_records(opened, layout, policy.texts(), policy.limits, _BATCH_ROWS)
        progress(opened.path.stat().st_size)
        return
    checker = LineChecker(layout, policy.texts(), policy.limits)
    join = _Joiner()
    for chunk in _chunks(opened, policy):
        yield join.add(_check_chunk(checker, chunk, policy.limits))
        progress(len(chunk.data))


def _chunks(opened: Opened, policy: Policy) -> Iterator[Chunk]:
    with opened.path.open("rb") as file:
        for number, chunk in enumerate(chunks(file, policy.limits)):
            yield replace(chunk, data=chunk.data.removeprefix(BYTE_ORDER_MARK)) if number == 0 else chunk


def _check_chunk(checker: LineChecker, chunk: Chunk, limits: Limits) -> Checked:
    if chunk.too_long:
        message = f"the line is longer than {limits.line_bytes} bytes; expected at most that"
        return Checked(1, 1, 1, [Fault(1, "", Code.LINE_TOO_LONG, message)])
    return checker.check(chunk.data, chunk.tail)


class _Joiner:
    """Gives the lines of chunks, which are numbered from 1 in each, their numbers in the file, and follows their ends."""

    def __init__(self) -> None:
        self._lines = 0
        self._ends = ""
        self._told = False

    def add(self, checked: Checked) -> Checked:
        before = self._lines
        self._lines += checked.lines
        faults = [fault._replace(line=fault.line + before) for fault in checked.faults] if before else checked.faults
        if not self._told and checked.ends:
            self._ends = self._ends or checked.ends[0][1]
            changed = next((line for line, ends in checked.ends if ends != self._ends), 0)
            if changed:
                self._told = True
                message = f"the line ends otherwise than those before it, which end with {self._ends}; expected one way"
                faults = sorted([*faults, Fault(changed + before, "", Code.MIXED_LINE_ENDS, message)], key=lambda one: one.line)
        sound = [(line + before, row) for line, row in checked.sound]
        return replace(checked, faults=faults, sound=sound)


# Each process of the pool has one checker, made as it starts.
_of_process: list[tuple[LineChecker, Layout, Policy]] = []


def _start_process(layout: Layout, policy: Policy) -> None:
    _of_process[:] = [(LineChecker(layout, policy.texts(), policy.limits), layout, policy)]


def _check_in_process(chunk: Chunk) -> tuple[Checked, Fingerprints]:
    ((checker, layout, policy),) = _of_process
    checked = _check_chunk(checker, chunk, policy.limits)
    prints = _prints(checked, layout, policy)
    return replace(checked, sound=[]), prints


def _shared_out(
    opened: Opened, layout: Layout, policy: Policy, progress: Callable[[int], None], processes: int
) -> Iterator[tuple[Checked, Fingerprints]]:
    join = _Joiner()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_process, (layout, policy)) as pool:
        ahead: deque[tuple[int, Future[tuple[Checked, Fingerprints]]]] = deque()
        lines = 0

        def next_done() -> tuple[Checked, Fingerprints]:
            nonlocal lines
            size, future = ahead.popleft()
            checked, prints = future.result()
            prints = prints.moved(lines)
            lines += checked.lines
            progress(size)
            return join.add(checked), prints

        for chunk in _chunks(opened, policy):
            ahead.append((len(chunk.data), pool.submit(_check_in_process, chunk)))
            if len(ahead) > 2 * processes:
                yield next_done()
        while ahead:
            yield next_done()
