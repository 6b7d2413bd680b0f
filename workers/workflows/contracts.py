"""Every value that crosses a workflow's boundary. Fields are only ever added.

One model in, one out, for each workflow, activity and signal; carried by Temporal's pydantic converter.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from control_plane.jobs.spec import FineTuneSpec
from control_plane.jobs.states import FailureKind


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobInput(_Message):
    """What the scheduler starts a job's workflow with. The workflow's id is the job's id."""

    job_id: str
    project: str
    spec: FineTuneSpec
    spec_sha256: str
    dataset_uri: str
    """Where the dataset's bytes are; their hash is `spec.dataset.sha256`."""
    base_model_uri: str
    """Where the base model's bytes are."""
    base_model_sha256: str
    trace_id: str
    attempt: int = 0
    """The job's attempt when this workflow began: 0, or more when it replaces one that Temporal lost."""
    pause: int = 0
    """The pause that held when this workflow began; 0: none."""


class MembersOnNode(_Message):
    """Part of where a lease is placed."""

    node: str
    """Name of the GPU worker."""
    members: int
    """Members of the gang on it, each with an equal part of the lease's accelerators."""


class LeaseGrant(_Message):
    """Signal `lease_granted`: a lease asked for is held from now on."""

    lease_id: str
    attempt: int
    """The job's attempt from now on; every write under the lease names it."""
    worker: str
    """Name of the GPU worker that the first member is on; the phase runs on that worker's task queue."""
    accelerators: int
    """Of all members."""
    accelerator_kind: str
    placement: tuple[MembersOnNode, ...] = ()
    """Where the members are, in order of node; empty in grants from before gangs: one member, on `worker`."""


class LeaseEnd(_Message):
    """Signal `lease_lost`: a lease ended under its holder (not renewed, or its worker is gone)."""

    lease_id: str
    reason: str


class PauseOrder(_Message):
    """Signal `pause`: the job is to hold still, without a lease, until it is resumed."""

    pause: int
    """Its number; pauses count 1, 2, 3, … within a job."""
    reason: str = ""


class ResumeOrder(_Message):
    """Signal `resume`: the job goes on."""

    pause: int
    """The pause that ends, and with it every earlier one."""


class PreemptOrder(_Message):
    """Signal `preempt`: a lease is to be given back, and a new one asked for."""

    lease_id: str
    reason: str = ""


class DataViolation(_Message):
    """One fault of one place in the user's data. As headway.jobs.v1.Violation."""

    path: str
    line: int
    code: str
    message: str


class JobFailure(_Message):
    """Why a job failed. As headway.jobs.v1.Failure."""

    kind: FailureKind
    message: str
    violations: tuple[DataViolation, ...] = ()
    violation_count: int = 0


class StoredFiles(_Message):
    """A set of files in the object store, named by the manifest that holds the hash of each."""

    manifest_uri: str
    manifest_sha256: str


class PhaseContext(_Message):
    """What every activity is told."""

    job: JobInput
    attempt: int


class PreparedData(_Message):
    """What the PREPARE phase made."""

    dataset: StoredFiles
    """train.jsonl and eval.jsonl: tokenised rows, and statistics.json."""
    base_model: StoredFiles
    """The base model as safetensors with tokenizer and configuration."""
    train_rows: int
    eval_rows: int
    train_tokens: int
    """Tokens that are trained on, per pass over the data."""
    eval_tokens: int


class LeasedPhase(StrEnum):
    """The phases that hold a lease."""

    TRAIN = "TRAIN"
    EVALUATE = "EVALUATE"


class RequestLease(_Message):
    """Asks the control plane for a lease."""

    context: PhaseContext
    lease_id: str
    phase: LeasedPhase


class ReleaseLease(_Message):
    """Gives a lease back."""

    context: PhaseContext
    lease_id: str
    outcome: str
    """"completed", "failed", "cancelled", "lost", "preempted" or "paused"."""
    reason: str = ""
    """Why, when lost, preempted or paused."""


