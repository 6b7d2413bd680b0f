"""What goes into the runner programs and what comes out, as models that their callers share. No torch here.

`python -m workers.runner.<program> SPEC.json` reads its spec from a file and writes `<output_dir>/result.json`, atomically:
one of `{"ok": ...}`, `{"failure": ...}` and `{"preempted": ...}`, in agreement with the exit code (exit_codes.py). A result
file from an earlier run in the same folder is removed before anything else happens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from control_plane.jobs.spec import Sha256Hex, StageTraining, TrainingSpec
from control_plane.jobs.specs.rlhf import AdaptationSpec
from dataset_checks.formats import RowFormat
from workers.runner.methods import Kto, Method, Sft
from workers.workflows.contracts import JobFailure, Sample

RESULT_NAME = "result.json"
OkT = TypeVar("OkT", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunnerSpec(_Model):
    """What every program is told."""

    output_dir: Path
    """Where results go; made if it is not there."""


class ImportBaseModelSpec(RunnerSpec):
    """`import_base_model`: turn a GGUF file into safetensors, in `<output_dir>/model/`."""

    source_path: Path
    source_sha256: Sha256Hex


class ImportBaseModelOk(_Model):
    """What was imported: the class that loads it, and its number of parameters."""

    architecture: str
    parameters: int


class PrepareSpec(RunnerSpec):
    """`prepare`: validate, tokenise and split a dataset into `<output_dir>/data/`."""

    dataset_path: Path
    """JSON lines, CSV or Parquet: see dataset_checks.formats."""
    row_format: RowFormat | None = None
    """What rows must be made of. None: prompts with completions, or messages."""
    base_model_dir: Path
    max_tokens: int = Field(ge=8)
    eval_fraction: float = Field(gt=0.0, le=0.5)
    split_seed: int = Field(ge=0)


class PrepareOk(_Model):
    """What was prepared. Tokens are those that carry loss: completions with their end-of-turn token."""

    train_rows: int
    eval_rows: int
    train_tokens: int
    eval_tokens: int
    duplicate_rows: int
    """Rows left out because the same pair came earlier."""
    truncated_rows: int
    """Rows cut at `max_tokens`."""
    truncated_tokens: int
    """Completion tokens lost by that."""


class SelectionSpec(_Model):
    """Choosing among a run's steps by the method's loss on held-out rows."""

    every_steps: int = Field(ge=1)
    """Optimizer steps between two evaluations; the last step is evaluated too."""
    patience: int | None = Field(default=None, ge=1)
    """The run stops early after so many evaluations in a row without gain; None: it never does."""
    min_gain: float = Field(default=0.0, ge=0.0)
    """By how much a loss must be below the best before it to be a gain."""


class TrainSpec(RunnerSpec):
    """`train`: one training by one method.

    Checkpoints are in `<output_dir>/checkpoints/`, the result is in `<output_dir>/adapter/`, or `<output_dir>/model/` if every
    weight is trained; parameters beside the model's, such as a reward model's head, are with it as head.safetensors.

    When `max_run_seconds` have passed since the program's start it saves after the optimizer step in hand and ends with
    failure RUN_TIME_EXCEEDED (exit code USER_ERROR): the caller passes what is left of the job's limit, so there is nothing to
    try again. The checkpoint is kept all the same.
    """

    base_model_dir: Path
    train_path: Path
    """Rows as `prepare` wrote them, in the method's format: docs/reference/runner.md."""
    eval_path: Path | None = None
    """Held-out rows of the same format, to measure the method's loss on."""
    method: Method = Field(default=Sft(), discriminator="name")
    adaptation: AdaptationSpec = AdaptationSpec()
    training: TrainingSpec | StageTraining
    threads: int = Field(ge=1, le=1_024)
    """Threads of matrix products. On CPU the result is a function of it, to the last bit."""
    processes: int = Field(default=1, ge=1, le=64)
    """Processes on this machine that share the model (FSDP2) and the passes of a step, one for each GPU if there are any.
    `training.gradient_accumulation` is then a multiple of it. Started by torchrun instead, as many as it says."""
    resume_from: Path | None = None
    """A checkpoint directory of the same run, verified before use."""
    max_run_seconds: float = Field(gt=0.0)
    pass_tokens: int | None = Field(default=None, ge=1)
    """If given, a pass takes as many rows as have so many tokens together, at least 1, at most `training.micro_batch_size`."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Which of a layer's activations the backward pass makes again instead of keeping them: less memory for more time."""
    compile_layers: bool = False
    """Compile the model's layers, on a GPU; on the CPU nothing is compiled. Not beside activation checkpointing."""
    max_norm_ratio: float = Field(default=1e4, gt=1.0)
    """The numeric guard stops a run whose gradient's norm is more than so many times `training.max_grad_norm`."""

    selection: SelectionSpec | None = None
    """If given, the result is not what the last step left but the best that the evaluations found."""

    @model_validator(mode="after")
    def _can_select(self) -> TrainSpec:
        if self.selection is not None and self.eval_path is None:
            raise ValueError("selection compares losses on held-out rows; expected eval_path")
        return self

    @model_validator(mode="after")
    def _can_compile(self) -> TrainSpec:
        if self.compile_layers and self.activation_checkpointing != "none":
            raise ValueError("a layer that is made again is not compiled; expected compile_layers or activation_checkpointing")
        return self

    @model_validator(mode="after")
    def _has_other_answers(self) -> TrainSpec:
        if isinstance(self.method, Kto) and self.training.micro_batch_size * self.training.gradient_accumulation < 2:
            raise ValueError("KTO compares a step's answers; expected micro_batch_size times gradient_accumulation above 1")
        return self


class TrainOk(_Model):
    """What was trained."""

    final_loss: float
    """The method's loss over the last optimizer step; for supervised fine-tuning in nats per target token."""
    steps: int
    tokens_per_second: float
    """Tokens, prompts included, that went through the model per second of this attempt's steps; 0 if it made none."""
    resumed_from_step: int
    """0 for a run from the start."""
    best_step: int | None = None
    """The step whose weights are the result, where they were selected."""
    best_eval_loss: float | None = None
    """Its loss on the held-out rows."""


class EvaluateSpec(RunnerSpec):
    """`evaluate`: score base and tuned model on the held-out rows; every row's loss in `<output_dir>/records/`."""

    base_model_dir: Path
    adapter_dir: Path
    eval_path: Path
    batch_size: int = Field(ge=1)
    sample_prompts: tuple[str, ...] = ()
    max_new_tokens: int = Field(ge=1)
    threads: int = Field(ge=1, le=1_024)


class EvaluateOk(_Model):
    """What was found; the fields are those of `contracts.Scores`, without `records`."""

    base_loss: float
    base_loss_se: float
    tuned_loss: float
    tuned_loss_se: float
    gain: float
    gain_se: float
    rows: int
    samples: tuple[Sample, ...]


class Preemption(_Model):
    """How far a program came that was asked to stop."""

    step: int
    checkpoint: Path | None = None


class ResultFile(_Model, Generic[OkT]):
    """The content of result.json; exactly one field is set."""

    ok: SerializeAsAny[OkT] | None = None
    failure: JobFailure | None = None
    preempted: Preemption | None = None


def read_result(output_dir: Path, ok_type: type[OkT]) -> ResultFile[OkT]:
    """Reads what a program left in its output directory.

    Raises:
        FileNotFoundError: it left nothing, as a program does that died.
        pydantic.ValidationError: the file is not a result of that program.
    """
    return ResultFile[ok_type].model_validate_json((output_dir / RESULT_NAME).read_bytes())
