"""The formats of rows, and telling which of them a dataset has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class FileFormat(StrEnum):
    """How rows are written down."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class RowFormat(StrEnum):
    """What a row is made of."""

    TEXT = "text"
    """{"text"}: language modelling."""
    PROMPT_COMPLETION = "prompt_completion"
    """{"prompt", "completion"}, each a text or messages."""
    CHAT = "chat"
    """{"messages"}: [{"role", "content"}, …]."""
    PREFERENCE = "preference"
    """{"chosen", "rejected"}, with or without "prompt", each a text or messages."""
    UNPAIRED_PREFERENCE = "unpaired_preference"
    """{"prompt", "completion", "label"}; label says whether the completion is wanted."""
    PROMPT_ONLY = "prompt_only"
    """{"prompt"}, and any columns that reward functions read."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields of a format."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    open: bool = False
    """Whether further columns may stand beside them."""


COLUMNS: Mapping[RowFormat, Columns] = {
    RowFormat.TEXT: Columns(("text",)),
    RowFormat.PROMPT_COMPLETION: Columns(("prompt", "completion")),
    RowFormat.CHAT: Columns(("messages",)),
    RowFormat.PREFERENCE: Columns(("chosen", "rejected"), ("prompt",)),
    RowFormat.UNPAIRED_PREFERENCE: Columns(("prompt", "completion", "label")),
    RowFormat.PROMPT_ONLY: Columns(("prompt",), open=True),
}
_MOST_TELLING_FIRST = (
    RowFormat.UNPAIRED_PREFERENCE,
    RowFormat.PREFERENCE,
    RowFormat.PROMPT_COMPLETION,
    RowFormat.CHAT,
    RowFormat.TEXT,
    RowFormat.PROMPT_ONLY,
)


def format_of(names: Iterable[str]) -> RowFormat | None:
    """The format that a row with these fields has; None when it lacks fields of every format."""
    present = set(names)
    return next((row_format for row_format in _MOST_TELLING_FIRST if present.issuperset(COLUMNS[row_format].required)), None)


def exact_format_of(names: Iterable[str]) -> RowFormat | None:
    """The format whose fields are exactly these; None when a field is missing or unknown. PROMPT_ONLY: without more columns."""
    present = set(names)
    found = format_of(present)
    if found is None or present - set(COLUMNS[found].required) - set(COLUMNS[found].optional):
        return None
    return found


def detect(rows: Iterable[Mapping[str, object]]) -> RowFormat | None:
    """The format that most of `rows` have, which are the first of a file; None when none has any."""
    counts = Counter(found for row in rows if (found := format_of(row)) is not None)
    return counts.most_common(1)[0][0] if counts else None


def described(row_format: RowFormat) -> str:
    """The format in words."""
    columns = COLUMNS[row_format]
    text = " and ".join(
        (", ".join(columns.required[:-1]), columns.required[-1]) if len(columns.required) > 1 else columns.required
    )
    return f"{row_format.value.replace('_', ' ')} ({text})"
