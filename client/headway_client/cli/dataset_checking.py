"""headway dataset validate: everything that is wrong with a file, before it is sent."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.exit_codes import ExitCode
from headway_client.cli.failures import InputError
from headway_client.cli.options import AsJson
from headway_client.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataset_checks.faults import Fault
    from dataset_checks.rendering import TokenCounter
    from dataset_checks.validation import Policy, Report

_LARGE_BYTES = 64 * 1024 * 1024
"""From here on a second process is worth its start."""
_SHOWN = 40


class Output(StrEnum):
    """How the faults are printed."""

    TABLE = "table"
    JSON = "json"


class FormatChoice(StrEnum):
    """The formats of rows, as dataset_checks.formats.RowFormat has them; help must not wait for that."""

    TEXT = "text"
    PROMPT_COMPLETION = "prompt_completion"
    CHAT = "chat"
    PREFERENCE = "preference"
    UNPAIRED_PREFERENCE = "unpaired_preference"
    PROMPT_ONLY = "prompt_only"


class FileFormatChoice(StrEnum):
    """The formats of files, as dataset_checks.formats.FileFormat has them."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


File = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, CSV or Parquet.", show_default=False)]
Format = Annotated[
    FormatChoice | None, typer.Option("--format", help="What rows are made of. Default: told by the rows.", show_default=False)
]
FileFormatOption = Annotated[
    FileFormatChoice | None,
    typer.Option("--file-format", help="How rows are written. Default: told by content.", show_default=False),
]


def validate(
    file: File,
    row_format: Format = None,
    file_format: FileFormatOption = None,
    eval_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows that must not be in FILE.", show_default=False)
    ] = None,
    base_model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model's directory: counts tokens exactly by it.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=8, help="With --base-model: the tokens of a row that are trained on.")] = 1024,
    assistant_only_loss: Annotated[
        bool, typer.Option("--assistant-only-loss", help="With --base-model: the template must mark the assistant's text.")
    ] = False,
    sensitive: Annotated[bool, typer.Option("--sensitive", help="Look for secrets and personal data too.")] = False,
    every: Annotated[bool, typer.Option("--all", help=f"Print every fault, not the first {_SHOWN} of a kind.")] = False,
    output: Annotated[
        Output, typer.Option(help="Print a table, or JSON: a line for each fault, then the report.")
    ] = Output.TABLE,
    as_json: AsJson = False,
) -> None:
    """Reads a dataset once and tells every fault: where, what, and what to do. Sends nothing. Exits with 2 on errors.

    \b
    Examples:
      headway dataset validate rows.jsonl
      headway dataset validate train.parquet --eval-file eval.parquet --sensitive
      headway dataset validate chats.jsonl --base-model ./model --max-tokens 4096
      headway dataset validate rows.csv --json | jq -r 'select(.fault) | .fault.line'
    """
    from dataset_checks.validation import Policy

    as_json = as_json or output is Output.JSON
    shown = _Lines() if as_json else _Table(None if every else _SHOWN)
    with _readable(file):
        counter = None
        policy = Policy(sensitive=sensitive)
        if base_model is not None:
            counter, policy = _counter(base_model, max_tokens, assistant_only_loss, policy)
        elif assistant_only_loss:
            raise InputError("--assistant-only-loss: expected --base-model DIR too, whose template it is about")
        report, seconds = check_file(
            file, shown.tell, policy, row_format, file_format, eval_file=eval_file, counter=counter, quiet=as_json
        )
    shown.end(file, report, seconds, counter)
    if report.errors:
        raise typer.Exit(ExitCode.INVALID)


def check_file(
    file: Path,
    tell: Callable[[Sequence[Fault]], None],
    policy: Policy,
    row_format: FormatChoice | None = None,
    file_format: FileFormatChoice | None = None,
    *,
    eval_file: Path | None = None,
    counter: TokenCounter | None = None,
    quiet: bool = False,
) -> tuple[Report, float]:
    """Validates `file` with a bar on a terminal; also the seconds that took.

    Raises:
        OSError: a file cannot be read.
        MissingLibraryError: a library is not installed that it needs.
    """
    import time

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from dataset_checks.formats import FileFormat, RowFormat
    from dataset_checks.reading import open_dataset
    from dataset_checks.validation import validate as check

    began = time.monotonic()
    given = FileFormat(file_format.value) if file_format else None
    opened = open_dataset(file, file_format=given, row_format=RowFormat(row_format.value) if row_format else None)
    held_out = open_dataset(eval_file) if eval_file else None
    size = file.stat().st_size
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(f"checking {file.name}", total=size)
        report = check(
            opened,
            tell,
            policy,
            evaluation=held_out,
            progress=lambda count: progress.advance(task, count),
            processes=2 if size > _LARGE_BYTES and (os.cpu_count() or 1) > 1 else 1,
            on_rows=counter.count if counter else None,
        )
    return report, time.monotonic() - began


