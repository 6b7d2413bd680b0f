"""A head that gives one number for a document, as reward models have, read from the hidden state of its last token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.models.documents import Documents, hidden_states
from workers.runner.models.loading import device

HEAD_NAME = "head.safetensors"
_WEIGHT = "score.weight"


class ScoringHead:
    """A linear map without bias from the hidden state to the score. weight: (1, hidden size), fp32."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = Parameter(weight)

    @classmethod
    def fresh(cls, model: Any, seed: int) -> ScoringHead:
        """Drawn as transformers draws the head of a sequence classifier."""
        weight = torch.empty(1, model.config.hidden_size)
        torch.nn.init.normal_(weight, std=model.config.initializer_range, generator=torch.Generator().manual_seed(seed))
        return cls(weight.to(device()))

    @classmethod
    def load(cls, folder: Path) -> ScoringHead:
        """The head in a result that a reward model's training left.

        Raises:
            RunnerError: INTEGRITY if there is none.
        """
        path = folder / HEAD_NAME
        tensors = load_file(path) if path.is_file() else {}
        if tensors.keys() != {_WEIGHT}:
            raise RunnerError(
                FailureKind.INTEGRITY, f"{HEAD_NAME}: expected {_WEIGHT}, as reward models have it, found {[*tensors]}"
            )
        return cls(tensors[_WEIGHT].to(device()))

    def parameters(self) -> Mapping[str, Parameter]:
        """By the names they are saved with."""
        return {_WEIGHT: self._weight}

    def scores(self, model: Any, documents: Documents) -> Tensor:
        """(N,), fp32: the score of each of N documents."""
        last = torch.tensor(documents.ends, device=documents.tokens.device) - 1
        # No matrix product, which autocast would make in bfloat16.
        return (hidden_states(model, documents)[last].float() * self._weight).sum(-1)
