"""What is kept of each row to find rows that belong together: 136 bytes, whatever its length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dataset_checks.faults import Code, Fault
from dataset_checks.formats import RowFormat
from dataset_checks.near_duplicates import U64, nearest_earlier, nearest_of, sketch

_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Of the sound rows of a file, or of a part of it, in their order."""

    lines: NDArray[np.int64]
    digests: NDArray[np.bytes_]
    """16 bytes each: equal for equal rows."""
    subjects: NDArray[np.bytes_]
    """16 bytes each: equal for rows that judge the same thing, the same way or not."""
    bands: U64
    signatures: NDArray[np.uint8]
    labels: frozenset[object]
    """Of unpaired preferences, those that occur."""

    @classmethod
    def of(cls, lines: Sequence[int], rows: Sequence[Mapping[str, Any]], row_format: RowFormat, near: bool) -> Fingerprints:
        """Of some rows; without what near duplicates are found by, unless `near`."""
        texts = [content(row).encode("utf-8", "surrogatepass") for row in rows]
        digests = b"".join([hashlib.blake2b(text, digest_size=16).digest() for text in texts])
        subject = _SUBJECTS.get(row_format)
        subjects = b"".join(_digest(subject(row)) for row in rows) if subject else b""
        bands, signatures = sketch(_said(rows, texts) if near else [])
        labels = frozenset(row["label"] for row in rows) if row_format is RowFormat.UNPAIRED_PREFERENCE else frozenset[object]()
        return cls(
            np.array(lines, np.int64), np.frombuffer(digests, "S16"), np.frombuffer(subjects, "S16"), bands, signatures, labels
        )

    @classmethod
    def joined(cls, parts: Sequence[Fingerprints]) -> Fingerprints:
        """Those of several parts, which are in order."""
        return cls(
            np.concatenate([part.lines for part in parts]),
            np.concatenate([part.digests for part in parts]),
            np.concatenate([part.subjects for part in parts]),
            np.concatenate([part.bands for part in parts]),
            np.concatenate([part.signatures for part in parts]),
            frozenset[object]().union(*(part.labels for part in parts)),
        )

    def moved(self, lines: int) -> Fingerprints:
        """With `lines` lines before them."""
        return replace(self, lines=self.lines + lines)

    def without_sketches(self) -> Fingerprints:
        """Without what near duplicates are found by."""
        return replace(self, bands=self.bands[:0], signatures=self.signatures[:0])


def content(row: Mapping[str, Any]) -> str:
    """All texts of a row, so that only equal rows have equal contents."""
    return _SEPARATOR.join([_text_of(row[name]) for name in (row if len(row) == 1 else sorted(row))])


def _said(rows: Sequence[Mapping[str, Any]], texts: Sequence[bytes]) -> Sequence[bytes]:
    """What rows say: of messages their contents, since roles are in all of them."""
    if not rows or not any(isinstance(value, list) for value in rows[0].values()):
        return texts
    return [_SEPARATOR.join(_contents(row)).encode("utf-8", "surrogatepass") for row in rows]


def _contents(row: Mapping[str, Any]) -> Iterator[str]:
    for value in row.values():
        for part in cast("list[Any]", value) if isinstance(value, list) else (value,):
            text = cast("dict[str, Any]", part).get("content") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def _text_of(value: object) -> str:
    if type(value) is str:
        return value
    if isinstance(value, list):
        parts = cast("list[Any]", value)
        return "\x1e".join([_text_of(part) for part in parts])
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if fields.keys() == {"role", "content"}:
            return f"{fields['role']} {_text_of(fields['content'])}"
        return "\x1d".join([f"{name} {_text_of(fields[name])}" for name in sorted(fields)])
    return repr(value)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _pair(row: Mapping[str, Any]) -> str:
    answers = sorted((_text_of(row["chosen"]), _text_of(row["rejected"])))
    return _SEPARATOR.join((_text_of(row.get("prompt", "")), *answers))


def _answer(row: Mapping[str, Any]) -> str:
    return _SEPARATOR.join((_text_of(row["prompt"]), _text_of(row["completion"])))


_SUBJECTS = {
    RowFormat.PREFERENCE: _pair,
    RowFormat.UNPAIRED_PREFERENCE: _answer,
}


def compare(rows: Fingerprints, evaluation: Fingerprints | None) -> Iterator[Fault]:
    """What is wrong with rows together: repeated, nearly repeated, contradicting, or in the evaluation's file too."""
    _, first, which = np.unique(rows.digests, return_index=True, return_inverse=True)
    earliest = first[which]
    repeated = earliest != np.arange(len(earliest))
    for index in np.flatnonzero(repeated):
        line = int(rows.lines[earliest[index]])
        yield Fault(
            int(rows.lines[index]), "", Code.DUPLICATE_ROW, f"the row is the same as that of line {line}; expected it once"
        )
    kept = np.flatnonzero(~repeated)
    if len(rows.subjects):
        _, first, which = np.unique(rows.subjects[kept], return_index=True, return_inverse=True)
        for index in np.flatnonzero(first[which] != np.arange(len(kept))):
            line = int(rows.lines[kept[first[which[index]]]])
            message = f"the row says the opposite of line {line}; expected one verdict"
            yield Fault(int(rows.lines[kept[index]]), "", Code.CONTRADICTING_ROW, message)
    elif len(rows.bands):
        # Only the first rows have sketches where there are very many.
        kept = kept[kept < len(rows.bands)]
        for index, (other, share) in sorted(nearest_earlier(rows.bands[kept], rows.signatures[kept]).items()):
            message = f"about {share:.0%} of the row is in line {int(rows.lines[kept[other]])} too; expected rows that differ"
            yield Fault(int(rows.lines[kept[index]]), "", Code.NEAR_DUPLICATE_ROW, message)
    if evaluation is not None:
        yield from _overlap(rows, evaluation)


def _overlap(rows: Fingerprints, evaluation: Fingerprints) -> Iterator[Fault]:
    held_out = dict(zip(evaluation.digests.tolist(), evaluation.lines.tolist(), strict=True))
    same: set[int] = set()
    for index, digest in enumerate(rows.digests.tolist()):
        if (line := held_out.get(digest)) is not None:
            same.add(index)
            message = f"the row is line {line} of the evaluation's file too; expected none of that here"
            yield Fault(int(rows.lines[index]), "", Code.EVAL_OVERLAP, message)
    if len(rows.bands) and len(evaluation.bands):
        near = nearest_of(evaluation.bands, evaluation.signatures, rows.bands, rows.signatures)
        for index, (other, share) in sorted(near.items()):
            if index not in same:
                line = int(evaluation.lines[other])
                message = f"about {share:.0%} of the row is in line {line} of the evaluation's file; expected rows that differ"
                yield Fault(int(rows.lines[index]), "", Code.EVAL_NEAR_OVERLAP, message)