@contextmanager
def _readable(file: Path) -> Generator[None]:
    try:
        from dataset_checks.parquet_rows import MissingLibraryError
        from dataset_checks.rendering import UnusableModelError
    except ImportError as error:
        raise InputError("checking datasets needs numpy, which is not installed; install headway[data]") from error
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"{file}: is not a regular file; expected JSON lines, CSV or Parquet")
        yield
    except OSError as error:
        raise InputError(f"{error.filename or file}: cannot be read: {error.strerror or error}") from error
    except (MissingLibraryError, UnusableModelError) as error:
        raise InputError(str(error)) from error


def refuse_faulty(file: Path, quiet: bool) -> Report:
    """Validates a file that is to be sent; warnings are counted, errors are told. What it holds.

    Raises:
        InputError: the file has errors, or cannot be read.
    """
    from headway_client.cli.output import print_notice

    table = _Table(5)
    with _readable(file):
        from dataset_checks.validation import Policy

        report, _ = check_file(file, table.tell, Policy(), quiet=quiet)
    if report.errors:
        first = "\n".join(table.lines_of_errors())
        raise InputError(
            f"{file}: has {_count(report.errors, 'error')}; expected none\n{first}\n"
            f"`headway dataset validate {file}` shows all; --unchecked sends it as it is"
        )
    if report.warnings and not quiet:
        print_notice(f"{_count(report.warnings, 'warning')}; `headway dataset validate {file}` shows them")
    return report


def _counter(folder: Path, max_tokens: int, assistant_only: bool, policy: Policy) -> tuple[TokenCounter, Policy]:
    from dataclasses import replace

    from dataset_checks.rendering import TokenCounter, control_tokens_of, load_tokenizer

    tokenizer = load_tokenizer(folder)
    counter = TokenCounter(tokenizer, max_tokens, assistant_only)
    return counter, replace(policy, control_tokens=control_tokens_of(tokenizer))


class _Lines:
    """A line of JSON for each fault."""

    def tell(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            print_json({"fault": fault.as_dict()})

    def end(self, file: Path, report: Report, seconds: float, counter: TokenCounter | None) -> None:
        content: dict[str, object] = {
            "file": str(file),
            "file_format": report.file_format.value,
            "format": report.row_format.value if report.row_format else None,
            "bytes": report.bytes,
            "rows": report.rows,
            "faulty_rows": report.faulty_rows,
            "errors": report.errors,
            "warnings": report.warnings,
            "counts": {code.value: count for code, count in sorted(report.counts.items())},
            "near_duplicates_looked_for_in_rows": report.near_duplicates_in,
            "seconds": round(seconds, 3),
        }
        if counter is not None:
            content["tokens"] = counter.as_dict()
        print_json({"report": content})


class _Table:
    """A line for each fault, then a summary with a hint for each code."""

    def __init__(self, shown: int | None) -> None:
        self._shown = shown
        self._told = Counter[str]()
        self._first: list[Fault] = []
        self._printing = shown is None or shown >= _SHOWN

    def tell(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            self._told[fault.code] += 1
            if self._shown is not None and self._told[fault.code] > self._shown:
                continue
            if self._printing:
                if self._told.total() == 1:
                    print(f"{'LINE':>9}  {'LEVEL':7}  {'CODE':24} {'WHERE':24} WHAT")
                print(_row(fault))
            else:
                self._first.append(fault)

    def lines_of_errors(self) -> list[str]:
        """The first errors, each on a line."""
        return [_row(fault) for fault in self._first if fault.code.severity == "error"][:10]

    def end(self, file: Path, report: Report, seconds: float, counter: TokenCounter | None) -> None:
        from headway_client.text import size

        if report.counts:
            print()
            width = max(len(code) for code in report.counts)
            for code, count in sorted(report.counts.items(), key=lambda item: (item[0].severity, -item[1])):
                hidden = self._shown is not None and count > self._shown
                more = f"; {count - (self._shown or 0):,} more with --all" if hidden else ""
                print(f"{count:>9,}  {code.severity.value:7}  {code.value:{width}}  {code.hint}{more}")
            print()
        kind = report.row_format.value.replace("_", " ") if report.row_format else "no known format"
        speed = f", {report.rows / seconds:,.0f} rows/s" if seconds > 1 else ""
        print(f"{file.name}: {report.file_format.value}, {kind}; {report.rows:,} rows, {size(report.bytes)}{speed}")
        if counter is not None:
            print(counter.summary())
        if report.near_duplicates_in < report.rows - report.faulty_rows and report.near_duplicates_in:
            print(f"near duplicates were looked for in the first {report.near_duplicates_in:,} rows")
        if report.errors:
            faulty = f" in {_count(report.faulty_rows, 'row')}" if report.faulty_rows else ""
            print(f"{_count(report.errors, 'error')}{faulty}, {_count(report.warnings, 'warning')}: it cannot be trained on")
        else:
            print(f"no errors, {_count(report.warnings, 'warning')}: it can be trained on")


def _row(fault: Fault) -> str:
    from headway_client.text import one_line

    line = str(fault.line) if fault.line else "file"
    where = one_line(fault.pointer) or "-"
    return f"{line:>9}  {fault.code.severity.value:7}  {fault.code.value:24} {where:24} {one_line(fault.message)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
