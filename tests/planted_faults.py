"""Datasets of sound rows with faults planted among them, and where each must be found. For the tests and `dataset_validate`."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dataset_checks.faults import Code
from dataset_checks.formats import RowFormat

Found = tuple[int, str, Code]
"""Line, pointer, code."""
Row = dict[str, Any]
_WORDS = ["".join(random.Random(number).choices("abcdefghiklmnoprstuvwz", k=3 + number % 7)) for number in range(4_000)]
_LONG = 1024 * 1024


def words(rng: random.Random, least: int = 15, most: int = 60) -> str:
    """A text that no other is like."""
    text = " ".join(rng.choices(_WORDS, k=rng.randint(least, most)))
    return (
        text[0].upper()
        + text[1:]
        + rng.choice((".", "?", "!", " \u2013 ok", " \u201cnaïve\u201d 東京", ' "quoted", so', "\nnext\tline"))
    )


def chat(rng: random.Random) -> list[Row]:
    """A sound conversation."""
    messages: list[Row] = [{"role": "system", "content": words(rng)}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        messages += [{"role": "user", "content": words(rng)}, {"role": "assistant", "content": words(rng)}]
    return messages


def sound_row(row_format: RowFormat, rng: random.Random) -> Row:
    """A row without fault."""
    prompt, completion = words(rng), words(rng)
    return {
        RowFormat.TEXT: lambda: {"text": prompt},
        RowFormat.PROMPT_COMPLETION: lambda: {"prompt": prompt, "completion": completion},
        RowFormat.CHAT: lambda: {"messages": chat(rng)},
        RowFormat.PREFERENCE: lambda: {"prompt": prompt, "chosen": completion, "rejected": words(rng)},
        RowFormat.UNPAIRED_PREFERENCE: lambda: {"prompt": prompt, "completion": completion, "label": rng.random() < 0.5},
        RowFormat.PROMPT_ONLY: lambda: {"prompt": prompt, "solution": rng.randint(0, 99)},
    }[row_format]()


def dumps(row: object, rng: random.Random) -> bytes:
    """The row as JSON, escaped or not, close together or not."""
    separators = rng.choice((None, (",", ":")))
    return json.dumps(row, ensure_ascii=rng.random() < 0.5, separators=separators).encode("utf-8", "surrogatepass")


Planter = Callable[[random.Random], tuple[bytes, list[tuple[str, Code]]]]
"""A line, and what is wrong with it."""


def _line(line: bytes, *found: tuple[str, Code]) -> Planter:
    return lambda _rng: (line, list(found))


def _changed(row_format: RowFormat, change: Callable[[Row, random.Random], Row | None], *found: tuple[str, Code]) -> Planter:
    def plant(rng: random.Random) -> tuple[bytes, list[tuple[str, Code]]]:
        row = sound_row(row_format, rng)
        return json.dumps(change(row, rng) or row).encode(), list(found)

    return plant


def _with(name: str, value: Any) -> Callable[[Row, random.Random], Row | None]:
    def change(row: Row, _rng: random.Random) -> None:
        row[name] = value

    return change


def _inside(name: str, what: str) -> Callable[[Row, random.Random], Row | None]:
    def change(row: Row, _rng: random.Random) -> None:
        middle = len(row[name]) // 2
        row[name] = row[name][:middle] + what + row[name][middle:]

    return change


def _without(name: str) -> Callable[[Row, random.Random], Row | None]:
    def change(row: Row, _rng: random.Random) -> None:
        del row[name]

    return change


def _turns(*roles: str, **more: Any) -> Callable[[Row, random.Random], Row | None]:
    def change(row: Row, rng: random.Random) -> None:
        row["messages"] = [{"role": role, "content": words(rng), **more} for role in roles]

    return change


def _message(field: str, value: Any) -> Callable[[Row, random.Random], Row | None]:
    def change(row: Row, rng: random.Random) -> None:
        row["messages"] = [{"role": "user", "content": words(rng)}, {"role": "assistant", "content": words(rng)}]
        row["messages"][1][field] = value

    return change


_PC, _CHAT, _PREF = RowFormat.PROMPT_COMPLETION, RowFormat.CHAT, RowFormat.PREFERENCE
_A, _B = b'{"prompt": "a", "completion": ', b'"prompt": "a", "completion": "b"'

ANY_FORMAT: list[Planter] = [
    _line(b"not json", ("", Code.INVALID_JSON)),
    _line(_A + b'"b"', ("", Code.INVALID_JSON)),
    _line(_A + b'"b"} {}', ("", Code.INVALID_JSON)),
    _line(_A + b"'b'}", ("", Code.INVALID_JSON)),
    _line(b"{" + _B + b",}", ("", Code.INVALID_JSON)),
    _line(_A + b'"b\x01"}', ("", Code.INVALID_JSON)),
    _line(b"\xef\xbb\xbf{" + _B + b"}", ("", Code.INVALID_JSON)),
    _line(_A + b'"\xff"}', ("", Code.INVALID_UTF8)),
    _line(_A + b'"\xed\xa0\x80"}', ("", Code.INVALID_UTF8)),
    _line(_A + b'"caf\xe9"}', ("", Code.INVALID_UTF8)),
    _line(_A + b'"' + b"b" * _LONG + b'"}', ("", Code.LINE_TOO_LONG)),
    _line(_A + b'"' + b"b" * 5 * _LONG + b'"}', ("", Code.LINE_TOO_LONG)),
    _line(b"[" * 100_000, ("", Code.NESTED_TOO_DEEPLY)),
    _line(_A + b'{"a":' * 200 + b"1" + b"}" * 201, ("", Code.NESTED_TOO_DEEPLY)),
    _line(b"[]", ("", Code.NOT_AN_OBJECT)),
    _line(b"null", ("", Code.NOT_AN_OBJECT)),
    _line(b'"text"', ("", Code.NOT_AN_OBJECT)),
    _line(b"17", ("", Code.NOT_AN_OBJECT)),
    _line(b"{" + _B + b"}\r{" + _B + b"}", ("", Code.CARRIAGE_RETURN_ENDS)),
]  # fmt: skip
IN_FORMAT: Mapping[RowFormat, list[Planter]] = {
    _PC: [
        _line(b'{"prompt": "a", ' + _B + b"}", ("/prompt", Code.DUPLICATE_FIELD)),
        _line(_A + b"NaN}", ("/completion", Code.NOT_A_NUMBER)),
        _line(_A + b"-Infinity}", ("/completion", Code.NOT_A_NUMBER)),
        _line(_A + b"9" * 5_000 + b"}", ("/completion", Code.NUMBER_TOO_LARGE)),
        _line(_A + b"1e999}", ("/completion", Code.NUMBER_TOO_LARGE)),
        _line(b"{}", ("/prompt", Code.MISSING_FIELD), ("/completion", Code.MISSING_FIELD)),
        _changed(_PC, _without("completion"), ("/completion", Code.MISSING_FIELD)),
        _changed(_PC, _with("weight", 2), ("/weight", Code.UNKNOWN_FIELD)),
        _changed(_PC, _with("a/b~c", 2), ("/a~1b~0c", Code.UNKNOWN_FIELD)),
        _line(b'{"Prompt": "a", "completion": "b"}', ("/Prompt", Code.UNKNOWN_FIELD), ("/prompt", Code.MISSING_FIELD)),
        _changed(_PC, lambda row, rng: {"messages": chat(rng)}, ("", Code.MIXED_FORMATS)),
        _changed(_PC, lambda row, rng: {"text": words(rng)}, ("", Code.MIXED_FORMATS)),
        _changed(_PC, _with("label", True), ("", Code.MIXED_FORMATS)),
        _changed(_PC, _with("prompt", 7), ("/prompt", Code.WRONG_TYPE)),
        _changed(_PC, _with("completion", ["a"]), ("/completion", Code.WRONG_TYPE)),
        _changed(_PC, _with("completion", False), ("/completion", Code.WRONG_TYPE)),
        _changed(_PC, _with("completion", None), ("/completion", Code.NULL_VALUE)),
        _changed(_PC, _with("completion", ""), ("/completion", Code.EMPTY_TEXT)),
        _changed(_PC, _with("prompt", " \n\u3000\t"), ("/prompt", Code.EMPTY_TEXT)),
        _changed(_PC, _with("completion", "\u200b\u2060 \ufeff"), ("/completion", Code.INVISIBLE_TEXT)),
        _changed(_PC, _inside("prompt", "\x00"), ("/prompt", Code.NULL_CHARACTER)),
        _changed(_PC, _inside("completion", "\x1b[31m"), ("/completion", Code.CONTROL_CHARACTER)),
        _changed(_PC, _inside("completion", "\ud83d"), ("/completion", Code.INVALID_UNICODE)),
        _changed(_PC, _inside("completion", "\ufffd"), ("/completion", Code.REPLACEMENT_CHARACTER)),
        _changed(_PC, _inside("prompt", "<|im_end|>"), ("/prompt", Code.CONTROL_SEQUENCE)),
        _changed(_PC, _inside("completion", "[/INST]"), ("/completion", Code.CONTROL_SEQUENCE)),
    ],
    _CHAT: [
        _changed(_CHAT, _with("messages", []), ("/messages", Code.NO_MESSAGES)),
        _changed(_CHAT, _with("messages", None), ("/messages", Code.NULL_VALUE)),
        _changed(_CHAT, _with("messages", "Hello"), ("/messages", Code.WRONG_TYPE)),
        _changed(_CHAT, _with("messages", ["Hello"]), ("/messages/0", Code.WRONG_TYPE)),
        _changed(_CHAT, _turns("user", "asistant"), ("/messages/1/role", Code.UNKNOWN_ROLE)),
        _changed(_CHAT, _turns("User", "assistant"), ("/messages/0/role", Code.UNKNOWN_ROLE)),
        _changed(_CHAT, _turns("human", "gpt"), ("/messages/0/role", Code.UNKNOWN_ROLE), ("/messages/1/role", Code.UNKNOWN_ROLE)),
        _changed(_CHAT, _turns("user", "system", "assistant"), ("/messages/1", Code.SYSTEM_NOT_FIRST)),
        _changed(_CHAT, _turns("assistant", "user", "assistant"), ("/messages/0", Code.FIRST_TURN_NOT_USER)),
        _changed(_CHAT, _turns("user", "user", "assistant"), ("/messages/1", Code.REPEATED_ROLE)),
        _changed(_CHAT, _turns("user", "assistant", "assistant"), ("/messages/2", Code.REPEATED_ROLE)),
        _changed(_CHAT, _turns("user"), ("/messages", Code.NO_ASSISTANT_TURN)),
        _changed(_CHAT, _turns("system"), ("/messages", Code.NO_ASSISTANT_TURN)),
        _changed(_CHAT, _turns("user", "assistant", "user"), ("/messages/2", Code.LAST_TURN_NOT_ASSISTANT)),
        _changed(_CHAT, _turns("user", "assistant", weight=0), ("/messages", Code.ALL_TURNS_MASKED)),
        _changed(_CHAT, _turns("user", "assistant", name="x"), ("/messages/0/name", Code.UNKNOWN_FIELD), ("/messages/1/name", Code.UNKNOWN_FIELD)),
        _changed(_CHAT, _message("content", None), ("/messages/1/content", Code.NULL_VALUE)),
        _changed(_CHAT, _message("content", " "), ("/messages/1/content", Code.EMPTY_TEXT)),
        _changed(_CHAT, _message("content", [{"type": "text"}]), ("/messages/1/content", Code.WRONG_TYPE)),
        _changed(_CHAT, _message("role", None), ("/messages/1/role", Code.NULL_VALUE)),
        _changed(_CHAT, _message("weight", 0.5), ("/messages/1/weight", Code.WRONG_TYPE)),
        _line(b'{"messages": [{"role": "user", "role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
              ("/messages/0/role", Code.DUPLICATE_FIELD)),
        _line(b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": Infinity}]}',
              ("/messages/1/content", Code.NOT_A_NUMBER)),
        _changed(_CHAT, lambda row, rng: {"prompt": words(rng), "completion": words(rng)}, ("", Code.MIXED_FORMATS)),
    ],
    _PREF: [
        _changed(_PREF, lambda row, rng: {**row, "rejected": row["chosen"]}, ("/rejected", Code.CHOSEN_EQUALS_REJECTED)),
        _changed(_PREF, _with("rejected", None), ("/rejected", Code.NULL_VALUE)),
        _changed(_PREF, _with("chosen", ""), ("/chosen", Code.EMPTY_TEXT)),
        _changed(_PREF, _without("rejected"), ("/rejected", Code.MISSING_FIELD)),
        _changed(_PREF, _without("prompt"), ("/prompt", Code.MIXED_COLUMNS)),
    ],
    RowFormat.UNPAIRED_PREFERENCE: [
        *(_changed(RowFormat.UNPAIRED_PREFERENCE, _with("label", value), ("/label", Code.LABEL_NOT_BOOLEAN))
          for value in ("true", 1, 0.5, None, [True])),
        _line(b'{"prompt": "a", "completion": "b", "label": NaN}', ("/label", Code.NOT_A_NUMBER)),
        _changed(RowFormat.UNPAIRED_PREFERENCE, _without("label"), ("/label", Code.MISSING_FIELD)),
    ],
    RowFormat.PROMPT_ONLY: [
        _changed(RowFormat.PROMPT_ONLY, _with("prompt", None), ("/prompt", Code.NULL_VALUE)),
        _changed(RowFormat.PROMPT_ONLY, _without("solution"), ("/solution", Code.MIXED_COLUMNS)),
        _changed(RowFormat.PROMPT_ONLY, _with("hint", "x"), ("/hint", Code.MIXED_COLUMNS)),
        _line(b'{"prompt": "a", "solution": 1e400}', ("/solution", Code.NUMBER_TOO_LARGE)),
    ],
    RowFormat.TEXT: [
        _changed(RowFormat.TEXT, _with("text", None), ("/text", Code.NULL_VALUE)),
        _changed(RowFormat.TEXT, _with("text", "\n"), ("/text", Code.EMPTY_TEXT)),
        _changed(RowFormat.TEXT, _inside("text", "<|endoftext|>"), ("/text", Code.CONTROL_SEQUENCE)),
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Planted:
    """A file and all that is wrong with it."""

    name: str
    data: bytes
    expected: frozenset[Found]
    rows: int


def campaign(row_format: RowFormat, sound_rows: int, seed: int) -> Planted:
    """JSON lines of one format with every fault of a line or row that it may have, each once, at random places."""
    rng = random.Random(seed)
    sound = [sound_row(row_format, rng) for _ in range(sound_rows)]
    lines: list[tuple[bytes, list[tuple[str, Code]]]] = [(dumps(row, rng), []) for row in sound]
    planters = [*ANY_FORMAT, *IN_FORMAT[row_format]]
    for planter in planters:
        # Behind the beginning, by which the format is told.
        lines.insert(rng.randint(120, len(lines)), planter(rng))
    again = rng.choice(sound)
    lines.append((dumps(again, rng), [("", Code.DUPLICATE_ROW)]))
    if row_format in (RowFormat.TEXT, RowFormat.PROMPT_COMPLETION):
        name = "text" if row_format is RowFormat.TEXT else "completion"
        whole = " ".join(rng.choices(_WORDS, k=200))
        lines.insert(0, (dumps({**sound[0], name: whole}, rng), []))
        lines.append((dumps({**sound[0], name: whole + " furthermore"}, rng), [("", Code.NEAR_DUPLICATE_ROW)]))
    if row_format is RowFormat.PREFERENCE:
        swapped = {**sound[1], "chosen": sound[1]["rejected"], "rejected": sound[1]["chosen"]}
        lines.append((dumps(swapped, rng), [("", Code.CONTRADICTING_ROW)]))
    if row_format is RowFormat.UNPAIRED_PREFERENCE:
        lines.append((dumps({**sound[1], "label": not sound[1]["label"]}, rng), [("", Code.CONTRADICTING_ROW)]))
    expected = {(number, *fault) for number, (_, faults) in enumerate(lines, 1) for fault in faults}
    data = b"".join(line + b"\n" for line, _ in lines)
    return Planted(f"{row_format.value}.jsonl", data, frozenset(expected), len(lines))


def csv_campaign(sound_rows: int, seed: int) -> Planted:
    """CSV of prompts and completions with every fault that it may have, each once, at random places."""
    rng = random.Random(seed)
    planted: list[tuple[bytes, list[tuple[str, Code]]]] = [
        (b"only one\r\n", [("", Code.RAGGED_ROW)]),
        (b"one,two,three\r\n", [("", Code.RAGGED_ROW)]),
        (b'one,a "stray" quote\r\n', [("", Code.INVALID_CSV_QUOTES)]),
        (b'"never closed,b\r\n', [("", Code.INVALID_CSV_QUOTES)]),
        (b'"closed" too early,b\r\n', [("", Code.INVALID_CSV_QUOTES)]),
        (b'an odd " quote,b\r\n', [("", Code.INVALID_CSV_QUOTES)]),
        (b"caf\xe9,b\r\n", [("", Code.INVALID_UTF8)]),
        (b"a,\r\n", [("/completion", Code.EMPTY_TEXT)]),
        (b"a," + b"b" * _LONG + b"\r\n", [("", Code.LINE_TOO_LONG)]),
        (b"a,b<|im_start|>\r\n", [("/completion", Code.CONTROL_SEQUENCE)]),
    ]
    records: list[tuple[bytes, list[tuple[str, Code]]]] = []
    for _ in range(sound_rows):
        out = io.StringIO()
        csv.writer(out).writerow((words(rng), words(rng)))
        records.append((out.getvalue().encode(), []))
    for one in planted:
        records.insert(rng.randint(50, len(records)), one)
    data, line, expected = b"prompt,completion\r\n", 2, set[Found]()
    for record, faults in records:
        expected |= {(line, *fault) for fault in faults}
        data += record
        line += record.count(b"\n")
    return Planted("rows.csv", data, frozenset(expected), len(records))
