"""Renders rows with the base model's chat template and turns them into tokens. No torch here: it loads in a second."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from control_plane.jobs.states import FailureKind
from workers.runner.data.rows import Code, Row, Violations
from workers.runner.data.tokenized import TokenizedRow
from workers.runner.failures import RunnerError


def load_tokenizer(base_model_dir: Path) -> Any:
    """The base model's tokenizer, which must have a chat template.

    Raises:
        RunnerError: INVALID_BASE_MODEL.
    """
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(base_model_dir, local_files_only=True)
    # Rust's tokenizers raises bare Exception for a file it cannot read.
    except Exception as error:
        raise RunnerError(FailureKind.INVALID_BASE_MODEL, f"the tokenizer cannot be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise RunnerError(FailureKind.INVALID_BASE_MODEL, "the base model has no chat template; expected an instruct model")
    return tokenizer


def render_prompt(tokenizer: Any, prompt: str) -> str:
    """The text that the model is given to answer `prompt`."""
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts; nothing is added to them."""
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]


class Renderer:
    """Turns rows into tokenised rows of at most `max_tokens`."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._end_of_turn = str(tokenizer.eos_token or "")
        names = sorted({str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special})
        self._control_tokens = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.truncated_rows = 0
        self.truncated_tokens = 0
        """Completion tokens lost to `max_tokens`."""

    def render(self, rows: Sequence[Row], violations: Violations) -> list[TokenizedRow | None]:
        """Tokenises `rows`; None, and a violation, for each that cannot be trained on."""
        texts = [self._texts(row) if self._is_plain(row, violations) else None for row in rows]
        # Prompt and completion are tokenised apart: the prompt's tokens are then exactly those that the model sees in use.
        tokens = iter(encode(self._tokenizer, [part for pair in texts if pair for part in pair]))
        return [
            self._cut(row, next(tokens), next(tokens), violations) if pair else None
            for row, pair in zip(rows, texts, strict=True)
        ]

    def _is_plain(self, row: Row, violations: Violations) -> bool:
        """Whether the row's text stays text: a control token in it would end a turn or begin another."""
        plain = True
        for name, text in (("prompt", row.prompt), ("completion", row.completion)):
            if found := self._control_tokens.search(text):
                plain = False
                violations.add(
                    row.line,
                    f"/{name}",
                    Code.CONTROL_SEQUENCE,
                    f"{name} holds the base model's control token {found[0]!r}; expected plain text",
                )
        return plain

    def _texts(self, row: Row) -> tuple[str, str]:
        prompt = render_prompt(self._tokenizer, row.prompt)
        whole: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion}], tokenize=False
        )
        if not whole.startswith(prompt):
            raise RunnerError(
                FailureKind.INVALID_BASE_MODEL,
                "the chat template renders a prompt with its answer otherwise than the prompt alone "
                f"(line {row.line}); expected the one to begin with the other",
            )
        target = whole[len(prompt) :]
        # Nothing after the end of the turn is ever generated, so nothing after it is trained on.
        end = target.rfind(self._end_of_turn) if self._end_of_turn else -1
        return prompt, target if end < 0 else target[: end + len(self._end_of_turn)]

    def _cut(self, row: Row, prompt: list[int], target: list[int], violations: Violations) -> TokenizedRow | None:
        room = self._max_tokens - len(prompt)
        if room <= 0 or not target:
            violations.add(
                row.line,
                "/prompt",
                Code.NOTHING_TO_TRAIN,
                f"the prompt has {len(prompt)} tokens, which leaves none of the completion within max_tokens, "
                f"{self._max_tokens}; expected a shorter prompt, or max_tokens of at least {len(prompt) + 1}",
            )
            return None
        if len(target) > room:
            self.truncated_rows += 1
            self.truncated_tokens += len(target) - room
        return TokenizedRow(line=row.line, tokens=prompt + target[:room], targets_from=len(prompt))


def template_sha256(tokenizer: Any) -> str:
    """SHA-256 of the chat template: scores are comparable only under the same one."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()
