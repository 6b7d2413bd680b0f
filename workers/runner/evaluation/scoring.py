"""The body of `evaluate`: base and tuned model score the same held-out rows in one process, with one set of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel

from control_plane.jobs.states import FailureKind
from headway_client import telemetry
from workers.runner.data.chat import load_tokenizer
from workers.runner.data.tokenized import TokenizedRow, batches, read_rows
from workers.runner.evaluation.generation import answer
from workers.runner.evaluation.statistics import mean_with_error
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.files import atomic_directory
from workers.runner.models.adapters import load_adapted
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import autocast, device, load_base_model, use_threads
from workers.runner.program import Context
from workers.runner.specs import EvaluateOk, EvaluateSpec
from workers.workflows.contracts import Sample


@dataclass(frozen=True)
class Record:
    """One held-out row. Losses are nats per target token under either model."""

    line: int
    target_tokens: int
    base_loss: float
    tuned_loss: float


def run(context: Context, spec: EvaluateSpec) -> EvaluateOk:
    """Scores the rows and answers the sample prompts.

    Raises:
        RunnerError: INTEGRITY (not this model's adapter), NUMERIC, INVALID_BASE_MODEL.
        PreemptedError: asked to stop.
    """
    use_threads(spec.threads)
    rows = read_rows(spec.eval_path)
    with telemetry.tracer().start_as_current_span("runner.load"):
        model = load_adapted(load_base_model(spec.base_model_dir), spec.adapter_dir)
    with telemetry.tracer().start_as_current_span("runner.score"):
        records = list(_records(context, spec, model, rows))
    with telemetry.tracer().start_as_current_span("runner.sample"):
        samples = _samples(context, spec, model)
    with atomic_directory(spec.output_dir / "records") as folder:
        lines = (json.dumps(asdict(record), sort_keys=True) + "\n" for record in records)
        (folder / "records.jsonl").write_text("".join(lines))
    base_loss, base_loss_se = mean_with_error([record.base_loss for record in records])
    tuned_loss, tuned_loss_se = mean_with_error([record.tuned_loss for record in records])
    gain, gain_se = mean_with_error([record.base_loss - record.tuned_loss for record in records])
    return EvaluateOk(
        base_loss=base_loss,
        base_loss_se=base_loss_se,
        tuned_loss=tuned_loss,
        tuned_loss_se=tuned_loss_se,
        gain=gain,
        gain_se=gain_se,
        rows=len(records),
        samples=samples,
    )


def _records(context: Context, spec: EvaluateSpec, model: PeftModel, rows: Sequence[TokenizedRow]) -> Iterator[Record]:
    base_sum = tuned_sum = 0.0
    done = 0
    for batch in batches(rows, spec.batch_size):
        if context.stop.is_set():
            raise PreemptedError
        documents = Documents.of(batch, device())
        base = _losses(model, documents, batch, tuned=False)
        tuned = _losses(model, documents, batch, tuned=True)
        for row, before, after in zip(batch, base, tuned, strict=True):
            yield Record(line=row.line, target_tokens=row.target_count, base_loss=before, tuned_loss=after)
        done += len(batch)
        base_sum += sum(base)
        tuned_sum += sum(tuned)
        metrics = {"base_loss": base_sum / done, "loss": tuned_sum / done}
        context.events.progress("evaluate", done, len(rows), metrics)


def _losses(model: PeftModel, documents: Documents, rows: Sequence[TokenizedRow], *, tuned: bool) -> list[float]:
    """Mean loss per target token of each row."""
    with torch.inference_mode(), autocast(), nullcontext() if tuned else model.disable_adapter():
        sums: list[float] = document_losses(model.get_base_model(), documents).tolist()
    losses = [total / row.target_count for total, row in zip(sums, rows, strict=True)]
    for loss, row in zip(losses, rows, strict=True):
        if not abs(loss) < float("inf"):
            which = "tuned" if tuned else "base"
            raise RunnerError(
                FailureKind.NUMERIC, f"the {which} model's loss on line {row.line} of the dataset is {loss}; expected a number"
            )
    return losses


def _samples(context: Context, spec: EvaluateSpec, model: Any) -> tuple[Sample, ...]:
    if not spec.sample_prompts:
        return ()
    tokenizer = load_tokenizer(spec.base_model_dir)
    samples: list[Sample] = []
    for prompt in spec.sample_prompts:
        with model.disable_adapter():
            before = answer(model.get_base_model(), tokenizer, prompt, spec.max_new_tokens, context.stop)
        after = answer(model.get_base_model(), tokenizer, prompt, spec.max_new_tokens, context.stop)
        samples.append(Sample(prompt=prompt, before=before, after=after))
    return tuple(samples)
