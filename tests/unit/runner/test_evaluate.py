"""Evaluation: both models over the same rows, with errors that can be recomputed from the records it leaves."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings
from runner_support import CollectedEvents, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from control_plane.jobs.spec import LoraSpec, TrainingSpec
from control_plane.jobs.specs.rlhf import AdaptationSpec
from control_plane.jobs.states import FailureKind
from workers.runner.data.tokenized import read_rows
from workers.runner.evaluation import scoring
from workers.runner.evaluation.statistics import mean_with_error
from workers.runner.events import EventWriter
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.models.adapters import adapter_config, adapter_tensors, inject_lora, save_adapter
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import load_base_model
from workers.runner.program import Context
from workers.runner.specs import EvaluateOk, EvaluateSpec, TrainSpec
from workers.runner.training import loop

PROMPTS = ("What is 3 and 21?", "What is 9 and 20?")
Spec = Callable[..., EvaluateSpec]


@pytest.fixture(scope="session")
def adapter(base_model: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learnt something."""
    output_dir = tmp_path_factory.mktemp("trained")
    spec = TrainSpec(
        base_model_dir=base_model,
        train_path=prepared / "train.jsonl",
        output_dir=output_dir,
        adaptation=AdaptationSpec(),
        training=TrainingSpec(steps=15, micro_batch_size=4, learning_rate=1e-2),
        threads=1,
        max_run_seconds=600,
    )
    loop.run(Context(events=EventWriter(None)), spec)
    return output_dir / "adapter"


@pytest.fixture
def spec(base_model: Path, prepared: Path, adapter: Path, tmp_path: Path) -> Spec:
    def make(**changes: Any) -> EvaluateSpec:
        fields: dict[str, Any] = {
            "base_model_dir": base_model,
            "adapter_dir": adapter,
            "eval_path": prepared / "eval.jsonl",
            "output_dir": tmp_path,
            "batch_size": 4,
            "max_new_tokens": 6,
            "threads": 1,
        }
        return EvaluateSpec(**{**fields, **changes})

    return make


def _records(spec: EvaluateSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (spec.output_dir / "records" / "records.jsonl").read_text().splitlines()]


def test_scores_follow_from_the_records(spec: Spec, context: Context, events: CollectedEvents) -> None:
    settings = spec()
    ok = scoring.run(context, settings)
    records, rows = _records(settings), read_rows(settings.eval_path)
    assert [record["line"] for record in records] == [row.line for row in rows]
    assert [record["target_tokens"] for record in records] == [row.target_count for row in rows]
    gains = [record["base_loss"] - record["tuned_loss"] for record in records]
    assert ok.rows == len(rows) == 10
    assert ok.gain == pytest.approx(mean(gains))
    assert ok.gain_se == pytest.approx(stdev(gains) / math.sqrt(10))
    assert ok.base_loss == pytest.approx(mean(record["base_loss"] for record in records))
    assert ok.tuned_loss_se == pytest.approx(stdev(record["tuned_loss"] for record in records) / math.sqrt(10))
    assert ok.gain > 2 * ok.gain_se > 0
    progress = [fields for kind, fields in events.seen if kind == "progress"]
    assert [(fields["phase"], fields["step"], fields["total_steps"]) for fields in progress] == [
        ("evaluate", 4, 10),
        ("evaluate", 8, 10),
        ("evaluate", 10, 10),
    ]
    assert progress[-1]["metrics"]["loss"] == pytest.approx(ok.tuned_loss)


def test_the_base_loss_is_that_of_the_base_model_alone(spec: Spec, context: Context) -> None:
    settings = spec()
    scoring.run(context, settings)
    rows = read_rows(settings.eval_path)
    model = load_base_model(settings.base_model_dir)
    with torch.inference_mode():
        sums = document_losses(model, Documents.of(rows, torch.device("cpu"))).tolist()
    expected = [total / row.target_count for total, row in zip(sums, rows, strict=True)]
    assert [record["base_loss"] for record in _records(settings)] == pytest.approx(expected, rel=1e-5)


