"""Runs several documents through a model as one sequence, end to end, without a padding token in between.

Linear layers, which do nearly all of the work, see one long sequence; attention is done document by document, so documents
stay apart and its cost does not grow with their number. On two cores a step over chat rows takes two thirds of the time
that the same step takes with padding, for the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.runner.data.tokenized import TokenizedRow
from workers.runner.models.sharding import through

ATTENTION = "headway_documents"

CHUNK_TARGETS = 2_048
"""With a vocabulary of 128,000 the logits of so many targets take 1 GiB."""


@dataclass(frozen=True)
class Documents:
    """N documents of T tokens in all, M of which are targets.

    tokens, positions: (1, T), positions counted from 0 in each document. ends: where each document ends in T.
    sources: (M,), the place in T whose logits predict the target. targets: (M,). owners: (M,), each target's document.
    """

    tokens: Tensor
    positions: Tensor
    ends: tuple[int, ...]
    sources: Tensor
    targets: Tensor
    owners: Tensor

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow], device: torch.device) -> Documents:
        """Lays `rows` end to end. Every row has at least one token before its first target."""
        tokens: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        sources: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for index, row in enumerate(rows):
            start = len(tokens)
            tokens.extend(row.tokens)
            positions.extend(range(len(row.tokens)))
            ends.append(len(tokens))
            sources.extend(range(start + row.targets_from - 1, len(tokens) - 1))
            targets.extend(row.tokens[row.targets_from :])
            owners.extend([index] * row.target_count)
        return cls(
            tokens=torch.tensor([tokens], device=device),
            positions=torch.tensor([positions], device=device),
            ends=tuple(ends),
            sources=torch.tensor(sources, device=device),
            targets=torch.tensor(targets, device=device),
            owners=torch.tensor(owners, device=device),
        )


def document_losses(model: Any, documents: Documents) -> Tensor:
    """Sum of negative log-likelihoods of each document's targets, in nats: (N,), fp32.

    Logits are made for targets only: with a vocabulary of 50,000 the output head would otherwise take more memory than
    all layers together.

    Args:
        model: a causal language model loaded by `load_base_model`, adapters injected or not.
        documents: on the model's device.
    """
    losses = token_losses(model, documents)
    return torch.zeros(len(documents.ends), device=losses.device).index_add(0, documents.owners, losses)


def token_losses(model: Any, documents: Documents) -> Tensor:
    """Negative log-likelihood of each target, in nats: (M,), fp32. Arguments as of `document_losses`."""
    return through(model, _token_losses, documents)


def _token_losses(model: Any, documents: Documents) -> Tensor:
    hidden = _hidden_states(model, documents)[documents.sources]
    return chunked_cross_entropy(model.lm_head, hidden, documents.targets)


def hidden_states(model: Any, documents: Documents) -> Tensor:
    """The last layer's output at every place: (T, hidden size). Arguments as of `document_losses`."""
    return through(model, _hidden_states, documents)


def _hidden_states(model: Any, documents: Documents) -> Tensor:
    output = model.model(
        input_ids=documents.tokens, position_ids=documents.positions, use_cache=False, document_ends=documents.ends
    )
    return output.last_hidden_state[0]


MODEL_FUNCTIONS = (_token_losses, _hidden_states)
"""What is done with a model here other than by calling it."""


def chunked_cross_entropy(head: Any, hidden: Tensor, targets: Tensor, chunk: int = CHUNK_TARGETS) -> Tensor:
    """Negative log-likelihood of each target, in nats: (M,), fp32, with the logits of one chunk in memory at a time.

    Where there is more than one chunk, the backward pass makes each chunk's logits again instead of keeping them: one more
    product with the head, for M / chunk times less memory.

    Args:
        head: from hidden states to logits.
        hidden: (M, hidden size), the states that predict the targets.
        targets: (M,).
        chunk: targets whose logits may be in memory together.
    """

    def losses(part: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(head(part).float(), wanted, reduction="none")

    if len(targets) <= chunk:
        return losses(hidden, targets)
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([losses(part, wanted) for part, wanted in parts])
    return torch.cat(
        # The head has no dropout, so no random state need be kept for the second time.
        [checkpoint(losses, part, wanted, use_reentrant=False, preserve_rng_state=False) for part, wanted in parts]
    )


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_ends: tuple[int, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention inside each document. query: (1, heads, T, size), key and value: (1, key heads, T, size)."""
    if document_ends is None:
        # Generation: one document, with a cache.
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    outputs: list[Tensor] = []
    start = 0
    for end in document_ends:
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                dropout_p=dropout,
                is_causal=True,
                scale=scaling,
                enable_gqa=True,
            )
        )
        start = end
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compiles each layer of a model around its attention, for any number of tokens.

    Attention is left out: it goes from document to document, and the compiler would make a program for every way they may lie.
    """
    AttentionInterface.register(ATTENTION, torch.compiler.disable(_attend))
    for layer in model.model.layers:
        layer.compile(backend=backend, dynamic=True)
