"""What the agent is told and what it answers; shared with the activity that starts it."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from control_plane.jobs.spec import StageTraining, TrainingSpec
from control_plane.jobs.specs.rlhf import AdaptationSpec
from workers.runner.methods import Method, Sft
from workers.workflows.contracts import (
    AttemptLoss,
    JobFailure,
    LeasedPhase,
    LeaseGrant,
    PhaseContext,
    PreparedData,
    Scores,
    TrainedModel,
)

RESULT_NAME = "agent_result.json"


class AgentExit(IntEnum):
    """What the agent adds to the runner's exit codes (workers/runner/exit_codes.py), which it passes on otherwise."""

    LEASE_LOST = 80
    """The lease ended, could not be renewed in time, or another attempt is current; the runner was killed."""
    RUNNER_CRASHED = 81
    """The runner died of a signal or of a fault of its own."""
    UNAVAILABLE = 82
    """The object store or the control plane could not be reached."""


class TrainStage(BaseModel):
    """What one training is: the part of the runner's `TrainSpec` that the job decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field(default=Sft(), discriminator="name")
    adaptation: AdaptationSpec = AdaptationSpec()
    training: TrainingSpec | StageTraining
    pass_tokens: int | None = None
    """As in `TrainSpec`."""

    @property
    def result_name(self) -> str:
        """The directory that the runner leaves below its output directory."""
        return "model" if self.adaptation.method == "full" else "adapter"


class AgentSpec(BaseModel):
    """One leased phase of one attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: LeasedPhase
    context: PhaseContext
    grant: LeaseGrant
    prepared: PreparedData
    stage: TrainStage | None = None
    """For TRAIN; None: the job is a fine-tune, and its spec says it."""
    trained: TrainedModel | None = None
    """For EVALUATE."""
    run_seconds_left: float
    workdir: Path
    cache_dir: Path
    threads: int = Field(ge=1)
    stop_grace_seconds: float = Field(gt=0)
    """From asking the runner to stop to killing it."""
    trace_parent: str = ""
    """W3C traceparent of the activity."""
    runner_environment: dict[str, str] = {}
    """Added to the runner's environment, such as which devices it may see."""


class AgentResult(BaseModel):
    """How the phase ended; exactly one field is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trained: TrainedModel | None = None
    scores: Scores | None = None
    failure: JobFailure | None = None
    loss: AttemptLoss | None = None
