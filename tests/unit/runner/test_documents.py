"""Documents laid end to end give the losses and gradients that each gives alone, for every architecture that is let in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

from workers.runner.data.tokenized import TokenizedRow
from workers.runner.models.documents import ATTENTION, Documents, document_losses
from workers.runner.models.vetting import ARCHITECTURES

ROWS = [
    TokenizedRow(line=n, tokens=[(7 * n + 3 * place) % 61 for place in range(length)], targets_from=targets_from)
    for n, (length, targets_from) in enumerate([(9, 4), (2, 1), (17, 16), (5, 1)], 1)
]


def _model(architecture: str, attention: str) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    config = kind.config_class(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=None,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    return kind(config)


def _alone(model: Any, row: TokenizedRow) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([row.tokens])).logits[0, row.targets_from - 1 : -1]
    return functional.cross_entropy(logits, torch.tensor(row.tokens[row.targets_from :]), reduction="sum")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_equal_those_of_each_document_alone(architecture: str) -> None:
    together, alone = _model(architecture, ATTENTION), _model(architecture, "eager")
    losses = document_losses(together, Documents.of(ROWS, torch.device("cpu")))
    expected = torch.stack([_alone(alone, row) for row in ROWS])
    torch.testing.assert_close(losses, expected, rtol=2e-5, atol=2e-5)
    losses.sum().backward()
    expected.sum().backward()
    for (name, found), (_, wanted) in zip(together.named_parameters(), alone.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name} {text}")


def test_a_document_does_not_see_the_one_before() -> None:
    model = _model("LlamaForCausalLM", ATTENTION)
    last = ROWS[-1]
    in_company = document_losses(model, Documents.of(ROWS, torch.device("cpu")))[-1]
    other = TokenizedRow(line=9, tokens=[60] * 30, targets_from=3)
    torch.testing.assert_close(document_losses(model, Documents.of([other, last], torch.device("cpu")))[-1], in_company)


def test_generation_with_a_cache_equals_a_pass_over_everything() -> None:
    model = _model("LlamaForCausalLM", ATTENTION).eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    whole = model(input_ids=tokens).logits[0, -1]
    cache = model(input_ids=tokens[:, :4], use_cache=True).past_key_values
    cache = model(input_ids=tokens[:, 4:5], past_key_values=cache, use_cache=True).past_key_values
    step = model(input_ids=tokens[:, 5:], past_key_values=cache, use_cache=True).logits[0, -1]
    torch.testing.assert_close(step, whole)
