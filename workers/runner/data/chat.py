"""Turns rows into tokens by the base model's chat template. No torch here: it loads in a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane.jobs.states import FailureKind
from dataset_checks import rendering
from dataset_checks.rendering import UnusableModelError
from workers.runner.failures import RunnerError


def load_tokenizer(base_model_dir: Path) -> Any:
    """The base model's tokenizer, which must have a chat template.

    Raises:
        RunnerError: INVALID_BASE_MODEL.
    """
    try:
        tokenizer = rendering.load_tokenizer(base_model_dir)
    except UnusableModelError as error:
        raise RunnerError(FailureKind.INVALID_BASE_MODEL, str(error)) from error
    if not tokenizer.chat_template:
        raise RunnerError(FailureKind.INVALID_BASE_MODEL, "the base model has no chat template; expected an instruct model")
    return tokenizer


def render_prompt(tokenizer: Any, prompt: str) -> str:
    """The text that the model is given to answer `prompt`."""
    return rendering.Renderer(tokenizer).render([{"role": "user", "content": prompt}], answer=True)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts; nothing is added to them."""
    return rendering.Renderer(tokenizer).encode(texts)


def template_sha256(tokenizer: Any) -> str:
    """SHA-256 of the chat template: scores are comparable only under the same one."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()
