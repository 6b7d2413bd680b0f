"""Rows as a base model sees them: rendered with its chat template, in tokens. The only module that needs transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_checks.faults import Code, Fault

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class UnusableModelError(Exception):
    """The model cannot be rendered for; the message says why, and what was expected."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model in a directory.

    Raises:
        UnusableModelError: transformers is not installed, or there is none that can be loaded.
    """
    try:
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - only tokens need it
    except ImportError as error:
        raise UnusableModelError(
            "counting tokens needs transformers, which is not installed; install headway[tokens]"
        ) from error
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    # Rust's tokenizers raises bare Exception for a file it cannot read.
    except Exception as error:
        raise UnusableModelError(f"{folder}: the tokenizer cannot be loaded: {error}") from error


def control_tokens_of(tokenizer: Any) -> list[str]:
    """The model's control tokens, which no text may hold."""
    return sorted({str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special})


def marks_generation(tokenizer: Any) -> bool:
    """Whether the chat template says which of its text the assistant's is."""
    return bool(_GENERATION.search(str(tokenizer.chat_template or "")))


class Renderer:
    """Renders conversations as prompts and what is to be said to each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._end_of_turn = str(tokenizer.eos_token or "")

    def turns(self, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The prompt and the target of each assistant's turn that is trained.

        Raises:
            UnusableModelError: the template renders a prompt with its answer otherwise than the prompt alone.
            jinja2.TemplateError: the template refuses the messages.
        """
        messages = messages_of(row)
        first = len(messages) - len(_as_messages(row["completion"], "assistant")) if "completion" in row else 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index < first or message.get("weight", 1) == 0:
                continue
            prompt = self.render(messages[:index], answer=True)
            whole = self.render(messages[: index + 1], answer=False)
            if not whole.startswith(prompt):
                raise UnusableModelError(
                    "the chat template renders a prompt with its answer otherwise than the prompt alone; "
                    "expected the one to begin with the other"
                )
            target = whole[len(prompt) :]
            # Nothing after the end of the turn is ever generated, so nothing after it is trained on.
            end = target.rfind(self._end_of_turn) if self._end_of_turn else -1
            yield prompt, target if end < 0 else target[: end + len(self._end_of_turn)]

    def render(self, messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
        """Messages in the template's text; `answer`: up to where the assistant begins."""
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        return self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=answer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts; nothing is added to them."""
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]


def messages_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The whole conversation of a row of messages, or of a prompt and its completion."""
    if "messages" in row:
        return row["messages"]
    return [*_as_messages(row["prompt"], "user"), *_as_messages(row["completion"], "assistant")]


def _as_messages(value: Any, role: str) -> list[Mapping[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


class TokenCounter:
    """Counts the tokens of sound rows exactly, and finds rows of which nothing, or not all, would be trained."""

    def __init__(self, tokenizer: Any, max_tokens: int, assistant_only_loss: bool = False) -> None:
        self._renderer = Renderer(tokenizer)
        self._max_tokens = max_tokens
        self._template_fault = _template_fault(tokenizer, assistant_only_loss)
        self._told = False
        self.rows = self.tokens = self.target_tokens = self.longest = self.truncated_rows = self.truncated_tokens = 0

    def count(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Fault]:
        """Counts some rows; what is wrong with them."""
        found: list[Fault] = []
        for line, row in rows:
            names = [name for name in ("prompt", "chosen", "rejected", "text") if isinstance(row.get(name), str)]
            if "messages" not in row and "completion" not in row:
                self._add([sum(map(len, self._renderer.encode([row[name] for name in names])))], [0])
                continue
            if self._template_fault is not None:
                if not self._told:
                    found.append(self._template_fault)
                    self._told = True
                if self._template_fault.code is Code.NO_CHAT_TEMPLATE:
                    continue
            found += self._count_turns(line, row)
        return found

    def _count_turns(self, line: int, row: Mapping[str, Any]) -> list[Fault]:
        from jinja2 import TemplateError  # noqa: PLC0415 - comes with transformers

        try:
            turns = list(self._renderer.turns(row))
        except TemplateError as error:
            message = f"the chat template refuses the row: {str(error)[:200]}; expected messages that it allows"
            return [Fault(line, "", Code.TEMPLATE_REFUSES_ROW, message)]
        tokens = self._renderer.encode([part for turn in turns for part in turn])
        prompts, targets = [len(one) for one in tokens[::2]], [len(one) for one in tokens[1::2]]
        trained = [max(0, min(target, self._max_tokens - prompt)) for prompt, target in zip(prompts, targets, strict=True)]
        lost = sum(targets) - sum(trained)
        self._add([prompts[-1] + targets[-1]], trained)
        if not any(trained):
            message = (
                f"the prompt has {prompts[0]} tokens, which leaves none of the answer within {self._max_tokens}; "
                f"expected a shorter prompt, or max_tokens of at least {prompts[0] + 1}"
            )
            return [Fault(line, "", Code.NOTHING_TO_TRAIN, message)]
        if lost:
            self.truncated_rows += 1
            self.truncated_tokens += lost
            message = f"{lost} of {sum(targets)} tokens to train on are cut off at {self._max_tokens}; expected all within it"
            return [Fault(line, "", Code.TRUNCATED_ROW, message)]
        return []

    def _add(self, lengths: Sequence[int], targets: Sequence[int]) -> None:
        self.rows += 1
        self.tokens += sum(lengths)
        self.target_tokens += sum(targets)
        self.longest = max(self.longest, *lengths)

    def as_dict(self) -> dict[str, int]:
        """The counts, for JSON."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "target_tokens": self.target_tokens,
            "longest_row_tokens": self.longest,
            "truncated_rows": self.truncated_rows,
            "truncated_tokens": self.truncated_tokens,
        }

    def summary(self) -> str:
        """The counts, for people."""
        return (
            f"{self.tokens:,} tokens, {self.target_tokens:,} of them to train on; the longest row has {self.longest:,}; "
            f"{self.truncated_tokens:,} tokens lost in {self.truncated_rows:,} rows"
        )


def _template_fault(tokenizer: Any, assistant_only_loss: bool) -> Fault | None:
    if not tokenizer.chat_template:
        return Fault(
            0, "", Code.NO_CHAT_TEMPLATE, "the base model has no chat template; expected one, since rows are conversations"
        )
    if assistant_only_loss and not marks_generation(tokenizer):
        message = (
            "the chat template has no {% generation %}, so nothing would be trained; expected it around the assistant's text"
        )
        return Fault(0, "", Code.NO_GENERATION_MARKERS, message)
    return None
