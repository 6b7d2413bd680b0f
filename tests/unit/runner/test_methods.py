"""Every method over rows: what it starts from, how its step may be cut, and that a run can be ended and continued."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_support import CollectedEvents
from safetensors.torch import load_file
from tiny_model import tiny_spec, write_rows, write_tiny_model
from transformers import AutoModelForCausalLM

from control_plane.jobs.states import FailureKind
from workers.manifest import MANIFEST_NAME, sha256_of
from workers.runner.data.tokenized import TokenizedRow
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.models.vetting import vet_base_model
from workers.runner.program import Context
from workers.runner.specs import TrainSpec
from workers.runner.training import loop
from workers.runner.training.checkpoint import checkpoint_path
from workers.runner.training.methods.over_rows import RowBatch
from workers.runner.training.methods.supervised import SupervisedObjective
from workers.runner.training.objective import Step
from workers.runner.training.trainer import Trainer

METHODS: list[dict[str, Any]] = [
    {"name": "sft"},
    {"name": "dpo"},
    {"name": "dpo", "label_smoothing": 0.1},
    {"name": "kto", "desirable_weight": 1.5},
    {"name": "reward_model"},
]
EVERY = pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
ADAPTED = pytest.mark.parametrize("adaptation", ["lora", "full"])


def _result(spec: TrainSpec) -> dict[str, str]:
    """Hashes of all files of the result."""
    folder = spec.output_dir / ("adapter" if spec.adaptation.method == "lora" else "model")
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def _stopping_after(step: int, events: CollectedEvents, context: Context) -> None:
    def stop(kind: str, fields: dict[str, Any]) -> None:
        if kind == "progress" and fields["step"] == step:
            context.stop.set()

    events.on_event = stop


@EVERY
@ADAPTED
@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_stopped_and_continued_equals_uninterrupted(
    method: dict[str, Any], adaptation: str, stop_at: int, tmp_path: Path, events: CollectedEvents
) -> None:
    whole = tiny_spec(tmp_path, method, adaptation, output_dir=tmp_path / "whole")
    loop.run(Context(events=CollectedEvents()), whole)

    stopped = Context(events=events)
    _stopping_after(stop_at, events, stopped)
    spec = tiny_spec(tmp_path, method, adaptation)
    with pytest.raises(PreemptedError) as caught:
        loop.run(stopped, spec)
    assert (caught.value.step, caught.value.checkpoint) == (stop_at, checkpoint_path(spec.output_dir, stop_at))
    assert caught.value.checkpoint is not None
    torch.manual_seed(99)  # Whatever the process did before must not matter.
    again = spec.model_copy(update={"resume_from": caught.value.checkpoint})
    loop.run(Context(events=CollectedEvents()), again)
    assert _result(again) == _result(whole)
    final, expected = (checkpoint_path(folder, 7) / MANIFEST_NAME for folder in (spec.output_dir, whole.output_dir))
    assert final.read_bytes() == expected.read_bytes()


@EVERY
@ADAPTED
def test_what_a_kill_leaves_is_gone_on_from(method: dict[str, Any], adaptation: str, tmp_path: Path) -> None:
    """A killed run leaves the checkpoints it had finished: each of them leads to the same end."""
    whole = tiny_spec(tmp_path, method, adaptation, output_dir=tmp_path / "whole")
    loop.run(Context(events=CollectedEvents()), whole)
    for step in (2, 4, 6):
        again = tiny_spec(
            tmp_path,
            method,
            adaptation,
            output_dir=tmp_path / f"from-{step}",
            resume_from=checkpoint_path(whole.output_dir, step),
        )
        loop.run(Context(events=CollectedEvents()), again)
        assert _result(again) == _result(whole)


@EVERY
@ADAPTED
def test_how_a_step_is_cut_does_not_matter(method: dict[str, Any], adaptation: str, tmp_path: Path) -> None:
    whole = Trainer(tiny_spec(tmp_path, method, adaptation, dropout=0.0, micro_batch_size=6, gradient_accumulation=1))
    cut = Trainer(tiny_spec(tmp_path, method, adaptation, dropout=0.0, micro_batch_size=1, gradient_accumulation=6))
    for _ in range(3):
        one, many = whole.train_step(), cut.train_step()
        assert one.loss == pytest.approx(many.loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(many.grad_norm, rel=1e-3)
        assert one.method == pytest.approx(many.method, rel=1e-3, abs=1e-5)


@ADAPTED
def test_dpo_starts_at_the_logarithm_of_two(adaptation: str, tmp_path: Path) -> None:
    metrics = Trainer(
        tiny_spec(tmp_path, {"name": "dpo"}, adaptation, micro_batch_size=4, gradient_accumulation=1)
    ).train_step()
    assert metrics.loss == pytest.approx(math.log(2), abs=1e-7)
    assert metrics.method["reward_margin"] == 0.0


@ADAPTED
def test_kto_starts_at_half(adaptation: str, tmp_path: Path) -> None:
    metrics = Trainer(tiny_spec(tmp_path, {"name": "kto"}, adaptation, dropout=0.0)).train_step()
    assert metrics.loss == pytest.approx(0.5, abs=1e-6)
    assert metrics.method["kl"] == pytest.approx(0.0, abs=1e-6)


@EVERY
@ADAPTED
def test_every_method_learns_its_rows(method: dict[str, Any], adaptation: str, tmp_path: Path) -> None:
    write_rows(tmp_path / f"{method['name']}.jsonl", method["name"], count=6)
    trainer = Trainer(tiny_spec(tmp_path, method, adaptation, steps=40, dropout=0.0, learning_rate_schedule="constant"))
    losses = [trainer.train_step().loss for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("tied", [True, False])
def test_a_fully_trained_model_is_a_base_model_again(tied: bool, tmp_path: Path, context: Context) -> None:
    base = write_tiny_model(tmp_path / "base", tied=tied)
    spec = tiny_spec(tmp_path, {"name": "sft"}, "full")
    loop.run(context, spec)
    folder = spec.output_dir / "model"
    assert vet_base_model(folder) == "LlamaForCausalLM"
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings is tied
    saved = load_file(folder / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert saved.keys() == before.keys()
    assert not any(torch.equal(saved[name], before[name]) for name in saved if "layers" in name)
    assert ("lm_head.weight" in saved) is not tied
    final = checkpoint_path(spec.output_dir, spec.training.steps)
    assert sha256_of(final / "model.safetensors") == sha256_of(folder / "model.safetensors")


def test_a_large_model_is_saved_in_shards_and_restored(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_spec(tmp_path, {"name": "sft"}, "full", output_dir=tmp_path / "whole", steps=4)
    loop.run(context, whole)
    monkeypatch.setattr("workers.runner.models.adaptation._SHARD_BYTES", 20_000)
    sharded = tiny_spec(tmp_path, {"name": "sft"}, "full", steps=4)
    loop.run(context, sharded)
    checkpoint = checkpoint_path(sharded.output_dir, 2)
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    again = sharded.model_copy(update={"resume_from": checkpoint, "output_dir": tmp_path / "again"})
    loop.run(context, again)
    one: Any = AutoModelForCausalLM.from_pretrained(whole.output_dir / "model")
    many: Any = AutoModelForCausalLM.from_pretrained(again.output_dir / "model")
    for name, weight in one.state_dict().items():
        assert torch.equal(many.state_dict()[name], weight), name


def test_a_reward_model_keeps_its_head(tmp_path: Path, context: Context) -> None:
    spec = tiny_spec(tmp_path, {"name": "reward_model"})
    loop.run(context, spec)
    head = load_file(spec.output_dir / "adapter" / "head.safetensors")
    assert {name: tuple(value.shape) for name, value in head.items()} == {"score.weight": (1, 32)}
    fresh = Trainer(spec).snapshot().weights.heads["score.weight"]
    assert not torch.equal(head["score.weight"], fresh)


def test_a_stop_while_texts_are_generated_leaves_the_run_as_it_was(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_spec(tmp_path, {"name": "sft"}, output_dir=tmp_path / "whole")
    loop.run(context, whole)
    deal = SupervisedObjective.deal

    def generate(self: SupervisedObjective, position: int) -> Step[RowBatch[TokenizedRow]]:
        if position == 18:
            torch.rand(5)
            raise PreemptedError
        return deal(self, position)

    spec = tiny_spec(tmp_path, {"name": "sft"}, checkpoint_every_steps=100)
    monkeypatch.setattr(SupervisedObjective, "deal", generate)
    with pytest.raises(PreemptedError) as caught:
        loop.run(context, spec)
    monkeypatch.setattr(SupervisedObjective, "deal", deal)
    assert caught.value.checkpoint == checkpoint_path(spec.output_dir, 3)
    again = tiny_spec(tmp_path, {"name": "sft"}, checkpoint_every_steps=100, resume_from=caught.value.checkpoint)
    loop.run(context, again)
    assert _result(again) == _result(whole)


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("sft", {"line": 41, "targets_from": 3, "tokens": [3, 4, 5]}, "line 41 of the dataset has 0 tokens to learn from"),
        ("sft", {"line": 41, "targets_from": 0, "tokens": [3, 4, 5]}, "after 0 of a prompt"),
        ("dpo", {"line": 41, "prompt": [3], "chosen": [], "rejected": [4]}, "line 41 of the dataset has 0 tokens"),
        ("reward_model", {"line": 41, "prompt": [3], "chosen": [4], "rejected": []}, "line 41 of the dataset has 0 tokens"),
        ("kto", {"line": 41, "prompt": [3], "completion": [], "label": True}, "line 41 of the dataset has 0 tokens"),
        ("kto", {"line": 41, "prompt": [3], "completion": [4], "label": "yes"}, "/label of line 41"),
        ("dpo", {"line": 41, "prompt": [3], "chosen": [4]}, "row 1: 'rejected'"),
    ],
)
def test_rows_without_supervision_stop_the_run_within_a_step(
    name: str, broken: dict[str, Any], said: str, tmp_path: Path, context: Context
) -> None:
    rows = tmp_path / f"{name}.jsonl"
    rows.write_text(json.dumps(broken) + "\n")
    with pytest.raises(RunnerError) as caught:
        loop.run(context, tiny_spec(tmp_path, {"name": name}))
    assert caught.value.failure.kind is FailureKind.INVALID_DATASET
    assert said in caught.value.failure.message


def test_no_rows_at_all_are_refused(tmp_path: Path, context: Context) -> None:
    (tmp_path / "sft.jsonl").write_text("")
    with pytest.raises(RunnerError, match=r"sft\.jsonl has no rows"):
        loop.run(context, tiny_spec(tmp_path, {"name": "sft"}))


def test_an_exploding_gradient_stops_the_run(tmp_path: Path, context: Context) -> None:
    spec = tiny_spec(tmp_path, {"name": "sft"}, max_grad_norm=0.001, max_norm_ratio=10.0)
    with pytest.raises(
        RunnerError, match=r"the gradient explodes: its norm is .*, expected at most 0\.01, at step 1"
    ) as caught:
        loop.run(context, spec)
    assert caught.value.failure.kind is FailureKind.NUMERIC


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without GPU says")
def test_qlora_is_refused_where_it_cannot_run(tmp_path: Path, context: Context) -> None:
    with pytest.raises(RunnerError, match="needs a CUDA GPU and the library bitsandbytes") as caught:
        loop.run(context, tiny_spec(tmp_path, {"name": "sft"}, "qlora"))
    assert caught.value.failure.kind is FailureKind.USER_ERROR
