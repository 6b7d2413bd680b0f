"""What can be wrong with the fields of one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

from dataset_checks.faults import Code, Fault, pointer_to, type_name
from dataset_checks.formats import COLUMNS, RowFormat, described, detect, exact_format_of
from dataset_checks.messages import Part, check_messages
from dataset_checks.texts import TextChecker


@dataclass(frozen=True, slots=True)
class Layout:
    """What every row of a dataset has in common."""

    row_format: RowFormat
    columns: frozenset[str]
    """The fields that rows have."""
    conversational: bool
    """Whether prompts, completions and the like are messages, not texts."""


def layout_of(rows: Sequence[Mapping[str, Any]], row_format: RowFormat | None = None) -> Layout | None:
    """The layout that most of `rows`, the first of a file, have; None when they have that of no format.

    With `row_format` they are taken to be of that.
    """
    if row_format is None:
        row_format = detect(rows)
    if row_format is None:
        return None
    columns = COLUMNS[row_format]
    allowed = None if columns.open else frozenset((*columns.required, *columns.optional))
    whole = [row for row in rows if row.keys() >= set(columns.required)]
    sets = Counter(frozenset(row) if allowed is None else frozenset(allowed.intersection(row)) for row in whole)
    names = sets.most_common(1)[0][0] if sets else frozenset((*columns.required, *columns.optional))
    kinds = Counter(isinstance(row[columns.required[0]], list) for row in whole)
    conversational = row_format is not RowFormat.TEXT and (row_format is RowFormat.CHAT or kinds[True] > kinds[False])
    return Layout(row_format, names, conversational)


class RowChecker:
    """Checks rows against a layout."""

    def __init__(self, layout: Layout, texts: TextChecker) -> None:
        self._layout = layout
        self._texts = texts
        self._columns = COLUMNS[layout.row_format]
        with_prompt = "prompt" in layout.columns
        answer = Part.ANSWER if with_prompt else Part.WHOLE
        parts = {
            "text": Part.WHOLE,
            "messages": Part.WHOLE,
            "prompt": Part.PROMPT,
            "completion": Part.ANSWER,
            "chosen": answer,
            "rejected": answer,
        }
        names = [
            name for name in (*self._columns.required, *self._columns.optional) if name in parts and name in layout.columns
        ]
        self._contents = tuple((name, f"/{name}", parts[name]) for name in names)

    def check(self, line: int, row: dict[str, Any], found: list[Fault]) -> None:
        """Appends all that is wrong with `row`."""
        before = len(found)
        if row.keys() != self._layout.columns and not self._check_columns(line, row, found):
            return
        for name, pointer, part in self._contents:
            if name not in row:
                continue
            if self._layout.conversational:
                check_messages(line, pointer, row[name], part, self._texts, found)
            else:
                self._texts.check(line, pointer, row[name], found)
        if self._layout.row_format is RowFormat.UNPAIRED_PREFERENCE and type(row.get("label", True)) is not bool:
            label = row["label"]
            shown = type_name(label) if not isinstance(label, str | int | float) else repr(label)[:40]
            message = f"label is {shown}; expected true or false"
            found.append(Fault(line, "/label", Code.LABEL_NOT_BOOLEAN, message))
        if self._layout.row_format is RowFormat.PREFERENCE and len(found) == before:
            self._check_preference(line, row, found)

    def _check_columns(self, line: int, row: Mapping[str, Any], found: list[Fault]) -> bool:
        """Appends what is wrong with the fields' names; False when nothing more can be said of the row."""
        columns, expected = self._columns, described(self._layout.row_format)
        known = (*columns.required, *columns.optional)
        unknown = [] if columns.open else [name for name in row if name not in known]
        missing = [name for name in columns.required if name not in row]
        other = exact_format_of(row) if unknown or missing else None
        if other is not None and not set(COLUMNS[other].required) <= set(known):
            message = f"the row is {described(other)}, the others are {expected}; expected one format in a file"
            found.append(Fault(line, "", Code.MIXED_FORMATS, message))
            return False
        for name in unknown:
            meant = get_close_matches(name.strip().lower()[:40], [one for one in known if one not in row], n=1)
            guess = f"; did you mean {meant[0]}?" if meant else ""
            message = f"{name[:40]!r} is unknown; expected {expected}{guess}"
            found.append(Fault(line, pointer_to(name), Code.UNKNOWN_FIELD, message))
        for name in missing:
            found.append(Fault(line, pointer_to(name), Code.MISSING_FIELD, f"{name} is missing; expected {expected}"))
        if not unknown and not missing:
            for name in sorted(self._layout.columns ^ row.keys()):
                what = (
                    "is missing here and there in other rows"
                    if name in self._layout.columns
                    else "is here and not in other rows"
                )
                message = f"{name[:40]!r} {what}; expected the same columns in all"
                found.append(Fault(line, pointer_to(name), Code.MIXED_COLUMNS, message))
        return True

    def _check_preference(self, line: int, row: Mapping[str, Any], found: list[Fault]) -> None:
        chosen, rejected = row["chosen"], row["rejected"]
        if chosen == rejected:
            message = "rejected is the same as chosen; expected an answer that is worse"
            found.append(Fault(line, "/rejected", Code.CHOSEN_EQUALS_REJECTED, message))
            return
        if "prompt" in row:
            return
        if self._layout.conversational:
            shared = cast("list[Any]", chosen)[:-1] == cast("list[Any]", rejected)[:-1]
        else:
            shared = chosen[:1] == rejected[:1]
        if not shared:
            message = "chosen and rejected do not begin with the same prompt; expected answers to one prompt"
            found.append(Fault(line, "/rejected", Code.PROMPTS_DIFFER, message))
