"""With a base model: exact tokens, what would not be trained, and what its chat template refuses or leaves unmarked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from dataset_checks.faults import Code
from dataset_checks.rendering import Renderer, TokenCounter, UnusableModelError, control_tokens_of, load_tokenizer
from tests.unit.client.command_line import headway

_TURN = "{{ '<turn> ' + message['role'] + ' ' }}{{ message['content'] + ' <end> ' }}"
PLAIN = "{% for message in messages %}" + _TURN + "{% endfor %}{{ '<turn> assistant ' if add_generation_prompt }}"
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + PLAIN
MARKED = PLAIN.replace(
    "{{ message['content'] + ' <end> ' }}", "{% generation %}{{ message['content'] + ' <end> ' }}{% endgeneration %}"
)
ODD = PLAIN.replace("{% for", "{{ messages | length }}{% for")


def _tokenizer(template: str | None = PLAIN) -> Any:
    words = Tokenizer(WordLevel({"<unk>": 0, "<turn>": 1, "<end>": 2, "user": 3, "assistant": 4}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"additional_special_tokens": ["<turn>"]}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<end>", chat_template=template, **special
    )


def _chat(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]}


def test_tokens_are_counted_exactly() -> None:
    counter = TokenCounter(_tokenizer(), 100)
    assert counter.count([(1, {"prompt": "a b c", "completion": "d e"}), (2, _chat("a", "b", "c d", "e f g"))]) == []
    # <turn> user a b c <end> <turn> assistant d e <end>; <turn> user a <end> <turn> assistant b <end> …
    assert counter.as_dict() == {
        "rows": 2,
        "tokens": 11 + 19,
        "target_tokens": 3 + 2 + 4,
        "longest_row_tokens": 19,
        "truncated_rows": 0,
        "truncated_tokens": 0,
    }


def test_what_is_cut_off_is_told_to_the_token() -> None:
    counter = TokenCounter(_tokenizer(), 10)
    found = counter.count([(1, {"prompt": "a b c", "completion": "d e"}), (2, {"prompt": "a " * 20, "completion": "b"})])
    assert [(fault.line, fault.code) for fault in found] == [(1, Code.TRUNCATED_ROW), (2, Code.NOTHING_TO_TRAIN)]
    assert found[0].message.startswith("1 of 3 tokens")
    assert found[1].message.endswith("max_tokens of at least 26")
    assert (counter.truncated_rows, counter.truncated_tokens) == (1, 1)


def test_a_template_may_refuse_a_row_and_must_be_usable() -> None:
    system = {"messages": [{"role": "system", "content": "s"}, *_chat("a", "b")["messages"]]}
    (fault,) = TokenCounter(_tokenizer(STRICT), 100).count([(3, system)])
    assert (fault.line, fault.code, "no system here" in fault.message) == (3, Code.TEMPLATE_REFUSES_ROW, True)
    with pytest.raises(UnusableModelError, match="expected the one to begin with the other"):
        TokenCounter(_tokenizer(ODD), 100).count([(1, _chat("a", "b"))])


def test_loss_on_the_assistant_alone_needs_its_text_marked() -> None:
    rows = [(1, _chat("a", "b")), (2, _chat("c", "d"))]
    found = TokenCounter(_tokenizer(PLAIN), 100, assistant_only_loss=True).count(rows)
    assert [(fault.line, fault.code) for fault in found] == [(0, Code.NO_GENERATION_MARKERS)]
    assert TokenCounter(_tokenizer(MARKED), 100, assistant_only_loss=True).count(rows) == []
    assert [fault.code for fault in TokenCounter(_tokenizer(None), 100).count(rows)] == [Code.NO_CHAT_TEMPLATE]


def test_a_masked_turn_is_not_trained() -> None:
    row = _chat("a", "b", "c", "d")
    row["messages"][1]["weight"] = 0
    assert [target for _, target in Renderer(_tokenizer()).turns(row)] == ["d <end>"]


async def test_the_command_counts_by_a_models_directory(tmp_path: Path) -> None:
    model = tmp_path / "model"
    _tokenizer().save_pretrained(model)
    assert set(control_tokens_of(load_tokenizer(model))) >= {"<turn>", "<end>"}
    file = tmp_path / "rows.jsonl"
    rows = [*(_chat(f"q{number}", f"a{number}") for number in range(10)), _chat("x <turn> y", "z"), _chat("long " * 50, "z")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = await headway("dataset", "validate", str(file), "--base-model", str(model), "--max-tokens", "20", "--json")
    assert run.code == 2
    *faults, last = run.documents()
    assert [(one["fault"]["line"], one["fault"]["code"]) for one in faults] == [
        (11, "control_sequence"),
        (12, "nothing_to_train"),
    ]
    assert last["report"]["tokens"]["target_tokens"] == 20
    table = await headway("dataset", "validate", str(file), "--base-model", str(model), "--assistant-only-loss")
    assert table.code == 2
    assert "no_generation_markers" in table.out
    assert "tokens, 22 of them to train on; the longest row has 57" in table.out
