"""Supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from control_plane.jobs.specs.values import AcceleratorKind, Pin, ResourceName, RuleError, Seed, SpecModel, Text


class DatasetRef(SpecModel):
    """A dataset of the job's project and how it is split."""

    name: ResourceName
    sha256: Pin = ""
    eval_fraction: float = Field(default=0.09, ge=0.01, le=0.5)
    split_seed: Seed = 0


class LoraSpec(SpecModel):
    """Low-rank adaptation of every linear layer (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=8, ge=1, le=256)
    alpha: int = Field(default=16, ge=1, le=512)
    dropout: float = Field(default=0.0, ge=0.0, le=0.9)


AutoField = Literal[
    "checkpoint_every_steps", "gradient_accumulation", "learning_rate", "max_tokens", "micro_batch_size", "warmup_steps"
]
"""A field that the platform chooses when asked to; `specs.auto` has the rules."""


def _each_once(names: tuple[AutoField, ...]) -> tuple[AutoField, ...]:
    if len(set(names)) != len(names):
        raise ValueError("names a field for the second time; expected each once")
    # Their order means nothing, and equal specs have one hash.
    return tuple(sorted(names))


class TrainingSpec(SpecModel):
    """AdamW with linear warm-up and linear decay."""

    steps: int = Field(default=10, ge=1, le=1_000_000)
    micro_batch_size: int = Field(default=8, ge=1, le=1_024)
    gradient_accumulation: int = Field(default=1, ge=1, le=1_024)
    max_tokens: int = Field(default=96, ge=8, le=131_072)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    warmup_steps: int = Field(default=2, ge=0, le=1_000_000)
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1_000.0)
    seed: Seed = 0
    checkpoint_every_steps: int = Field(default=4, ge=1, le=100_000)
    auto: Annotated[tuple[AutoField, ...], AfterValidator(_each_once)] = Field(default=(), max_length=6, strict=False)
    """The fields whose values the platform chose."""

    @model_validator(mode="before")
    @classmethod
    def _default_warmup(cls, fields: Any) -> Any:
        # The default must not make a short job illegal, and once resolved it must be as legal as if it had been asked for.
        if isinstance(fields, dict) and fields.get("steps") == 1:
            return {"warmup_steps": min(1, cls.model_fields["warmup_steps"].default), **fields}
        return fields

    @model_validator(mode="after")
    def _warmup_within_steps(self) -> TrainingSpec:
        if self.warmup_steps > self.steps:
            raise RuleError("warmup_steps", f"is {self.warmup_steps}; expected at most steps, which is {self.steps}")
        return self


class EvaluationSpec(SpecModel):
    """What is measured on the held-out rows, for base and tuned model by one process."""

    batch_size: int = Field(default=8, ge=1, le=1_024)
    sample_prompts: tuple[Annotated[Text, StringConstraints(min_length=1, max_length=2_000)], ...] = Field(
        default=(), max_length=8, strict=False
    )
    max_new_tokens: int = Field(default=32, ge=1, le=1_024)


class GateSpec(SpecModel):
    """What the tuned model must reach to be registered."""

    min_gain_standard_errors: float = Field(default=2.0, ge=0.0, le=100.0)


class ResourceSpec(SpecModel):
    """What one leased phase holds."""

    accelerators: int = Field(default=1, ge=1, le=4_096)
    accelerator_kind: AcceleratorKind = "any"
    max_run_seconds: int = Field(default=3_600, ge=1, le=2_592_000)


class FineTuneSpec(SpecModel):
    """Supervised fine-tuning."""

    type: Literal["fine_tune"] = "fine_tune"
    base_model: ResourceName
    dataset: DatasetRef
    output_model: ResourceName
    lora: LoraSpec = LoraSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    resources: ResourceSpec = ResourceSpec()

    @property
    def subject(self) -> str:
        """The model that the job is about."""
        return self.output_model
