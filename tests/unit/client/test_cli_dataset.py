"""`headway dataset validate` and what `dataset add` refuses: output, exit codes, and what is not installed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.client.command_line import headway

SOUND = [{"prompt": f"What is {number}?", "completion": f"A number: {number}."} for number in range(20)]
DEAD = ("-p", "p", "--address", "127.0.0.1:1")


def _file(folder: Path, *more: str) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in (*map(json.dumps, SOUND), *more)))
    return str(path)


async def test_a_sound_file_exits_with_0(tmp_path: Path) -> None:
    run = await headway("dataset", "validate", _file(tmp_path))
    assert (run.code, run.err) == (0, "")
    assert run.out == ("rows.jsonl: jsonl, prompt completion; 20 rows, 1.1 kB\nno errors, 0 warnings: it can be trained on\n")


async def test_every_fault_is_a_line_and_every_code_has_a_hint(tmp_path: Path) -> None:
    file = _file(tmp_path, "{", '{"prompt": "a", "completion": null}', '{"prompt": "\\u001b[31m", "completion": "b"}')
    run = await headway("dataset", "validate", file)
    assert (run.code, run.err) == (2, "")
    lines = run.out.splitlines()
    assert [line.split()[:4] for line in lines[:4]] == [
        ["LINE", "LEVEL", "CODE", "WHERE"],
        ["21", "error", "invalid_json", "-"],
        ["22", "error", "null_value", "/completion"],
        ["23", "warning", "control_character", "/prompt"],
    ]
    assert "1  error    null_value         give a text, or remove the row" in run.out
    assert lines[-1] == "2 errors in 2 rows, 1 warning: it cannot be trained on"


async def test_json_is_a_line_for_each_fault_and_one_for_the_report(tmp_path: Path) -> None:
    file = _file(tmp_path, "{", json.dumps(SOUND[3]))
    for option in (("--json",), ("--output", "json")):
        run = await headway("dataset", "validate", file, *option)
        assert run.code == 2
        first, second, last = run.documents()
        assert first["fault"]["line"] == 21
        assert first["fault"].keys() == {"line", "pointer", "code", "severity", "message", "hint"}
        assert (second["fault"]["code"], second["fault"]["severity"]) == ("duplicate_row", "warning")
        report = last["report"]
        assert (report["rows"], report["errors"], report["warnings"], report["faulty_rows"]) == (22, 1, 1, 1)
        assert report["counts"] == {"duplicate_row": 1, "invalid_json": 1}


async def test_overlap_with_another_file_and_a_format_that_is_given(tmp_path: Path) -> None:
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text(json.dumps(SOUND[7]) + "\n")
    run = await headway("dataset", "validate", _file(tmp_path), "--eval-file", str(held_out), "--json")
    assert run.code == 2
    assert [(one["fault"]["line"], one["fault"]["code"]) for one in run.documents()[:-1]] == [(8, "eval_overlap")]
    given = await headway("dataset", "validate", _file(tmp_path), "--format", "text")
    assert given.code == 2
    assert "mixed_formats" in given.out


async def test_of_many_faults_of_a_kind_the_first_are_printed_unless_all_are_wanted(tmp_path: Path) -> None:
    file = _file(tmp_path, *["{"] * 100)
    some = await headway("dataset", "validate", file)
    assert some.out.count("expected a JSON object") == 40
    assert "60 more with --all" in some.out
    every = await headway("dataset", "validate", file, "--all")
    assert every.out.count("expected a JSON object") == 100


async def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    missing = await headway("dataset", "validate", str(tmp_path / "nowhere"))
    assert (missing.code, missing.err) == (2, f"headway: {tmp_path}/nowhere: cannot be read: No such file or directory\n")
    folder = await headway("dataset", "validate", str(tmp_path))
    assert (folder.code, "is not a regular file" in folder.err) == (2, True)
    no_model = await headway("dataset", "validate", _file(tmp_path), "--base-model", str(tmp_path))
    assert (no_model.code, "the tokenizer cannot be loaded" in no_model.err) == (2, True)


async def test_transformers_is_needed_for_tokens_alone(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    for name in ("transformers", "torch", "pyarrow"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "__init__.py").write_text(f"raise ImportError('{name} is hidden')")
    without = {"PYTHONPATH": str(hidden)}
    plain = await headway("dataset", "validate", _file(tmp_path), environment=without)
    assert (plain.code, plain.err) == (0, "")
    tokens = await headway("dataset", "validate", _file(tmp_path), "--base-model", str(tmp_path), environment=without)
    assert (tokens.code, tokens.err.startswith("headway: counting tokens needs transformers")) == (2, True)
    parquet = tmp_path / "rows.parquet"
    parquet.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    columns = await headway("dataset", "validate", str(parquet), environment=without)
    assert (columns.code, columns.err) == (2, "headway: Parquet needs pyarrow; install headway[data]\n")


async def test_add_validates_before_it_connects(tmp_path: Path) -> None:
    faulty = _file(tmp_path, "{")
    refused = await headway("dataset", "add", "x", faulty, *DEAD)
    assert refused.code == 2
    assert "has 1 error; expected none" in refused.err
    assert "invalid_json" in refused.err
    unchecked = await headway("dataset", "add", "x", faulty, "--unchecked", *DEAD)
    assert unchecked.code == 5
    sound = await headway("dataset", "add", "x", _file(tmp_path), *DEAD)
    assert sound.code == 5
