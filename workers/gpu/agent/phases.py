"""What the agent does in each leased phase: stage, run, upload."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from control_plane.jobs.specs.rlhf import AdaptationSpec
from control_plane.jobs.states import FailureKind
from control_plane.settings import TelemetrySettings
from headway_client import telemetry
from workers.control_plane import ControlPlane
from workers.file_cache import FileCache
from workers.gpu.agent.checkpoints import CheckpointUploader
from workers.gpu.agent.logs import LogForwarder
from workers.gpu.agent.memory import memory_limit_bytes, out_of_memory_kills
from workers.gpu.agent.resumption import Resumption
from workers.gpu.agent.runner import Runner, RunnerEnd
from workers.gpu.agent.spec import AgentResult, AgentSpec, TrainStage
from workers.programs import runner_environment
from workers.runner.exit_codes import ExitCode
from workers.runner.specs import EvaluateOk, EvaluateSpec, ResultFile, RunnerSpec, TrainOk, TrainSpec
from workers.storage import ObjectStore
from workers.stored_files import download, project_prefix, upload
from workers.workflows.contracts import AttemptLoss, JobFailure, LossReason, Scores, StoredFiles, TrainedModel

OkT = TypeVar("OkT", bound=BaseModel)


@dataclass(frozen=True)
class Tools:
    """What a phase works with."""

    spec: AgentSpec
    control_plane: ControlPlane
    store: ObjectStore
    cache: FileCache
    logs: LogForwarder
    runner: Runner
    uploader: CheckpointUploader
    telemetry: TelemetrySettings

    def upload(self, directory: Path) -> StoredFiles:
        """Stores a directory among the project's files. Blocks."""
        return upload(self.store, directory, project_prefix(self.spec.context.job.project))


async def train(tools: Tools) -> AgentResult:
    """Trains, from the newest good checkpoint if there is one, and uploads the adapter.

    Raises:
        HeadwayError, StorageError, ObjectMissingError, IntegrityError: as staging and uploading.
    """
    spec, stage = tools.spec, _training(tools.spec)
    base_model_dir, data_dir = await _stage(tools)
    began = time.monotonic()
    resumption = Resumption(spec, tools.control_plane, tools.store, lambda text, level: tools.logs.line(text, "agent", level))
    while True:
        resume = await resumption.point()
        program_spec = TrainSpec(
            base_model_dir=base_model_dir,
            train_path=data_dir / "train.jsonl",
            output_dir=spec.workdir / "train",
            method=stage.method,
            adaptation=stage.adaptation,
            training=stage.training,
            pass_tokens=stage.pass_tokens,
            threads=spec.threads,
            resume_from=None if resume is None else resume.directory,
            max_run_seconds=max(1.0, spec.run_seconds_left - (time.monotonic() - began)),
        )
        end = await _run(tools, "train", program_spec, TrainOk)
        if resume is None or not _refuses_checkpoint(end):
            break
        await resumption.refuse(resume)
    await tools.uploader.drain()
    if end.result is None or end.result.ok is None:
        return _without_result(end, tools.runner.stopping)
    found = end.result.ok
    with telemetry.tracer().start_as_current_span("upload result"):
        adapter = await asyncio.to_thread(tools.upload, program_spec.output_dir / stage.result_name)
    trained = TrainedModel(
        adapter=adapter, final_loss=found.final_loss, steps=found.steps, tokens_per_second=found.tokens_per_second
    )
    return AgentResult(trained=trained)


