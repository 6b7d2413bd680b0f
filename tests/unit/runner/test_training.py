"""The training step and what a run leaves behind, in this process on the small model."""

from __future__ import annotations

import json
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from runner_support import CollectedEvents
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from control_plane.jobs.spec import LoraSpec, TrainingSpec
from control_plane.jobs.specs.rlhf import AdaptationSpec
from control_plane.jobs.states import FailureKind
from workers.manifest import MANIFEST_NAME, sha256_of, verify_manifest, write_manifest
from workers.runner.data.tokenized import TokenizedRow, read_rows
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import load_base_model
from workers.runner.program import Context
from workers.runner.specs import TrainSpec
from workers.runner.training import loop
from workers.runner.training.checkpoint import checkpoint_path, write_checkpoint
from workers.runner.training.order import DataOrder
from workers.runner.training.trainer import Trainer

Spec = Callable[..., TrainSpec]


@pytest.fixture
def spec(base_model: Path, prepared: Path, tmp_path: Path) -> Spec:
    def make(*, dropout: float = 0.0, output: str = "out", **changes: Any) -> TrainSpec:
        outer = {name: changes.pop(name) for name in list(changes) if name in TrainSpec.model_fields}
        training: dict[str, Any] = {
            "steps": 6,
            "micro_batch_size": 4,
            "checkpoint_every_steps": 2,
            "warmup_steps": 0,
            **changes,
        }
        fields: dict[str, Any] = {
            "base_model_dir": base_model,
            "train_path": prepared / "train.jsonl",
            "output_dir": tmp_path / output,
            "adaptation": AdaptationSpec(lora=LoraSpec(rank=2, alpha=4, dropout=dropout)),
            "training": TrainingSpec(**training),
            "threads": 1,
            "max_run_seconds": 600.0,
        }
        return TrainSpec(**{**fields, **outer})

    return make


def _adapter_sha256(spec: TrainSpec) -> str:
    return sha256_of(spec.output_dir / "adapter" / "adapter_model.safetensors")


