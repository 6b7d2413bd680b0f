"""From sound rows to the examples that are trained on, in tokens, as each format's trainer reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from control_plane.jobs.states import FailureKind
from dataset_checks.faults import Code, Fault
from dataset_checks.formats import RowFormat
from dataset_checks.rendering import Renderer, UnusableModelError
from workers.runner.data.tokenized import TokenizedRow
from workers.runner.data.violations import Violations
from workers.runner.failures import RunnerError

SUPERVISED = (RowFormat.PROMPT_COMPLETION, RowFormat.CHAT)
"""Formats of which examples are a prompt and what is to be said to it: one for each assistant's turn that is trained."""
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to train on."""

    line: str
    """As it stands in train.jsonl or eval.jsonl."""
    tokens: int
    target_tokens: int


class ExampleMaker:
    """Makes examples of at most `max_tokens`."""

    def __init__(self, tokenizer: Any, row_format: RowFormat, max_tokens: int) -> None:
        self._renderer = Renderer(tokenizer)
        self._row_format = row_format
        self._max_tokens = max_tokens
        self.truncated_rows = 0
        self.truncated_tokens = 0
        """Target tokens lost to `max_tokens`."""

    def make(self, rows: Sequence[tuple[int, Row]], violations: Violations) -> list[list[Example]]:
        """The examples of each row; none, and a violation, for one that cannot be trained on.

        Raises:
            RunnerError: INVALID_BASE_MODEL, since the chat template cannot be used so.
        """
        rendered = [self._rendered(line, row, violations) for line, row in rows]
        # Prompt and targets are tokenised apart: the prompt's tokens are then exactly those that the model sees in use.
        tokens = iter(self._renderer.encode([text for parts in rendered for part in parts for text in part]))
        return [
            self._examples(line, row, [[next(tokens) for _ in part] for part in parts], violations)
            for (line, row), parts in zip(rows, rendered, strict=True)
        ]

    def _rendered(self, line: int, row: Row, violations: Violations) -> list[list[str]]:
        """Texts of each example: the prompt, then its targets."""
        try:
            if self._row_format in SUPERVISED:
                return [[prompt, target] for prompt, target in self._renderer.turns(row)]
            if self._row_format is RowFormat.PREFERENCE:
                return [self._preference(row)]
            messages = row["prompt"]
            if self._row_format is RowFormat.UNPAIRED_PREFERENCE:
                return [list(list(self._renderer.turns(row))[-1])]
            if isinstance(messages, str):
                messages = [{"role": "user", "content": messages}]
            return [[self._renderer.render(messages, answer=True)]]
        except TemplateError as error:
            message = f"the chat template refuses the row: {str(error)[:200]}; expected messages that it allows"
            violations.add([Fault(line, "", Code.TEMPLATE_REFUSES_ROW, message)])
        except UnusableModelError as error:
            raise RunnerError(FailureKind.INVALID_BASE_MODEL, f"line {line}: {error}") from error
        return []

    def _preference(self, row: Row) -> list[str]:
        prompt, answers = row.get("prompt"), (row["chosen"], row["rejected"])
        if prompt is None:
            prompt, answers = answers[0][:-1], (answers[0][-1:], answers[1][-1:])
        sides = [list(self._renderer.turns({"prompt": prompt, "completion": answer}))[-1] for answer in answers]
        return [sides[0][0], sides[0][1], sides[1][1]]

    def _examples(self, line: int, row: Row, parts: Sequence[list[list[int]]], violations: Violations) -> list[Example]:
        made: list[Example] = []
        lost = 0
        for prompt, *targets in parts:
            room = self._max_tokens - len(prompt)
            lost += sum(max(0, len(target) - max(room, 0)) for target in targets)
            if room > 0 and all(targets):
                made.append(self._example(line, row, prompt, [target[:room] for target in targets]))
        if parts and not made:
            prompt = parts[0][0]
            message = (
                f"the prompt has {len(prompt)} tokens, which leaves none of the completion within max_tokens, "
                f"{self._max_tokens}; expected a shorter prompt, or max_tokens of at least {len(prompt) + 1}"
            )
            pointer = "/messages" if "messages" in row else "/prompt" if "prompt" in row else "/chosen"
            violations.add([Fault(line, pointer, Code.NOTHING_TO_TRAIN, message)])
        elif lost:
            self.truncated_rows += 1
            self.truncated_tokens += lost
        return made

    def _example(self, line: int, row: Row, prompt: list[int], targets: Sequence[list[int]]) -> Example:
        total = len(prompt) + max(map(len, targets), default=0)
        if self._row_format in SUPERVISED:
            supervised = TokenizedRow(line=line, tokens=prompt + targets[0], targets_from=len(prompt))
            return Example(supervised.to_json(), total, len(targets[0]))
        fields: dict[str, Any] = {"line": line, "prompt": prompt}
        if self._row_format is RowFormat.PREFERENCE:
            fields |= {"chosen": targets[0], "rejected": targets[1]}
        elif self._row_format is RowFormat.UNPAIRED_PREFERENCE:
            fields |= {"completion": targets[0], "label": row["label"]}
        else:
            fields["columns"] = {name: value for name, value in row.items() if name != "prompt"}
        return Example(json.dumps(fields, separators=(",", ":"), default=str), total, sum(map(len, targets)))


def linking_texts(row: Row) -> list[str]:
    """The texts that keep a row on one side of the split: the question it opens with, and the answers.

    What users say later in a conversation, such as thanks, is too common to link conversations by.
    """
    found: list[str] = []
    for name in ("prompt", "messages", "completion", "chosen", "rejected"):
        value = row.get(name)
        if isinstance(value, str):
            found.append(value)
        elif value is not None:
            opening = [message["content"] for message in value if message["role"] == "user"][:1]
            found += opening + [message["content"] for message in value if message["role"] == "assistant"]
    return found