async def evaluate(tools: Tools) -> AgentResult:
    """Scores base and tuned model, and uploads the loss of every row.

    Raises:
        HeadwayError, StorageError, ObjectMissingError, IntegrityError: as staging and uploading.
    """
    spec, wanted = tools.spec, tools.spec.context.job.spec.evaluation
    if spec.trained is None:
        raise ValueError("the agent's spec lacks `trained`, which EVALUATE needs; the activity must pass it on")
    base_model_dir, data_dir = await _stage(tools)
    adapter_dir = spec.workdir / "adapter"
    await asyncio.to_thread(download, tools.store, spec.trained.adapter, adapter_dir)
    program_spec = EvaluateSpec(
        base_model_dir=base_model_dir,
        adapter_dir=adapter_dir,
        eval_path=data_dir / "eval.jsonl",
        batch_size=wanted.batch_size,
        sample_prompts=wanted.sample_prompts,
        max_new_tokens=wanted.max_new_tokens,
        threads=spec.threads,
        output_dir=spec.workdir / "evaluate",
    )
    end = await _run(tools, "evaluate", program_spec, EvaluateOk)
    if end.result is None or end.result.ok is None:
        return _without_result(end, tools.runner.stopping)
    with telemetry.tracer().start_as_current_span("upload records"):
        records = await asyncio.to_thread(tools.upload, program_spec.output_dir / "records")
    return AgentResult(scores=Scores(records=records, **end.result.ok.model_dump()))


def _training(spec: AgentSpec) -> TrainStage:
    fine_tune = spec.context.job.spec
    return spec.stage or TrainStage(adaptation=AdaptationSpec(lora=fine_tune.lora), training=fine_tune.training)


async def _stage(tools: Tools) -> tuple[Path, Path]:
    """Directories of the base model and of the tokenised data, both verified."""
    spec = tools.spec
    data_dir = spec.workdir / "data"
    with telemetry.tracer().start_as_current_span("stage inputs"):
        base_model_dir = await asyncio.to_thread(tools.cache.stage, spec.prepared.base_model)
        await asyncio.to_thread(download, tools.store, spec.prepared.dataset, data_dir)
    return base_model_dir, data_dir


def _refuses_checkpoint(end: RunnerEnd[TrainOk]) -> bool:
    failure = None if end.result is None else end.result.failure
    return failure is not None and failure.kind is FailureKind.INTEGRITY


async def _run(tools: Tools, program: str, spec: RunnerSpec, ok_type: type[OkT]) -> RunnerEnd[OkT]:
    environment = runner_environment(tools.telemetry, **tools.spec.runner_environment)
    killed_before = out_of_memory_kills()
    end = await tools.runner.run(program, spec, ok_type, environment)
    if end.code == 137 and out_of_memory_kills() > killed_before:
        return _out_of_memory(end)
    if end.code == ExitCode.PREEMPTED and not tools.runner.stopping:
        tools.logs.line("the runner was asked to stop by somebody else", "agent", "WARNING")
    return end


def _out_of_memory(end: RunnerEnd[OkT]) -> RunnerEnd[OkT]:
    limit = memory_limit_bytes()
    said = f", whose limit is {limit:,} bytes" if limit else ""
    failure = JobFailure(
        kind=FailureKind.OUT_OF_MEMORY,
        message=f"the runner was killed because memory ran out on its machine{said}; use smaller batches or shorter sequences",
    )
    return replace(end, result=ResultFile[OkT](failure=failure))


def _without_result(end: RunnerEnd[OkT], stopping: bool) -> AgentResult:
    """What an end without `ok` means: a verdict, a preemption, or a crash."""
    result = end.result
    if result is not None and result.failure is not None and result.failure.kind is not FailureKind.PLATFORM:
        return AgentResult(failure=result.failure)
    if result is not None and result.preempted is not None:
        return _lost(LossReason.PREEMPTED, f"the runner stopped on request at step {result.preempted.step}")
    if stopping:
        return _lost(LossReason.PREEMPTED, f"the runner did not stop at a step in time; {end.description}")
    return _lost(
        LossReason.RUNNER_CRASHED, end.description if result is None or result.failure is None else result.failure.message
    )


def _lost(reason: LossReason, message: str) -> AgentResult:
    return AgentResult(loss=AttemptLoss(reason=reason, message=message))