def test_a_run_learns_and_leaves_adapter_checkpoints_and_progress(
    spec: Spec, context: Context, events: CollectedEvents
) -> None:
    settings = spec(steps=20, micro_batch_size=4, checkpoint_every_steps=8, learning_rate=1e-2)
    ok = loop.run(context, settings)
    progress = [fields for kind, fields in events.seen if kind == "progress"]
    losses = [fields["metrics"]["loss"] for fields in progress]
    assert [fields["step"] for fields in progress] == list(range(1, 21))
    assert sum(losses[-4:]) / 4 < 0.7 * sum(losses[:2]) / 2
    assert ok.final_loss == losses[-1]
    assert (ok.steps, ok.resumed_from_step) == (20, 0)
    assert ok.tokens_per_second > 0
    saved = [fields for kind, fields in events.seen if kind == "checkpoint"]
    assert [fields["step"] for fields in saved] == [8, 16, 20]
    for fields in saved:
        assert verify_manifest(Path(fields["path"]))["extra"] == {"kind": "checkpoint", "step": fields["step"]}
    final = checkpoint_path(settings.output_dir, 20)
    assert sha256_of(final / "adapter_model.safetensors") == _adapter_sha256(settings)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_loads_with_the_peft_library_and_lowers_the_loss(spec: Spec, context: Context, base_model: Path) -> None:
    settings = spec(steps=12, learning_rate=1e-2)
    loop.run(context, settings)
    config = json.loads((settings.output_dir / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} == set(config["target_modules"])
    row = read_rows(settings.train_path)[0]
    labels = [-100] * row.targets_from + list(row.tokens[row.targets_from :])
    base: Any = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    batch = {"input_ids": torch.tensor([row.tokens]), "labels": torch.tensor([labels])}
    before = base(**batch).loss.item()
    tuned: Any = PeftModel.from_pretrained(base, str(settings.output_dir / "adapter"))
    assert tuned(**batch).loss.item() < before - 0.3


def test_the_first_loss_is_the_base_models_mean_over_target_tokens(spec: Spec) -> None:
    settings = spec(micro_batch_size=8)
    trainer = Trainer(settings)
    rows = read_rows(settings.train_path)
    chosen = [rows[index] for index in DataOrder(len(rows), settings.training.seed).take(0, 8)]
    losses = document_losses(load_base_model(settings.base_model_dir), Documents.of(chosen, torch.device("cpu")))
    expected = losses.sum().item() / sum(row.target_count for row in chosen)
    assert trainer.train_step().loss == pytest.approx(expected, rel=1e-5)


def test_how_a_step_is_cut_into_micro_batches_does_not_matter(spec: Spec) -> None:
    whole = Trainer(spec(micro_batch_size=8, gradient_accumulation=1))
    cut = Trainer(spec(micro_batch_size=2, gradient_accumulation=4))
    for _ in range(3):
        one, many = whole.train_step(), cut.train_step()
        assert one.loss == pytest.approx(many.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(many.grad_norm, rel=1e-4)
        assert one.tokens == many.tokens


def test_seeds_decide_the_run(spec: Spec, context: Context) -> None:
    hashes = []
    for seed in (0, 0, 1):
        settings = spec(steps=2, seed=seed, dropout=0.2, output=f"out-{len(hashes)}")
        loop.run(context, settings)
        hashes.append(_adapter_sha256(settings))
    assert hashes[0] == hashes[1] != hashes[2]


def _poisoned(base_model: Path, token: int, target: Path) -> Path:
    shutil.copytree(base_model, target)
    weights = load_file(target / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = math.nan
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _rare_token(rows: list[TokenizedRow]) -> tuple[int, set[int]]:
    """A token that few prompts hold, and the lines of the rows that hold it."""
    for token in {token for row in rows for token in row.tokens[: row.targets_from]}:
        lines = {row.line for row in rows if token in row.tokens}
        if 0 < len(lines) <= 6:
            return token, lines
    raise AssertionError("no token is rare enough")


def test_nan_stops_before_the_update_and_names_the_rows(spec: Spec, context: Context, tmp_path: Path) -> None:
    settings = spec(steps=60)
    token, lines = _rare_token(read_rows(settings.train_path))
    poisoned = _poisoned(settings.base_model_dir, token, tmp_path / "poisoned")
    # The output head shares the embedding, so its NaN reaches the logits of every row unless the head is kept apart.
    _untie(poisoned)
    with pytest.raises(RunnerError) as caught:
        loop.run(context, settings.model_copy(update={"base_model_dir": poisoned}))
    failure = caught.value.failure
    assert failure.kind is FailureKind.NUMERIC
    named = failure.message.partition("lines ")[2].partition(" of the dataset")[0]
    assert set(map(int, named.split(", "))) <= lines
    assert not (settings.output_dir / "adapter").exists()


def _untie(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (directory / "config.json").write_text(json.dumps(config))
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].nan_to_num(0.0)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_an_infinite_gradient_updates_nothing(spec: Spec) -> None:
    trainer = Trainer(spec())
    trainer.train_step()
    before = trainer.snapshot()
    parameter = next(iter(trainer._parameters.values()))  # pyright: ignore[reportPrivateUsage] - to break its gradient

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf

    parameter.register_hook(overflow)
    with pytest.raises(RunnerError, match=r"norm is (nan|inf) at step 2, with the rows of lines"):
        trainer.train_step()
    after = trainer.snapshot()
    assert after.state == before.state
    assert all(torch.equal(after.weights.model[name], tensor) for name, tensor in before.weights.model.items())


def test_the_run_time_limit_holds_before_the_first_step(spec: Spec, context: Context) -> None:
    settings = spec(steps=1000, checkpoint_every_steps=900, max_run_seconds=0.001)
    with pytest.raises(RunnerError, match=r"max_run_seconds, 0\.001, at step 0 of 1000") as caught:
        loop.run(context, settings)
    assert caught.value.failure.kind is FailureKind.RUN_TIME_EXCEEDED


@pytest.mark.parametrize("step", [1, 3])
def test_the_run_time_limit_saves_the_step_in_hand(step: int, spec: Spec, context: Context, events: CollectedEvents) -> None:
    def run_out(kind: str, fields: dict[str, Any]) -> None:
        if kind == "progress" and fields["step"] == step:
            object.__setattr__(context, "started", context.started - 600)

    events.on_event = run_out
    settings = spec(steps=1000, checkpoint_every_steps=900)
    with pytest.raises(RunnerError, match=f"max_run_seconds, 600, at step {step} of 1000"):
        loop.run(context, settings)
    assert [fields["step"] for kind, fields in events.seen if kind == "checkpoint"] == [step]
    assert verify_manifest(checkpoint_path(settings.output_dir, step))["extra"]["step"] == step


def test_a_stop_is_obeyed_after_the_step_in_hand_and_saved_once(spec: Spec, context: Context, events: CollectedEvents) -> None:
    def stop(kind: str, fields: dict[str, Any]) -> None:
        if kind == "progress" and fields["step"] == 4:
            context.stop.set()

    events.on_event = stop
    with pytest.raises(PreemptedError) as caught:
        loop.run(context, spec(gradient_accumulation=2))
    assert (caught.value.step, caught.value.checkpoint) == (4, checkpoint_path(spec().output_dir, 4))
    assert [fields["step"] for kind, fields in events.seen if kind == "checkpoint"] == [2, 4]


def test_a_stop_before_the_first_step_saves_nothing(spec: Spec, context: Context) -> None:
    context.stop.set()
    with pytest.raises(PreemptedError) as caught:
        loop.run(context, spec())
    assert (caught.value.step, caught.value.checkpoint) == (0, None)
    assert not (spec().output_dir / "checkpoints").exists()


def test_resuming_at_the_end_only_writes_the_adapter_again(spec: Spec, context: Context) -> None:
    settings = spec()
    first = loop.run(context, settings)
    again = spec(output="again", resume_from=checkpoint_path(settings.output_dir, 6))
    ok = loop.run(context, again)
    assert (ok.resumed_from_step, ok.steps, ok.final_loss, ok.tokens_per_second) == (6, 6, first.final_loss, 0.0)
    assert _adapter_sha256(again) == _adapter_sha256(settings)


def test_a_checkpoint_of_another_run_is_refused(spec: Spec, context: Context, prepared: Path) -> None:
    settings = spec(steps=2)
    loop.run(context, settings)
    checkpoint = checkpoint_path(settings.output_dir, 2)
    others = {
        "spec_sha256": spec(steps=2, seed=7, resume_from=checkpoint),
        "train_rows_sha256": spec(steps=2, train_path=prepared / "eval.jsonl", resume_from=checkpoint),
    }
    for name, other in others.items():
        with pytest.raises(RunnerError, match=f"is of another run: expected {name}") as caught:
            loop.run(context, other)
        assert caught.value.failure.kind is FailureKind.INTEGRITY


def test_another_number_of_threads_is_told(spec: Spec, context: Context, events: CollectedEvents) -> None:
    settings = spec(steps=2)
    loop.run(context, settings)
    loop.run(context, spec(steps=2, resume_from=checkpoint_path(settings.output_dir, 2), threads=2, output="more"))
    warnings = [fields["text"] for kind, fields in events.seen if kind == "log" and fields["level"] == "WARNING"]
    assert warnings == ["the resumed run may differ in its last bits: threads was 1, is 2"]


FILES = ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "rng.safetensors", "state.json"]


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_a_damaged_checkpoint_is_never_trained_on(name: str, spec: Spec, context: Context) -> None:
    settings = spec(steps=1)
    loop.run(context, settings)
    checkpoint = checkpoint_path(settings.output_dir, 1)
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 4
    (checkpoint / name).write_bytes(bytes(content))
    with pytest.raises(RunnerError, match="step-00000001 is damaged") as caught:
        loop.run(context, spec(steps=1, resume_from=checkpoint, output="again"))
    assert caught.value.failure.kind is FailureKind.INTEGRITY


def test_a_checkpoint_with_a_right_manifest_over_wrong_tensors_is_refused(spec: Spec, context: Context) -> None:
    settings = spec(steps=1)
    loop.run(context, settings)
    checkpoint = checkpoint_path(settings.output_dir, 1)
    moments = load_file(checkpoint / "optimizer.safetensors")
    moments["exp_avg.model.foreign"] = torch.zeros(2)
    save_file(moments, checkpoint / "optimizer.safetensors")
    write_manifest(checkpoint, {"kind": "checkpoint", "step": 1})
    with pytest.raises(RunnerError, match="expected the moments of what this job trains"):
        loop.run(context, spec(steps=1, resume_from=checkpoint, output="again"))


def test_a_full_disk_leaves_the_checkpoint_before_intact(spec: Spec, tmp_path: Path) -> None:
    trainer = Trainer(spec())
    target = tmp_path / "checkpoints" / "step-00000000"
    trainer.train_step()
    write_checkpoint(target, trainer.snapshot())
    before = verify_manifest(target)
    trainer.train_step()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Exception, match=r"File too large|os error 27"):
            write_checkpoint(target, trainer.snapshot())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert verify_manifest(target) == before
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    write_checkpoint(target, trainer.snapshot())
    assert verify_manifest(target) != before
