"""The domain's job specs: what `protos/headway/jobs/v1/job_spec.proto` says, enforced.

A resolved spec is a value: defaults are filled in and its canonical JSON has one SHA-256, which lineage records. The same
models are stored as JSONB, travel through Temporal, and reach the training process as a file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# ASCII only and anchored at both ends: `\w` and `$` would let look-alike letters and a trailing newline through.
_NAME_PATTERN = r"\A[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?\z"
_PROJECT_PATTERN = r"\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\z"
_KIND_PATTERN = r"\A[a-z0-9](?:[a-z0-9.-]{0,30}[a-z0-9])?\z"
_SHA256_PATTERN = r"\A[0-9a-f]{64}\z"
_PIN_PATTERN = r"\A(?:[0-9a-f]{64})?\z"
_TEXT_PATTERN = r"\A[^\x00]*\z"

PATTERN_MEANINGS = {
    _NAME_PATTERN: "expected 1 to 64 characters of [a-z0-9.-], a letter or digit at both ends",
    _PROJECT_PATTERN: "expected 1 to 63 characters of [a-z0-9-], a letter or digit at both ends",
    _KIND_PATTERN: "expected 1 to 32 characters of [a-z0-9.-], a letter or digit at both ends",
    _SHA256_PATTERN: "expected 64 lower-case hex digits",
    _PIN_PATTERN: "expected 64 lower-case hex digits, or nothing",
    _TEXT_PATTERN: "expected text without NUL",
}
"""What each pattern means to a person."""

ResourceName = Annotated[str, StringConstraints(pattern=_NAME_PATTERN)]
"""Name of a base model, dataset or registered model: 1 to 64 characters of [a-z0-9.-], letter or digit at both ends."""
ProjectName = Annotated[str, StringConstraints(pattern=_PROJECT_PATTERN)]
"""Name of a project: 1 to 63 characters of [a-z0-9-], letter or digit at both ends."""
Sha256Hex = Annotated[str, StringConstraints(pattern=_SHA256_PATTERN)]
"""A SHA-256 in lower-case hex."""
AcceleratorKind = Annotated[str, StringConstraints(pattern=_KIND_PATTERN)]
"""Kind of accelerator, or "any": 1 to 32 characters of [a-z0-9.-], letter or digit at both ends."""
Text = Annotated[str, StringConstraints(pattern=_TEXT_PATTERN)]
"""Text that PostgreSQL can hold: any character but NUL."""

_SEED_MAX = 2**31 - 1


class _Spec(BaseModel):
    """Closed, immutable, strict: no coercion of "8" to 8, no unknown field, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DatasetRef(_Spec):
    """A dataset of the job's project and how it is split."""

    name: ResourceName
    sha256: Annotated[str, StringConstraints(pattern=_PIN_PATTERN)] = ""
    eval_fraction: float = Field(default=0.09, ge=0.01, le=0.5)
    split_seed: int = Field(default=0, ge=0, le=_SEED_MAX)


class LoraSpec(_Spec):
    """Low-rank adaptation of every linear layer (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=8, ge=1, le=256)
    alpha: int = Field(default=16, ge=1, le=512)
    dropout: float = Field(default=0.0, ge=0.0, le=0.9)


class TrainingSpec(_Spec):
    """AdamW with linear warm-up and linear decay."""

    steps: int = Field(default=10, ge=1, le=1_000_000)
    micro_batch_size: int = Field(default=8, ge=1, le=1_024)
    gradient_accumulation: int = Field(default=1, ge=1, le=1_024)
    max_tokens: int = Field(default=96, ge=8, le=131_072)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    warmup_steps: int = Field(default=2, ge=0)
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1_000.0)
    seed: int = Field(default=0, ge=0, le=_SEED_MAX)
    checkpoint_every_steps: int = Field(default=4, ge=1, le=100_000)

    @model_validator(mode="before")
    @classmethod
    def _default_warmup(cls, fields: Any) -> Any:
        # The default must not make a short job illegal, and once resolved it must be as legal as if it had been asked for.
        if isinstance(fields, dict) and fields.get("steps") == 1:
            return {"warmup_steps": 1, **fields}
        return fields

    @model_validator(mode="after")
    def _warmup_within_steps(self) -> TrainingSpec:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; expected at most steps, which is {self.steps}")
        return self


class EvaluationSpec(_Spec):
    """What is measured on the held-out rows, for base and tuned model by one process."""

    batch_size: int = Field(default=8, ge=1, le=1_024)
    sample_prompts: tuple[Annotated[Text, StringConstraints(min_length=1, max_length=2_000)], ...] = Field(
        default=(), max_length=8, strict=False
    )
    max_new_tokens: int = Field(default=32, ge=1, le=1_024)


class GateSpec(_Spec):
    """What the tuned model must reach to be registered."""

    min_gain_standard_errors: float = Field(default=2.0, ge=0.0, le=100.0)


class ResourceSpec(_Spec):
    """What one leased phase holds."""

    accelerators: int = Field(default=1, ge=1, le=4_096)
    accelerator_kind: AcceleratorKind = "any"
    max_run_seconds: int = Field(default=3_600, ge=1, le=2_592_000)


class FineTuneSpec(_Spec):
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


# A discriminated union over `type` as soon as there is a second job type; the alias is what everything else names.
JobSpec = FineTuneSpec


def canonical_sha256(value: BaseModel | dict[str, object]) -> str:
    """SHA-256 in hex of the canonical JSON of `value`: keys sorted, no white space, so that field order cannot matter."""
    content = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
