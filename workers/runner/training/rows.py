"""Rows of prepared data, read from their file when they are dealt: a file may be larger than memory."""

from __future__ import annotations

import itertools
import json
import mmap
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, overload

from control_plane.jobs.states import FailureKind
from workers.runner.data.tokenized import TokenizedRow
from workers.runner.failures import RunnerError

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with the better and the worse of two answers, as token ids."""

    line: int
    """The row's line in the dataset, counted from 1."""
    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]

    def documents(self) -> tuple[TokenizedRow, TokenizedRow]:
        """Prompt and chosen answer, prompt and rejected answer; the answers are the targets."""
        return _document(self.line, self.prompt, self.chosen), _document(self.line, self.prompt, self.rejected)


@dataclass(frozen=True, slots=True)
class UnpairedRow:
    """A prompt with an answer that is desirable or not, as token ids."""

    line: int
    """The row's line in the dataset, counted from 1."""
    prompt: Sequence[int]
    completion: Sequence[int]
    label: bool
    """Whether the answer is desirable."""

    def document(self) -> TokenizedRow:
        """Prompt and answer; the answer is the target."""
        return _document(self.line, self.prompt, self.completion)


def _document(line: int, prompt: Sequence[int], answer: Sequence[int]) -> TokenizedRow:
    return TokenizedRow(line=line, tokens=[*prompt, *answer], targets_from=len(prompt))


class RowFile(Sequence[RowT], Generic[RowT]):
    """The rows of a JSONL file by number. In memory is where each ends; a row is read whenever it is asked for.

    Args:
        path: of the file; not to change while it is open.
        parse: makes a row of a line.

    Raises:
        RunnerError: INVALID_DATASET if there is no row. On access, if a row has no token to learn from or none before it: it
            would train nothing, so it is named instead.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], RowT]) -> None:
        self._parse = parse
        self._name = path.name
        if path.stat().st_size == 0:
            raise RunnerError(FailureKind.INVALID_DATASET, f"{path.name} has no rows; expected at least one to learn from")
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._ends = array("Q", itertools.accumulate(map(len, iter(self._bytes.readline, b""))))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> RowT: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[RowT]: ...

    def __getitem__(self, index: int | slice) -> RowT | Sequence[RowT]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        try:
            return self._parse(self._bytes[start : self._ends[index]])
        except (ValueError, KeyError, TypeError) as error:
            raise RunnerError(FailureKind.INVALID_DATASET, f"{self._name}: row {index + 1}: {error}") from error


def supervised_row(line: bytes) -> TokenizedRow:
    """The row in a line of tokenised data.

    Raises:
        ValueError, KeyError, TypeError: it is none, or has nothing to learn from.
    """
    return _checked(TokenizedRow.from_json(line.decode("ascii")))


def preference_row(line: bytes) -> PreferenceRow:
    """The row in a line `{"line", "prompt", "chosen", "rejected"}` of token ids.

    Raises:
        ValueError, KeyError, TypeError: it is none, or has nothing to learn from.
    """
    fields = json.loads(line)
    row = PreferenceRow(fields["line"], fields["prompt"], fields["chosen"], fields["rejected"])
    for document in row.documents():
        _checked(document)
    return row


def unpaired_row(line: bytes) -> UnpairedRow:
    """The row in a line `{"line", "prompt", "completion", "label"}` of token ids.

    Raises:
        ValueError, KeyError, TypeError: it is none, or has nothing to learn from.
    """
    fields = json.loads(line)
    if not isinstance(fields["label"], bool):
        raise TypeError(f"/label of line {fields['line']} of the dataset is {fields['label']!r}; expected true or false")
    row = UnpairedRow(fields["line"], fields["prompt"], fields["completion"], fields["label"])
    _checked(row.document())
    return row


def _checked(row: TokenizedRow) -> TokenizedRow:
    if row.target_count < 1 or row.targets_from < 1:
        raise ValueError(
            f"line {row.line} of the dataset has {row.target_count} tokens to learn from after {row.targets_from} of a prompt; "
            "expected at least one of each"
        )
    return row
