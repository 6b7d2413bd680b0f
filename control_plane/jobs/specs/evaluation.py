"""Evaluation alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from control_plane.jobs.specs.fine_tune import ResourceSpec
from control_plane.jobs.specs.references import DatasetPin, ModelVersionRef, SuiteRef
from control_plane.jobs.specs.values import (
    ColumnName,
    ResourceName,
    RuleError,
    Seed,
    SpecModel,
    Text,
    exactly_one,
    no_duplicates,
)


class SliceSpec(SpecModel):
    """The rows where a field has a value, scored on their own as well."""

    name: ResourceName
    field: ColumnName
    equals: Annotated[Text, StringConstraints(max_length=200)] = ""


class EvaluationJobSpec(SpecModel):
    """Suites and datasets over one model, whose scores are stored as evidence."""

    type: Literal["evaluation"] = "evaluation"
    base_model: ResourceName | None = None
    model: ModelVersionRef | None = None
    baseline: ModelVersionRef | None = None
    suites: tuple[SuiteRef, ...] = Field(default=(), max_length=32, strict=False)
    datasets: tuple[DatasetPin, ...] = Field(default=(), max_length=16, strict=False)
    slices: tuple[SliceSpec, ...] = Field(default=(), max_length=64, strict=False)
    batch_size: int = Field(default=8, ge=1, le=1_024)
    max_tokens: int = Field(default=1_024, ge=8, le=131_072)
    max_new_tokens: int = Field(default=256, ge=1, le=32_768)
    max_samples: int = Field(default=0, ge=0, le=1_000_000_000)
    seed: Seed = 0
    resources: ResourceSpec = ResourceSpec()

    @property
    def subject(self) -> str:
        """The model that the job is about."""
        return self.base_model or (self.model.model if self.model is not None else "")

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationJobSpec:
        exactly_one(self, ("base_model", "model"))
        if not self.suites and not self.datasets:
            raise RuleError("", "has nothing to evaluate on; expected suites or datasets")
        if self.slices and not self.datasets:
            raise RuleError("slices", "are parts of datasets, of which there are none; expected datasets, or no slices")
        no_duplicates("suites", tuple(suite.name for suite in self.suites))
        no_duplicates("datasets", tuple(dataset.name for dataset in self.datasets))
        no_duplicates("slices", tuple(part.name for part in self.slices))
        return self
