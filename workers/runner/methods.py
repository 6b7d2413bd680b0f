"""The training methods and their settings, as the runner's spec names them. No torch here."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sft(_Model):
    """Supervised fine-tuning: the mean negative log-likelihood per target token."""

    name: Literal["sft"] = "sft"


Method: TypeAlias = Sft
"""What is minimised, told apart by `name`."""
