"""What of a run is neither parameters nor moments: numbers, and torch's random state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from workers.runner.training.selection import Selection


class RunState(BaseModel):
    """What of a run is numbers, not tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer steps completed."""
    position: int
    """The data position, as the objective counts it."""
    tokens_seen: int
    loss: float
    """The loss of the last step."""
    selection: Selection = Selection()
    identity: dict[str, str]
    """What must be equal for a checkpoint to be continued: hashes of base model, data and spec."""
    environment: dict[str, str]
    """What must be equal for it to be continued to the same bits: library versions, threads, device."""


def random_state() -> dict[str, Tensor]:
    """torch's random state on the CPU and on every GPU."""
    return {"cpu": torch.get_rng_state(), **{f"cuda.{index}": value for index, value in enumerate(_cuda_states())}}


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Puts back what `random_state` gave; a GPU that is not here is passed over."""
    torch.set_rng_state(state["cpu"])
    for index in range(len(_cuda_states())):
        if f"cuda.{index}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{index}"], index)


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
