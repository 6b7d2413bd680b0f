"""Hyperparameter search."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.fields import FieldInfo

from control_plane.jobs.specs.fine_tune import FineTuneSpec, LoraSpec, TrainingSpec
from control_plane.jobs.specs.values import (
    ACCELERATOR_SECONDS_MAX,
    MetricName,
    RuleError,
    Seed,
    SpecModel,
    exactly_one,
    no_duplicates,
    shown_key,
)

SEARCHABLE: dict[str, FieldInfo] = {
    f"{part}.{name}": model.model_fields[name]
    for part, model, names in (
        ("lora", LoraSpec, ("rank", "alpha", "dropout")),
        (
            "training",
            TrainingSpec,
            (
                "micro_batch_size",
                "gradient_accumulation",
                "max_tokens",
                "learning_rate",
                "warmup_steps",
                "weight_decay",
                "max_grad_norm",
                "seed",
            ),
        ),
    )
    for name in names
}
"""What a search may vary, by path below the trial. Steps are not among them: halving decides how far a trial gets."""

_NUMBER_MAX = 1e12
Number = Annotated[float, Field(ge=-_NUMBER_MAX, le=_NUMBER_MAX)]


class RealRange(SpecModel):
    """Real numbers between two bounds."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> RealRange:
        _require_order(self.low, self.high, log=self.log)
        return self


class WholeRange(SpecModel):
    """Whole numbers between two bounds."""

    low: Seed
    high: Seed
    step: int = Field(default=1, ge=1, le=1_000_000)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> WholeRange:
        _require_order(self.low, self.high, log=self.log)
        if self.log and self.step != 1:
            raise RuleError("step", f"is {self.step}; expected 1, or log left out: a logarithmic scale has no even steps")
        return self


def _require_order(low: float, high: float, *, log: bool) -> None:
    if high <= low:
        raise RuleError("high", f"is {high}; expected more than low, which is {low}")
    if log and low <= 0:
        raise RuleError("low", f"is {low}; expected more than 0, or log left out")


class NumberChoices(SpecModel):
    """Some numbers and no others."""

    numbers: tuple[Number, ...] = Field(min_length=1, max_length=64, strict=False)

    @model_validator(mode="after")
    def _each_once(self) -> NumberChoices:
        no_duplicates("numbers", self.numbers)
        return self


class SearchDimension(SpecModel):
    """The values one field may take."""

    real: RealRange | None = None
    whole: WholeRange | None = None
    choices: NumberChoices | None = None

    @model_validator(mode="after")
    def _one(self) -> SearchDimension:
        exactly_one(self, ("real", "whole", "choices"))
        return self

    def extremes(self) -> dict[str, float]:
        """The numbers that decide whether all are legal, by path below the dimension."""
        if self.choices is not None:
            return {f"choices.numbers[{index}]": number for index, number in enumerate(self.choices.numbers)}
        name, bounds = ("whole", self.whole) if self.whole is not None else ("real", self.real)
        return {} if bounds is None else {f"{name}.low": bounds.low, f"{name}.high": bounds.high}


