"""Alignment to preferences or rewards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from control_plane.jobs.specs.fine_tune import DatasetRef, EvaluationSpec, GateSpec, LoraSpec, ResourceSpec, TrainingSpec
from control_plane.jobs.specs.references import DatasetPin, ModelVersionRef
from control_plane.jobs.specs.values import ResourceName, RuleError, SpecModel, Symbol, exactly_one, no_duplicates


class AdaptationSpec(SpecModel):
    """How much of a model is trained."""

    method: Literal["full", "lora", "qlora"] = "lora"
    lora: LoraSpec = LoraSpec()


class StageTraining(TrainingSpec):
    """The optimisation in one stage: AdamW with linear warm-up."""

    steps: int = Field(default=100, ge=1, le=1_000_000)
    max_tokens: int = Field(default=1_024, ge=8, le=131_072)
    learning_rate: float = Field(default=1e-6, gt=0.0, le=1.0)
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000)
    checkpoint_every_steps: int = Field(default=50, ge=1, le=100_000)
    learning_rate_schedule: Literal["linear", "cosine", "constant"] = "linear"


class WarmUpStage(SpecModel):
    """Supervised fine-tuning before the alignment."""

    dataset: DatasetRef
    training: StageTraining = StageTraining()


class PreferenceStage(SpecModel):
    """Preferences learned directly, without a reward model."""

    objective: Literal["dpo", "kto"] = "dpo"
    dataset: DatasetRef
    beta: float = Field(default=0.1, gt=0.0, le=10.0)
    label_smoothing: float = Field(default=0.0, ge=0.0, le=0.5)
    desirable_weight: float = Field(default=1.0, gt=0.0, le=100.0)
    undesirable_weight: float = Field(default=1.0, gt=0.0, le=100.0)
    training: StageTraining = StageTraining()

    @model_validator(mode="after")
    def _fits_objective(self) -> PreferenceStage:
        if self.objective == "kto" and self.label_smoothing:
            raise RuleError("label_smoothing", f"is {self.label_smoothing:g}; expected 0, since KTO has no pairs to mix up")
        for name in ("desirable_weight", "undesirable_weight"):
            if self.objective == "dpo" and (weight := getattr(self, name)) != 1.0:
                raise RuleError(name, f"is {weight:g}; expected 1, since DPO has both answers in every pair")
        return self


class RewardModelStage(SpecModel):
    """A reward model trained on preferences."""

    dataset: DatasetRef
    training: StageTraining = StageTraining()


class RewardModelSource(SpecModel):
    """A reward model, trained by the job or registered earlier."""

    train: RewardModelStage | None = None
    version: ModelVersionRef | None = None
    weight: float = Field(default=1.0, gt=0.0, le=100.0)

    @model_validator(mode="after")
    def _one(self) -> RewardModelSource:
        exactly_one(self, ("train", "version"))
        return self


class RewardFunction(SpecModel):
    """A function of the platform's registry that scores answers."""

    name: Symbol
    weight: float = Field(default=1.0, gt=0.0, le=100.0)


class GenerationSpec(SpecModel):
    """How answers are made."""

    max_prompt_tokens: int = Field(default=512, ge=1, le=131_072)
    max_new_tokens: int = Field(default=256, ge=1, le=32_768)
    temperature: float = Field(default=1.0, gt=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)


class PolicyStage(SpecModel):
    """A policy trained against rewards."""

    algorithm: Literal["ppo", "grpo", "rloo"] = "grpo"
    prompts: DatasetPin
    reward_model: RewardModelSource | None = None
    reward_functions: tuple[RewardFunction, ...] = Field(default=(), max_length=16, strict=False)
    kl_coefficient: float = Field(default=0.05, ge=0.0, le=10.0)
    num_generations: int = Field(default=8, ge=1, le=64)
    num_iterations: int = Field(default=1, ge=1, le=16)
    clip_range: float = Field(default=0.2, gt=0.0, le=1.0)
    generation: GenerationSpec = GenerationSpec()
    training: StageTraining = StageTraining()

    @model_validator(mode="after")
    def _consistent(self) -> PolicyStage:
        if self.reward_model is None and not self.reward_functions:
            raise RuleError("", "has nothing that gives rewards; expected reward_model or reward_functions")
        no_duplicates("reward_functions", tuple(function.name for function in self.reward_functions))
        if self.algorithm != "ppo" and self.num_generations < 2:
            raise RuleError(
                "num_generations",
                f"is {self.num_generations}; expected at least 2, since {self.algorithm.upper()} compares a prompt's answers",
            )
        batch = self.training.micro_batch_size * self.training.gradient_accumulation
        if batch % self.num_generations:
            raise RuleError(
                "num_generations",
                f"is {self.num_generations}; expected a divisor of training.micro_batch_size times "
                f"training.gradient_accumulation, which is {batch}, so that a prompt's answers stay together",
            )
        return self


class RlhfSpec(SpecModel):
    """Alignment: supervised warm-up if asked for, then preferences or a policy."""

    type: Literal["rlhf"] = "rlhf"
    base_model: ResourceName
    output_model: ResourceName
    adaptation: AdaptationSpec = AdaptationSpec()
    warm_up: WarmUpStage | None = None
    preference: PreferenceStage | None = None
    policy: PolicyStage | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    resources: ResourceSpec = ResourceSpec()

    @property
    def subject(self) -> str:
        """The model that the job is about."""
        return self.output_model

    @model_validator(mode="after")
    def _one_alignment(self) -> RlhfSpec:
        exactly_one(self, ("preference", "policy"))
        return self
