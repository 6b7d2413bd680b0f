"""Preparation of conversations, preferences and prompts: what each trainer reads, in the tokens that the model sees in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from control_plane.jobs.states import FailureKind
from dataset_checks.faults import Code, Fault
from dataset_checks.formats import RowFormat
from workers.runner.data.preparation import run as prepare
from workers.runner.data.tokenized import read_rows
from workers.runner.data.violations import MAX_LISTED, Violations
from workers.runner.failures import RunnerError
from workers.runner.program import Context
from workers.runner.specs import PrepareSpec

Row = dict[str, Any]


def _turn(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def _spec(folder: Path, base_model: Path, rows: list[Row], **changes: Any) -> PrepareSpec:
    dataset = folder / "blob"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields: dict[str, Any] = {"max_tokens": 256, "eval_fraction": 0.2, "split_seed": 0, **changes}
    return PrepareSpec(dataset_path=dataset, base_model_dir=base_model, output_dir=folder / "out", **fields)


def _lines(spec: PrepareSpec) -> list[Row]:
    data = spec.output_dir / "data"
    text = (data / "train.jsonl").read_text() + (data / "eval.jsonl").read_text()
    return sorted(map(json.loads, text.splitlines()), key=lambda row: row["line"])


CHATS: list[Row] = [
    {
        "messages": [
            _turn("system", "Count."),
            _turn("user", f"What is {number}?"),
            _turn("assistant", f"One less than {number + 1}.", **({"weight": 0} if number == 3 else {})),
            _turn("user", "Thanks. And twice it?"),
            _turn("assistant", f"That makes {2 * number}."),
        ]
    }
    for number in range(20)
]


def test_each_turn_of_the_assistant_is_trained_once_and_nothing_else(
    base_model: Path, tmp_path: Path, context: Context
) -> None:
    spec = _spec(tmp_path, base_model, CHATS)
    ok = prepare(context, spec)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    data = spec.output_dir / "data"
    rows = [*read_rows(data / "train.jsonl"), *read_rows(data / "eval.jsonl")]
    assert ok.train_rows + ok.eval_rows == len(rows) == 39
    by_line: dict[int, list[str]] = {}
    for row in rows:
        said = tokenizer.decode(row.tokens[row.targets_from :])
        by_line.setdefault(row.line, []).append(said)
        messages = CHATS[row.line - 1]["messages"]
        before = messages[: 4 if "makes" in said else 2]
        plain = [{"role": one["role"], "content": one["content"]} for one in before]
        assert row.tokens[: row.targets_from] == tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
    assert by_line[4] == ["That makes 6.<|im_end|>"]
    assert sorted(by_line[5]) == ["One less than 5.<|im_end|>", "That makes 8.<|im_end|>"]
    on_side = [{row.line for row in read_rows(data / name)} for name in ("train.jsonl", "eval.jsonl")]
    assert not on_side[0] & on_side[1]


def test_preferences(base_model: Path, tmp_path: Path, context: Context) -> None:
    rows: list[Row] = [
        {"prompt": f"Say {number}", "chosen": f"Gladly: {number}!", "rejected": f"No {number}."} for number in range(20)
    ]
    spec = _spec(tmp_path, base_model, rows, row_format=RowFormat.PREFERENCE)
    prepare(context, spec)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    lines = _lines(spec)
    assert [line["line"] for line in lines] == list(range(1, 21))
    for line, row in zip(lines, rows, strict=True):
        assert line.keys() == {"line", "prompt", "chosen", "rejected"}
        assert tokenizer.decode(line["prompt"]).endswith(f"{row['prompt']}<|im_end|>\n<|im_start|>assistant\n")
        assert tokenizer.decode(line["chosen"]) == row["chosen"] + "<|im_end|>"
        assert tokenizer.decode(line["rejected"]) == row["rejected"] + "<|im_end|>"


def test_preferences_of_conversations_are_the_same_as_those_with_a_prompt(
    base_model: Path, tmp_path: Path, context: Context
) -> None:
    texts = [(f"Say {number}", f"Gladly: {number}!", f"No {number}.") for number in range(20)]
    explicit: list[Row] = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in texts]
    implicit: list[Row] = [
        {name: [_turn("user", prompt), _turn("assistant", answer)] for name, answer in (("chosen", good), ("rejected", bad))}
        for prompt, good, bad in texts
    ]
    prepared: list[list[Row]] = []
    for name, rows in (("explicit", explicit), ("implicit", implicit)):
        (tmp_path / name).mkdir()
        spec = _spec(tmp_path / name, base_model, rows, row_format=RowFormat.PREFERENCE)
        prepare(context, spec)
        prepared.append(_lines(spec))
    assert prepared[0] == prepared[1]


def test_unpaired_preferences_and_prompts(base_model: Path, tmp_path: Path, context: Context) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    judged: list[Row] = [{"prompt": f"Say {n}", "completion": f"It is {n}.", "label": n % 2 == 0} for n in range(20)]
    spec = _spec(tmp_path, base_model, judged, row_format=RowFormat.UNPAIRED_PREFERENCE)
    prepare(context, spec)
    for line, row in zip(_lines(spec), judged, strict=True):
        assert line.keys() == {"line", "prompt", "completion", "label"}
        assert (tokenizer.decode(line["completion"]), line["label"]) == (row["completion"] + "<|im_end|>", row["label"])
    asked: list[Row] = [{"prompt": f"Say {n}", "solution": n, "of": [n, "x"]} for n in range(20)]
    spec = _spec(tmp_path, base_model, asked, row_format=RowFormat.PROMPT_ONLY)
    prepare(context, spec)
    for number, line in enumerate(_lines(spec)):
        assert line.keys() == {"line", "prompt", "columns"}
        assert line["columns"] == {"solution": number, "of": [number, "x"]}
        assert tokenizer.decode(line["prompt"]).endswith(f"Say {number}<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("row", "row_format", "code"),
    [
        ({"text": "a"}, None, Code.UNKNOWN_COLUMNS),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, None, Code.UNKNOWN_COLUMNS),
        ({"chosen": "ab", "rejected": "ac"}, RowFormat.PREFERENCE, Code.MISSING_FIELD),
        ({"prompt": "a", "completion": "c"}, RowFormat.PREFERENCE, Code.MIXED_FORMATS),
    ],
)
def test_rows_of_another_format_are_refused(
    row: Row, row_format: RowFormat | None, code: Code, base_model: Path, tmp_path: Path, context: Context
) -> None:
    with pytest.raises(RunnerError) as caught:
        prepare(context, _spec(tmp_path, base_model, [row] * 20, row_format=row_format))
    assert caught.value.failure.kind is FailureKind.INVALID_DATASET
    assert caught.value.failure.violations[0].code == code


def test_warnings_are_counted_and_refuse_nothing(base_model: Path, tmp_path: Path, context: Context) -> None:
    rows: list[Row] = [{"prompt": f"What is {number}?", "completion": f"\ufffd{number}"} for number in range(20)]
    spec = _spec(tmp_path, base_model, rows)
    prepare(context, spec)
    statistics = json.loads((spec.output_dir / "data/statistics.json").read_text())
    assert (statistics["warnings"], statistics["format"]) == ({"replacement_character": 20}, "prompt_completion")


def test_at_most_a_thousand_faults_are_listed_and_all_are_counted() -> None:
    violations = Violations()
    violations.add(Fault(line, "", Code.INVALID_JSON, "expected JSON") for line in range(1, 1401))
    violations.add([Fault(7, "", Code.CONTROL_CHARACTER, "a warning")])
    assert (len(violations.listed), violations.count) == (MAX_LISTED, 1400)
    assert violations.summary() == "the dataset has 1400 faults; first: line 1: expected JSON"
