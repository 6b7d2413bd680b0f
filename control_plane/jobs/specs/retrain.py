"""Continuous retraining."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from control_plane.jobs.specs import cron
from control_plane.jobs.specs.fine_tune import FineTuneSpec
from control_plane.jobs.specs.values import (
    ACCELERATOR_SECONDS_MAX,
    CronText,
    ResourceName,
    RuleError,
    SpecModel,
)

COST_MICROS_MAX = 10**15
"""A milliard of the currency."""


class ScheduleTrigger(SpecModel):
    """Fires at certain times, in UTC."""

    cron: CronText

    @model_validator(mode="after")
    def _comes_to_pass(self) -> ScheduleTrigger:
        try:
            cron.parse(self.cron)
        except ValueError as error:
            raise RuleError("cron", str(error)) from None
        return self


class NewDataTrigger(SpecModel):
    """Fires when the dataset has grown since the last run."""

    min_new_rows: int = Field(default=1_000, ge=1, le=1_000_000_000)


class DriftTrigger(SpecModel):
    """Fires when a monitor of the project reports drift."""

    monitor: ResourceName
    threshold: float = Field(gt=0.0, le=1_000_000.0)
    windows: int = Field(default=3, ge=1, le=1_000)


class RetrainTriggers(SpecModel):
    """When a retraining runs: any of those set fires it."""

    schedule: ScheduleTrigger | None = None
    new_data: NewDataTrigger | None = None
    drift: DriftTrigger | None = None

    @model_validator(mode="after")
    def _any(self) -> RetrainTriggers:
        if self.schedule is None and self.new_data is None and self.drift is None:
            raise RuleError("", "has no trigger; expected schedule, new_data or drift")
        return self


class RetrainBudget(SpecModel):
    """What all runs of a period may use together."""

    max_accelerator_seconds: int = Field(default=0, ge=0, le=ACCELERATOR_SECONDS_MAX)
    max_cost_micros: int = Field(default=0, ge=0, le=COST_MICROS_MAX)

    @model_validator(mode="after")
    def _bounded(self) -> RetrainBudget:
        if not self.max_accelerator_seconds and not self.max_cost_micros:
            raise RuleError("", "limits nothing; expected max_accelerator_seconds or max_cost_micros above 0")
        return self


class RetrainSpec(SpecModel):
    """The same fine-tuning again, on a schedule, on new data or on drift."""

    type: Literal["retrain"] = "retrain"
    fine_tune: FineTuneSpec
    triggers: RetrainTriggers
    min_interval_seconds: int = Field(default=86_400, ge=60, le=31_536_000)
    max_runs_per_period: int = Field(default=30, ge=1, le=1_000)
    period_seconds: int = Field(default=2_592_000, ge=3_600, le=31_536_000)
    budget: RetrainBudget
    max_run_seconds: int = Field(default=31_536_000, ge=60, le=315_360_000)
    target_alias: ResourceName = "dev"

    @property
    def subject(self) -> str:
        """The model that the job is about."""
        return self.fine_tune.output_model

    @model_validator(mode="after")
    def _data_can_grow(self) -> RetrainSpec:
        if self.triggers.new_data is not None and self.fine_tune.dataset.sha256:
            raise RuleError(
                "fine_tune.dataset.sha256",
                "pins bytes that never grow, and triggers.new_data waits for growth; expected nothing here",
            )
        return self
