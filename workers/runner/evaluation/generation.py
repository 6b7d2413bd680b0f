"""Greedy generation, one prompt at a time, that can be stopped between two tokens."""

from __future__ import annotations

import threading
from typing import Any

import torch

from workers.runner.data.chat import encode, render_prompt
from workers.runner.failures import PreemptedError
from workers.runner.models.loading import autocast, end_tokens


def answer(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, stop: threading.Event) -> str:
    """The model's most likely answer to a chat prompt, without control tokens.

    Args:
        model: base model, adapters injected or not, in inference mode.
        tokenizer: the base model's.
        prompt: what the user says.
        max_new_tokens: length at which the answer is cut.
        stop: set when the program was asked to stop.

    Raises:
        PreemptedError: `stop` was set.
    """
    ends = end_tokens(model)
    tokens = torch.tensor(encode(tokenizer, [render_prompt(tokenizer, prompt)]), device=model.device)
    said: list[int] = []
    cache: Any = None
    with torch.inference_mode(), autocast():
        while len(said) < max_new_tokens:
            if stop.is_set():
                raise PreemptedError
            output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = int(output.logits[0, -1].argmax())
            if token in ends:
                break
            said.append(token)
            tokens = torch.tensor([[token]], device=model.device)
    return tokenizer.decode(said, skip_special_tokens=True).strip()
