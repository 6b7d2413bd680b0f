"""The training methods and their settings, as the runner's spec names them. No torch here."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sft(_Model):
    """Supervised fine-tuning: the mean negative log-likelihood per target token."""

    name: Literal["sft"] = "sft"


class Dpo(_Model):
    """Direct preference optimisation over pairs (Rafailov et al. 2023, arXiv:2305.18290)."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0.0, le=10.0)
    label_smoothing: float = Field(default=0.0, ge=0.0, le=0.5)
    """The share of pairs taken to be marked the wrong way round (Mitchell 2023)."""


class Kto(_Model):
    """Kahneman-Tversky optimisation over single answers (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    name: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0.0, le=10.0)
    desirable_weight: float = Field(default=1.0, gt=0.0, le=100.0)
    undesirable_weight: float = Field(default=1.0, gt=0.0, le=100.0)


class RewardModel(_Model):
    """A reward model trained on pairs (Ouyang et al. 2022, arXiv:2203.02155)."""

    name: Literal["reward_model"] = "reward_model"


Method: TypeAlias = Sft | Dpo | Kto | RewardModel
"""What is minimised, told apart by `name`."""
