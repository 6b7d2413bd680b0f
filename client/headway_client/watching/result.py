"""A finished job's result, read once into values with names. The layout is documented in docs/reference/job-result.md."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel, ConfigDict

from headway.jobs.v1.job_pb2 import Job


class _Result(BaseModel):
    # A newer server may say more, and a failed job says less: nothing is required, nothing unknown is refused.
    model_config = ConfigDict(frozen=True, extra="allow")


class PrepareResult(_Result):
    """What PREPARE found."""

    train_rows: int = 0
    eval_rows: int = 0
    train_tokens: int = 0
    eval_tokens: int = 0
    duplicate_rows: int = 0


class TrainResult(_Result):
    """What TRAIN found."""

    final_loss: float = 0.0
    steps: int = 0
    tokens_per_second: float = 0.0


class SampleResult(_Result):
    """A prompt and what both models say to it."""

    prompt: str = ""
    before: str = ""
    after: str = ""


class EvaluateResult(_Result):
    """What EVALUATE found. Losses in nats per target token."""

    base_loss: float = 0.0
    base_loss_se: float = 0.0
    tuned_loss: float = 0.0
    tuned_loss_se: float = 0.0
    gain: float = 0.0
    gain_se: float = 0.0
    rows: int = 0
    samples: tuple[SampleResult, ...] = ()

    @property
    def gain_standard_errors(self) -> float:
        """The gain in its standard errors; 0 when there is none to divide by."""
        return self.gain / self.gain_se if self.gain_se > 0 else 0.0


class GateResult(_Result):
    """What the gate said."""

    passed: bool = False
    explanation: str = ""


class PackageResult(_Result):
    """What PACKAGE made."""

    manifest_uri: str = ""
    manifest_sha256: str = ""


class RegisterResult(_Result):
    """What REGISTER made."""

    model: str = ""
    version: int = 0
    mlflow_version: str = ""
    alias: str = ""


class JobResult(_Result):
    """What a job produced, by phase; None for a phase that did not finish."""

    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None
    gate: GateResult | None = None
    package: PackageResult | None = None
    register_: RegisterResult | None = None


def job_result(job: Job) -> JobResult:
    """The result of `job`, as far as it came."""
    content: dict[str, Any] = MessageToDict(job.result)
    # `register` is a method of pydantic's classes, so the field has another name here.
    return JobResult.model_validate({"register_" if key == "register" else key: value for key, value in content.items()})