class HalvingSpec(SpecModel):
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934)."""

    eta: int = Field(default=3, ge=2, le=10)
    min_steps: int = Field(default=1, ge=1, le=1_000_000)


class ObjectiveSpec(SpecModel):
    """What makes a trial better than another."""

    metric: MetricName = "tuned_loss"
    direction: Literal["minimize", "maximize"] = "minimize"


def _in_order(dimensions: dict[str, SearchDimension]) -> dict[str, SearchDimension]:
    # A map has no order, and equal specs have one hash.
    return dict(sorted(dimensions.items()))


class HpoSpec(SpecModel):
    """Hyperparameter search over fine-tuning jobs."""

    type: Literal["hpo"] = "hpo"
    trial: FineTuneSpec
    search_space: Annotated[dict[str, SearchDimension], AfterValidator(_in_order)] = Field(min_length=1, max_length=16)
    sampler: Literal["random", "tpe", "grid"] = "tpe"
    halving: HalvingSpec | None = None
    max_trials: int = Field(default=27, ge=1, le=10_000)
    max_parallel_trials: int = Field(default=4, ge=1, le=1_000)
    objective: ObjectiveSpec = ObjectiveSpec()
    seed: Seed = 0
    max_run_seconds: int = Field(default=86_400, ge=1, le=7_776_000)
    max_accelerator_seconds: int = Field(default=0, ge=0, le=ACCELERATOR_SECONDS_MAX)

    @property
    def subject(self) -> str:
        """The model that the job is about."""
        return self.trial.output_model

    @model_validator(mode="before")
    @classmethod
    def _default_parallel(cls, fields: object) -> object:
        # As with the warm-up: the default must not make a small search illegal.
        if isinstance(fields, dict) and isinstance(most := fields.get("max_trials"), int) and 1 <= most < 4:
            return {"max_parallel_trials": most, **fields}
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> HpoSpec:
        if self.max_parallel_trials > self.max_trials:
            raise RuleError(
                "max_parallel_trials", f"is {self.max_parallel_trials}; expected at most max_trials, which is {self.max_trials}"
            )
        steps = self.trial.training.steps
        if self.halving is not None and self.halving.min_steps > steps:
            raise RuleError(
                "halving.min_steps", f"is {self.halving.min_steps}; expected at most trial.training.steps, which is {steps}"
            )
        self._bounded()
        for path, dimension in self.search_space.items():
            self._searchable(path, dimension)
        return self

    def _bounded(self) -> None:
        resources = self.trial.resources
        # A trial trains under one lease and is evaluated under another.
        most = self.max_trials * 2 * resources.accelerators * resources.max_run_seconds
        if most > ACCELERATOR_SECONDS_MAX and not self.max_accelerator_seconds:
            raise RuleError(
                "max_trials",
                f"is {self.max_trials}: together the trials may use {most:,} accelerator-seconds; expected at most "
                f"{ACCELERATOR_SECONDS_MAX:,}; lower it or trial.resources, or set max_accelerator_seconds",
            )

    def _searchable(self, path: str, dimension: SearchDimension) -> None:
        here = f"search_space[{shown_key(path)}]"
        field = SEARCHABLE.get(path)
        if field is None:
            raise RuleError(here, f"cannot be searched; expected one of {', '.join(SEARCHABLE)}")
        part, name = path.split(".")
        if part == "training" and name in self.trial.training.auto:
            raise RuleError(here, "is chosen by the platform (trial.training.auto); expected to be in one of the two places")
        if self.sampler == "grid" and dimension.real is not None:
            raise RuleError(f"{here}.real", "has no end of numbers; expected whole or choices for a grid")
        whole = field.annotation is int
        if whole and dimension.real is not None:
            raise RuleError(f"{here}.real", f"is of real numbers; expected whole or choices, since {path} is a whole number")
        for where, number in dimension.extremes().items():
            if (limit := _broken_limit(field, number)) or (whole and number % 1):
                raise RuleError(f"{here}.{where}", f"is {number:g}; expected {limit or 'a whole number'}, as {path} demands")
            if path == "training.warmup_steps" and number > self.trial.training.steps:
                raise RuleError(
                    f"{here}.{where}",
                    f"is {number:g}; expected at most trial.training.steps, which is {self.trial.training.steps}",
                )


def _broken_limit(field: FieldInfo, number: float) -> str:
    """Which of the field's own limits a number breaks; empty if it keeps them."""
    for rule in field.metadata:
        if (least := getattr(rule, "ge", None)) is not None and not number >= least:
            return f"at least {least}"
        if (below := getattr(rule, "gt", None)) is not None and not number > below:
            return f"more than {below}"
        if (most := getattr(rule, "le", None)) is not None and not number <= most:
            return f"at most {most}"
    return ""


def grid_size(spec: HpoSpec) -> int:
    """How many combinations a grid has."""
    sizes = (
        len(dimension.choices.numbers)
        if dimension.choices is not None
        else 0
        if dimension.whole is None
        else 1 + (dimension.whole.high - dimension.whole.low) // dimension.whole.step
        for dimension in spec.search_space.values()
    )
    return math.prod(sizes)