class ConfirmPause(_Message):
    """Says that the job holds still."""

    context: PhaseContext
    pause: int


class TrainInput(_Message):
    """What the TRAIN activity is given."""

    context: PhaseContext
    grant: LeaseGrant
    prepared: PreparedData
    run_seconds_left: float
    """What earlier attempts left of the spec's `max_run_seconds`."""


class TrainedModel(_Message):
    """What the TRAIN phase made."""

    adapter: StoredFiles
    final_loss: float
    steps: int
    tokens_per_second: float


class EvaluateInput(_Message):
    """What the EVALUATE activity is given."""

    context: PhaseContext
    grant: LeaseGrant
    prepared: PreparedData
    trained: TrainedModel
    run_seconds_left: float
    """What earlier attempts left of the spec's `max_run_seconds`."""


class Sample(_Message):
    """One prompt and what both models say to it."""

    prompt: str
    before: str
    after: str


class Scores(_Message):
    """What the EVALUATE phase found.

    Losses are nats per held-out target token, averaged over rows, each with its standard error. `gain` is the mean over
    rows of base loss minus tuned loss, with the standard error of that paired mean.
    """

    base_loss: float
    base_loss_se: float
    tuned_loss: float
    tuned_loss_se: float
    gain: float
    gain_se: float
    rows: int
    samples: tuple[Sample, ...]
    records: StoredFiles
    """The loss of every row under both models."""


class GateInput(_Message):
    """What the GATE activity is given."""

    context: PhaseContext
    scores: Scores


class GateDecision(_Message):
    """What the gate said."""

    passed: bool
    explanation: str


class PackageInput(_Message):
    """What the PACKAGE activity is given."""

    context: PhaseContext
    prepared: PreparedData
    trained: TrainedModel
    scores: Scores


class Package(_Message):
    """What the PACKAGE phase made: adapter, tokenizer, configuration, evaluation, model card."""

    files: StoredFiles


class RegisterInput(_Message):
    """What the REGISTER activity is given."""

    context: PhaseContext
    package: Package
    scores: Scores


class RegisteredModel(_Message):
    """What the REGISTER phase made."""

    model: str
    version: int
    mlflow_version: str
    alias: str


class FinishJob(_Message):
    """Moves the job to its final state."""

    context: PhaseContext
    state: str
    """SUCCEEDED, FAILED or CANCELLED."""
    failure: JobFailure | None = None


class FinishedJob(_Message):
    """The state the job ended in, which Postgres decides: a cancel asked for first wins over success."""

    state: str


class LossReason(StrEnum):
    """Why an attempt ended without a verdict on the job. All but PREEMPTED, DISPLACED and PAUSED count as lost."""

    RUNNER_CRASHED = "RUNNER_CRASHED"
    """The runner died of a signal, or of a fault of its own."""
    AGENT_LOST = "AGENT_LOST"
    """The agent or its worker died, or was silent for longer than the heartbeat timeout."""
    LEASE_LOST = "LEASE_LOST"
    """The lease was not renewed in time, or its worker is gone."""
    NOT_STARTED = "NOT_STARTED"
    """The worker that holds the lease did not pick the phase up."""
    PLATFORM_UNAVAILABLE = "PLATFORM_UNAVAILABLE"
    """The object store or the control plane could not be reached for too long."""
    PREEMPTED = "PREEMPTED"
    """The runner stopped at a checkpoint because its worker was asked to stop."""
    DISPLACED = "DISPLACED"
    """The runner stopped at a checkpoint because somebody asked for its lease."""
    PAUSED = "PAUSED"
    """The runner stopped at a checkpoint, or the request for a lease was withdrawn, because the job is to pause."""


class AttemptLoss(_Message):
    """Detail of an activity failure of type ATTEMPT_LOST."""

    reason: LossReason
    message: str


class JobOutcome(_Message):
    """What a job's workflow returns."""

    state: str
    failure: JobFailure | None = None
    model: RegisteredModel | None = None
