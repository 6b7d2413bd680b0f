"""Activation checkpointing: what the backward pass needs of a layer is made again instead of kept (Chen et al. 2016).

Selective (Korthikanti et al. 2022, arXiv:2205.05198): what matrix products and attention gave is kept, as they are dear to make
again; norms, activations, rotations and sums in between, which are cheap and take as much memory, are made again.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

ActivationCheckpointing = Literal["none", "selective", "full"]

_aten = torch.ops.aten
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)


def checkpoint_activations(model: Any, kind: ActivationCheckpointing) -> None:
    """Makes every layer of a model forget its activations in training; losses and gradients stay the same."""
    options: dict[str, Any] = {"use_reentrant": False}
    match kind:
        case "none":
            return
        case "full":
            pass
        case "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def _policy(_context: Any, operation: Any, *_arguments: Any, **_options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
