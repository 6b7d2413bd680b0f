"""Faults of whole files, of rows together, and of what a policy asks for."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_checks.faults import DEFAULT_LIMITS, Code, Fault, Limits
from dataset_checks.formats import FileFormat, RowFormat
from dataset_checks.reading import open_dataset
from dataset_checks.validation import Policy, validate
from tests.planted_faults import campaign, csv_campaign, sound_row
from tests.planted_files import FILES, JSONL, ROWS, parquet

Places = list[tuple[int, str, Code]]


def _check(path: Path, data: bytes, policy: Policy = Policy(), **given: Any) -> list[Fault]:  # noqa: B008 - it is frozen
    path.write_bytes(data)
    found: list[Fault] = []
    validate(open_dataset(path, limits=policy.limits, **given), found.extend, policy)
    return found


def _codes(found: list[Fault]) -> Places:
    return [(fault.line, fault.pointer, fault.code) for fault in found]


@pytest.mark.parametrize("name", FILES)
def test_faults_of_files(name: str, tmp_path: Path) -> None:
    data, expected = FILES[name]
    assert _codes(_check(tmp_path / name, data)) == expected


def test_texts_in_parquet_that_are_no_utf8_are_named_by_row(tmp_path: Path) -> None:
    texts = [f"Row {number} caf\u00e9".encode() for number in range(20)]
    texts[7] = b"Row 7 caf\xe9"
    column = pa.Array.from_buffers(pa.string(), 20, pa.array(texts, pa.binary()).buffers())
    out = io.BytesIO()
    pq.write_table(pa.table({"text": column}), out)
    assert _codes(_check(tmp_path / "d.parquet", out.getvalue())) == [(8, "", Code.INVALID_UTF8)]


def test_messages_in_parquet_may_have_weights_here_and_there(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]
    assert (
        _check(tmp_path / "d.parquet", parquet([{"messages": turns}, {"messages": [{**turns[0], "content": "c"}, *turns[1:]]}]))
        == []
    )


def test_wide_and_large_parquet_is_refused_by_its_footer(tmp_path: Path) -> None:
    wide = parquet([{f"c{number}": 1 for number in range(100)}])
    assert _codes(_check(tmp_path / "wide.parquet", wide)) == [(0, "", Code.TOO_MANY_COLUMNS)]
    bomb = parquet([{"text": "a" * 4_000_000}])
    assert len(bomb) < 400_000
    policy = Policy(limits=Limits(row_group_bytes=100_000))
    assert _codes(_check(tmp_path / "bomb.parquet", bomb, policy)) == [(0, "", Code.ROW_GROUP_TOO_LARGE)]


def test_rows_of_the_evaluations_file_are_named(tmp_path: Path) -> None:
    held_out = tmp_path / "eval.jsonl"
    long = {"prompt": "Tell me", "completion": " ".join(f"word{number}" for number in range(100))}
    held_out.write_text(json.dumps(ROWS[3]) + "\n" + json.dumps(long) + "\n")
    train = tmp_path / "train.jsonl"
    train.write_bytes(JSONL + json.dumps({**long, "completion": long["completion"] + " more"}).encode())
    found: list[Fault] = []
    validate(open_dataset(train), found.extend, evaluation=open_dataset(held_out))
    assert _codes(found) == [(4, "", Code.EVAL_OVERLAP), (31, "", Code.EVAL_NEAR_OVERLAP)]
    assert "line 1 of" in found[0].message
    assert "line 2 of" in found[1].message


SENSITIVE = {
    "AKIAIOSFODNN7EXAMPLE is it": Code.SECRET,
    "-----BEGIN RSA PRIVATE KEY-----": Code.SECRET,
    "ghp_" + "a1B2" * 9: Code.SECRET,
    "write to ann.lee@mail-host.org today": Code.PERSONAL_DATA,
    "call +44 20 7946 0958 now": Code.PERSONAL_DATA,
    "pay with 4111 1111 1111 1111 please": Code.PERSONAL_DATA,
    "number 078-05-1120 is mine": Code.PERSONAL_DATA,
    "to GB82 WEST 1234 5698 7654 32 at once": Code.PERSONAL_DATA,
    "somebody@example.com and 1234 5678 9012 3456 and 1.2.3.4 and 2026-11-24 and 3+4": None,
}


@pytest.mark.parametrize("text", SENSITIVE)
def test_secrets_and_personal_data_are_found_when_asked_for(text: str, tmp_path: Path) -> None:
    data = JSONL + json.dumps({"prompt": "Well?", "completion": text}).encode()
    code = SENSITIVE[text]
    expected = [(31, "/completion", code)] if code else []
    found = _check(tmp_path / "d.jsonl", data, Policy(sensitive=True))
    assert _codes(found) == expected
    assert not any(text in fault.message for fault in found)
    assert _check(tmp_path / "d.jsonl", data) == []


@pytest.mark.parametrize("row_format", RowFormat)
def test_formats_are_told_apart_in_every_file_format(row_format: RowFormat, tmp_path: Path) -> None:
    rows = [sound_row(row_format, random.Random(seed)) for seed in range(20)]
    (tmp_path / "d").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    (tmp_path / "p").write_bytes(parquet(rows))
    for name, file_format in (("d", FileFormat.JSONL), ("p", FileFormat.PARQUET)):
        opened = open_dataset(tmp_path / name)
        found: list[Fault] = []
        report = validate(opened, found.extend)
        assert (opened.file_format, report.row_format, found, report.rows) == (file_format, row_format, [], 20)


def test_memory_does_not_grow_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        file.seek(300 * DEFAULT_LIMITS.line_bytes)
        file.write(b'"}\n{"text": "a"}\n')
    # Its zeros would make it binary.
    found: list[Fault] = []
    validate(open_dataset(path), found.extend)
    assert _codes(found) == [(0, "", Code.BINARY_FILE)]


NEEDS_A_BASE_MODEL = {
    Code.NO_CHAT_TEMPLATE, Code.NO_GENERATION_MARKERS, Code.TEMPLATE_REFUSES_ROW, Code.NOTHING_TO_TRAIN, Code.TRUNCATED_ROW,
    # Of the split that `prepare` makes.
    Code.TOO_FEW_ROWS, Code.NOTHING_TO_EVALUATE,
}  # fmt: skip


def test_every_code_is_planted_somewhere() -> None:
    planted = {code for _, found in FILES.values() for _, _, code in found} | {code for code in SENSITIVE.values() if code}
    planted |= {code for row_format in RowFormat for _, _, code in campaign(row_format, 130, 0).expected}
    planted |= {code for _, _, code in csv_campaign(60, 0).expected}
    planted |= {Code.ROW_GROUP_TOO_LARGE, Code.EVAL_OVERLAP, Code.EVAL_NEAR_OVERLAP}
    assert set(Code) - planted - NEEDS_A_BASE_MODEL == set()
    assert len(Code) - len(NEEDS_A_BASE_MODEL) >= 40


def test_every_code_is_described() -> None:
    text = (Path(__file__).parents[3] / "docs/reference/dataset-faults.md").read_text(encoding="utf-8")
    described = {match[1]: (match[2], match[3]) for match in re.finditer(r"^\| `(\w+)` \| (\w+) \| .* \| (.*) \|$", text, re.M)}
    assert described == {code.value: (code.severity.value, code.hint.replace("|", "\\|")) for code in Code}
