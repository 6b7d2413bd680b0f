"""Every fault of every row is found in one pass and named by line, JSON pointer and code; sound rows pass untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workers.runner.data.rows import MAX_LINE_BYTES, MAX_LISTED, Code, Row, Violations, read_dataset

GOOD = b'{"prompt": "What?", "completion": "That."}'


def _read(path: Path, *lines: bytes, end: bytes = b"\n") -> tuple[list[Row], Violations]:
    path.write_bytes(end.join(lines) + end)
    violations = Violations()
    return list(read_dataset(path, violations)), violations


FAULTS: dict[bytes, list[tuple[str, Code]]] = {
    b"not json": [("", Code.INVALID_JSON)],
    b'{"prompt": "a", "completion": "b"': [("", Code.INVALID_JSON)],
    b'{"prompt": "a", "completion": "b"} {}': [("", Code.INVALID_JSON)],
    b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}': [("", Code.INVALID_JSON)],
    b"[" * 100_000: [("", Code.INVALID_JSON)],
    b'{"prompt": ' + b"9" * 5_000 + b', "completion": "b"}': [("", Code.INVALID_JSON)],
    b'{"prompt": "a\nb"}'.replace(b"\n", b"\x01"): [("", Code.INVALID_JSON)],
    b'{"prompt": "\xff", "completion": "b"}': [("", Code.INVALID_UTF8)],
    b'{"prompt": "\xed\xa0\x80", "completion": "b"}': [("", Code.INVALID_UTF8)],
    b'{"prompt": "a", "completion": "' + b"b" * MAX_LINE_BYTES + b'"}': [("", Code.LINE_TOO_LONG)],
    b"[]": [("", Code.NOT_AN_OBJECT)],
    b"null": [("", Code.NOT_AN_OBJECT)],
    b'"text"': [("", Code.NOT_AN_OBJECT)],
    b"{}": [("/prompt", Code.MISSING_FIELD), ("/completion", Code.MISSING_FIELD)],
    b'{"prompt": "a"}': [("/completion", Code.MISSING_FIELD)],
    b'{"prompt": "a", "completion": "b", "weight": 2}': [("/weight", Code.UNKNOWN_FIELD)],
    b'{"prompt": "a", "completion": "b", "a/b~c": 2}': [("/a~1b~0c", Code.UNKNOWN_FIELD)],
    b'{"prompt": "a", "completion": "b", "\\ud800\\u0000": 2}': [("/?\N{REPLACEMENT CHARACTER}", Code.UNKNOWN_FIELD)],
    b'{"Prompt": "a", "completion": "b"}': [("/Prompt", Code.UNKNOWN_FIELD), ("/prompt", Code.MISSING_FIELD)],
    b'{"prompt": "a", "prompt": "b", "completion": "c"}': [("/prompt", Code.DUPLICATE_FIELD)],
    b'{"prompt": null, "completion": "b"}': [("/prompt", Code.WRONG_TYPE)],
    b'{"prompt": "a", "completion": 7}': [("/completion", Code.WRONG_TYPE)],
    b'{"prompt": "a", "completion": true}': [("/completion", Code.WRONG_TYPE)],
    b'{"prompt": NaN, "completion": "b"}': [("/prompt", Code.WRONG_TYPE)],
    b'{"prompt": ["a"], "completion": {"b": 1}}': [("/prompt", Code.WRONG_TYPE), ("/completion", Code.WRONG_TYPE)],
    b'{"prompt": "", "completion": "b"}': [("/prompt", Code.EMPTY_TEXT)],
    b'{"prompt": "a", "completion": " \\n\\u3000"}': [("/completion", Code.EMPTY_TEXT)],
    b'{"prompt": "a\\u0000b", "completion": "b"}': [("/prompt", Code.NULL_CHARACTER)],
    b'{"prompt": "a", "completion": "\\ud83d"}': [("/completion", Code.INVALID_UNICODE)],
}


@pytest.mark.parametrize("line", FAULTS, ids=lambda line: line[:60].decode("latin-1"))
def test_each_fault_is_named_once_and_the_rows_around_it_pass(line: bytes, tmp_path: Path) -> None:
    rows, violations = _read(tmp_path / "d.jsonl", GOOD, line, GOOD)
    assert [(found.line, found.path, found.code) for found in violations.listed] == [
        (2, path, code.value) for path, code in FAULTS[line]
    ]
    assert [row.line for row in rows] == [1, 3]
    assert all("expected" in found.message for found in violations.listed)


def test_all_faults_of_a_file_are_found_in_one_pass(tmp_path: Path) -> None:
    _, violations = _read(tmp_path / "d.jsonl", *FAULTS)
    assert violations.count == sum(map(len, FAULTS.values()))
    assert {found.line for found in violations.listed} == set(range(1, len(FAULTS) + 1))
    assert "line 1: expected JSON" in violations.summary()


def test_at_most_a_thousand_faults_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    _, violations = _read(tmp_path / "d.jsonl", *[b"{}"] * 700)
    assert (len(violations.listed), violations.count) == (MAX_LISTED, 1400)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_sound_text_passes_unchanged(end: bytes, tmp_path: Path) -> None:
    text = 'line\n\ttab "quotes" \\ 🎉 ünïcode \u2028'
    lines = [json.dumps({"prompt": text, "completion": text}, ensure_ascii=escape).encode() for escape in (True, False)]
    rows, violations = _read(tmp_path / "d.jsonl", lines[0], b"", b"  ", lines[1], end=end)
    assert rows == [Row(1, text, text), Row(4, text, text)]
    assert violations.count == 0


def test_the_longest_line_allowed_passes_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    shell = len('{"prompt":"a","completion":""}')
    path.write_text('{"prompt":"a","completion":"' + "b" * (MAX_LINE_BYTES - shell) + '"}')
    violations = Violations()
    assert len(list(read_dataset(path, violations))) == 1
    assert violations.count == 0
