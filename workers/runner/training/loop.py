"""The body of `train`: a loop that can be stopped after any step and continued to the same bits."""

from __future__ import annotations

import time
from contextlib import nullcontext

from control_plane.jobs.states import FailureKind
from headway_client import telemetry
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.files import atomic_directory
from workers.runner.program import Context
from workers.runner.specs import TrainOk, TrainSpec
from workers.runner.training.checkpoint import CheckpointWriter
from workers.runner.training.trainer import StepMetrics, Trainer

_MOST_STEP_SPANS = 100


def run(context: Context, spec: TrainSpec) -> TrainOk:
    """Trains to the last step; checkpoints every `checkpoint_every_steps`, at the last step, and when stopped.

    Raises:
        RunnerError: INTEGRITY (damaged or foreign checkpoint), NUMERIC, RUN_TIME_EXCEEDED, INVALID_BASE_MODEL.
        PreemptedError: asked to stop; the last completed step is in a checkpoint.
    """
    with telemetry.tracer().start_as_current_span("runner.load"):
        trainer = _start(context, spec)
    trainer.begin()
    writer = CheckpointWriter(spec.output_dir, context.events, writes=trainer.ranks.rank == 0)
    try:
        return _train(context, spec, trainer, writer)
    finally:
        writer.close()
        trainer.ranks.close()


def _start(context: Context, spec: TrainSpec) -> Trainer:
    trainer = Trainer(spec, context.stop)
    context.events.log(
        f"training {trainer.trained_parameters:,} parameters ({spec.method.name}, {spec.adaptation.method}) "
        f"for {spec.training.steps} steps"
    )
    if spec.resume_from is not None:
        for difference in trainer.resume(spec.resume_from):
            context.events.log(f"the resumed run may differ in its last bits: {difference}", "WARNING")
        context.events.log(f"resumed from step {trainer.state.step}")
    return trainer


def _train(context: Context, spec: TrainSpec, trainer: Trainer, writer: CheckpointWriter) -> TrainOk:
    first_step, first_tokens = trainer.state.step, trainer.state.tokens_seen
    saved_step, saved = first_step, spec.resume_from
    seconds = 0.0
    while not trainer.finished:
        exceeded = trainer.ranks.any(time.monotonic() - context.started >= spec.max_run_seconds)
        took = None if exceeded else _advance(context, spec, trainer)
        step = trainer.state.step
        if took is None:
            if step > saved_step:
                saved = writer.save(trainer.snapshot())
            writer.wait()
            raise _exceeded(spec, trainer) if exceeded else PreemptedError(step, saved)
        seconds += took
        due = step % spec.training.checkpoint_every_steps == 0 or trainer.finished
        if due and step > saved_step and not trainer.evaluation_due:
            saved_step, saved = step, writer.save(trainer.snapshot())
    writer.wait()
    result = trainer.result()
    if trainer.ranks.rank == 0:
        with atomic_directory(spec.output_dir / trainer.result_name) as folder:
            trainer.save_result(folder, result)
    tokens = trainer.state.tokens_seen - first_tokens
    selection = None if spec.selection is None else trainer.state.selection
    return TrainOk(
        final_loss=trainer.state.loss,
        steps=trainer.state.step,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        resumed_from_step=first_step,
        best_step=None if selection is None else selection.best_step,
        best_eval_loss=None if selection is None else selection.best_loss,
    )


def _advance(context: Context, spec: TrainSpec, trainer: Trainer) -> float | None:
    """One optimizer step, or the evaluation that is due; returns the step's seconds, or None if asked to stop before."""
    if trainer.ranks.any(context.stop.is_set()):
        return None
    try:
        return _evaluate(context, spec, trainer) if trainer.evaluation_due else _step(context, spec, trainer)
    except PreemptedError:
        return None


def _evaluate(context: Context, spec: TrainSpec, trainer: Trainer) -> float:
    with telemetry.tracer().start_as_current_span("runner.evaluate_step"):
        loss = trainer.evaluate()
    metrics = {"eval_loss": loss, "best_eval_loss": trainer.state.selection.best_loss}
    context.events.progress("train", trainer.state.step, spec.training.steps, metrics)
    return 0.0


def _step(context: Context, spec: TrainSpec, trainer: Trainer) -> float:
    """One optimizer step, reported; returns its seconds."""
    begin = time.monotonic()
    # A span for every step of a short run; of a long one, for a hundred.
    spanned = trainer.state.step % max(1, spec.training.steps // _MOST_STEP_SPANS) == 0
    with telemetry.tracer().start_as_current_span("runner.train_step") if spanned else nullcontext() as span:
        metrics = trainer.train_step()
        if span is not None:
            span.set_attributes({"headway.step": trainer.state.step, "headway.loss": metrics.loss})
    seconds = time.monotonic() - begin
    _report(context, spec, trainer.state.step, metrics, seconds)
    return seconds


def _report(context: Context, spec: TrainSpec, step: int, metrics: StepMetrics, seconds: float) -> None:
    context.events.progress(
        "train",
        step,
        spec.training.steps,
        {
            "loss": metrics.loss,
            "learning_rate": metrics.learning_rate,
            "grad_norm": metrics.grad_norm,
            "tokens_per_second": metrics.tokens / seconds,
            **metrics.method,
        },
    )


def _exceeded(spec: TrainSpec, trainer: Trainer) -> RunnerError:
    return RunnerError(
        FailureKind.RUN_TIME_EXCEEDED,
        f"training reached max_run_seconds, {spec.max_run_seconds:g}, at step {trainer.state.step} of {spec.training.steps}",
    )
