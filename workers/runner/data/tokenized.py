"""Tokenised rows, as `prepare` writes and `train` and `evaluate` read them: JSONL, a row a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row: prompt tokens, which carry no loss, then target tokens, which do."""

    line: int
    """The row's line in the dataset, counted from 1."""
    tokens: Sequence[int]
    targets_from: int
    """Index of the first target token; at least 1, and less than the number of tokens."""

    @property
    def target_count(self) -> int:
        """Tokens that carry loss."""
        return len(self.tokens) - self.targets_from

    def to_json(self) -> str:
        """The row as a line, without its end."""
        fields = {"line": self.line, "targets_from": self.targets_from, "tokens": list(self.tokens)}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> TokenizedRow:
        """The row in a line that `to_json` wrote."""
        fields = json.loads(text)
        return cls(line=fields["line"], tokens=fields["tokens"], targets_from=fields["targets_from"])


def batches(rows: Sequence[TokenizedRow], size: int) -> Iterator[Sequence[TokenizedRow]]:
    """`rows` in runs of `size`; the last may be shorter."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def read_rows(path: Path) -> list[TokenizedRow]:
    """All rows of a tokenised file."""
    with path.open(encoding="ascii") as file:
        return [TokenizedRow.from_json(line) for line in file]
