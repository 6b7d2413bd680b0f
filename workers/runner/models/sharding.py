"""Tensors of which every process holds a part (torch's DTensor), and whole ones, dealt with alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

ArgumentT = TypeVar("ArgumentT")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, held as `pattern` is: on its device, and in parts if it is in parts."""
    value = value.to(pattern.device)
    return distribute_tensor(value, pattern.device_mesh, pattern.placements) if isinstance(pattern, DTensor) else value


def assign(target: Tensor, value: Tensor) -> None:
    """Replaces what a tensor holds by a whole one of its shape."""
    with torch.no_grad():
        target.copy_(like(value, target))


def shard(model: Any, functions: tuple[Callable[[Any, Any], Any], ...]) -> None:
    """Splits a model's weights among the processes, layer by layer (FSDP2; Zhao et al. 2023, arXiv:2304.11277).

    Args:
        model: a causal language model from transformers.
        functions: what is done with it other than by calling it; `through` runs them with the weights gathered.
    """
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    for function in functions:
        setattr(model, _method(function), MethodType(function, model))
        register_fsdp_forward_method(model, _method(function))


def through(model: Any, function: Callable[[Any, ArgumentT], Tensor], argument: ArgumentT) -> Tensor:
    """`function(model, argument)`, with the weights at hand if the model is sharded."""
    return getattr(model, _method(function), partial(function, model))(argument)


def _method(function: Callable[..., Any]) -> str:
    return f"headway_{function.__name__}"