def test_an_adapter_that_learnt_nothing_gains_nothing(spec: Spec, context: Context, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    model = inject_lora(load_base_model(spec().base_model_dir), LoraSpec(), seed=0)
    save_adapter(fresh, adapter_tensors(model), adapter_config(model))
    ok = scoring.run(context, spec(adapter_dir=fresh))
    assert (ok.gain, ok.gain_se) == (0.0, 0.0)
    assert ok.base_loss == ok.tuned_loss


def test_samples_are_the_greedy_answers_before_and_after(spec: Spec, context: Context) -> None:
    settings = spec(sample_prompts=PROMPTS)
    ok = scoring.run(context, settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.base_model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(settings.base_model_dir, dtype=torch.float32)
    for sample, prompt in zip(ok.samples, PROMPTS, strict=True):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert sample.prompt == prompt
        assert sample.before == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert sample.after != sample.before


@pytest.mark.parametrize("prompts", [(), PROMPTS])
def test_a_stop_is_obeyed_between_batches_and_between_tokens(
    prompts: tuple[str, ...], spec: Spec, context: Context, events: CollectedEvents
) -> None:
    def stop(_kind: str, fields: dict[str, Any]) -> None:
        if fields["step"] == (10 if prompts else 4):
            context.stop.set()

    events.on_event = stop
    with pytest.raises(PreemptedError):
        scoring.run(context, spec(sample_prompts=prompts))
    assert not (spec().output_dir / "records").exists()


def test_nan_in_the_adapter_is_a_numeric_failure(spec: Spec, context: Context, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    weights = load_file(spec().adapter_dir / "adapter_model.safetensors")
    name = next(iter(weights))
    weights[name][0, 0] = math.nan
    save_file(weights, broken / "adapter_model.safetensors")
    (broken / "adapter_config.json").write_bytes((spec().adapter_dir / "adapter_config.json").read_bytes())
    with pytest.raises(RunnerError, match=r"the tuned model's loss on line \d+ of the dataset is nan") as caught:
        scoring.run(context, spec(adapter_dir=broken))
    assert caught.value.failure.kind is FailureKind.NUMERIC


class _Payload:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("payload-ran"),))


def test_a_pickled_adapter_is_never_opened(
    spec: Spec, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(pickle.dumps(_Payload()))
    (pickled / "adapter_config.json").write_bytes((spec().adapter_dir / "adapter_config.json").read_bytes())
    with pytest.raises(RunnerError, match=r"expected the file adapter_model\.safetensors") as caught:
        scoring.run(context, spec(adapter_dir=pickled))
    assert caught.value.failure.kind is FailureKind.INTEGRITY
    assert not (tmp_path / "payload-ran").exists()


def test_standard_errors_are_those_of_the_textbook() -> None:
    assert mean_with_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    assert mean_with_error([7.0, 7.0]) == (7.0, 0.0)


TRACE = "0af7651916cd43dd8448eb211c80319c"


async def _until_root(receiver: OtelTapHttpProtobufReceiver) -> dict[str, Span]:
    """Spans by name, up to the program's own, which ends last."""
    spans: dict[str, Span] = {}
    async for span in receiver.stream_traces():
        spans[span.name] = span
        if span.name == "runner.evaluate":
            break
    return spans


async def test_the_program_reports_scores_events_and_its_part_of_the_trace(spec: Spec) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "TRACEPARENT": f"00-{TRACE}-b7ad6b7169203331-01",
        "HEADWAY_OTLP_TRACES_URL": f"http://127.0.0.1:{port}/v1/traces",
        "HEADWAY_OTLP_HEADERS": '{"x-test": "1"}',
    }
    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as receiver:
        # The receiver keeps nothing for later: whoever wants spans listens before they are sent.
        received = asyncio.create_task(_until_root(receiver))
        finished = await asyncio.to_thread(run, "evaluate", spec().model_dump(mode="json"), environment=environment)
        assert finished.code == 0, finished.stderr
        spans = await asyncio.wait_for(received, 20)
    assert EvaluateOk.model_validate(finished.result["ok"]).rows == 10
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans["runner.evaluate"].parent_span_id.hex() == "b7ad6b7169203331"
    assert spans["runner.score"].parent_span_id == spans["runner.evaluate"].span_id
    assert [event["step"] for event in finished.events] == [4, 8, 10]
    assert {event["trace_id"] for event in finished.events} == {TRACE}
    assert {event["span_id"] for event in finished.events} == {spans["runner.score"].span_id.hex()}
