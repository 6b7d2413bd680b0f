"""What saves memory or padding gives what the plain way gives, within a stated bound."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_support import CollectedEvents
from tiny_model import VOCABULARY, tiny_spec, write_tiny_model
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from workers.manifest import sha256_of
from workers.runner.data.tokenized import TokenizedRow
from workers.runner.failures import PreemptedError
from workers.runner.models.documents import Documents, chunked_cross_entropy, compile_layers, hidden_states
from workers.runner.models.loading import load_base_model
from workers.runner.program import Context
from workers.runner.specs import TrainSpec
from workers.runner.training import loop
from workers.runner.training.methods.over_rows import RowObjective
from workers.runner.training.trainer import Trainer

METHODS = pytest.mark.parametrize("name", ["sft", "dpo", "kto", "reward_model"])
ADAPTED = pytest.mark.parametrize("adaptation", ["lora", "full"])


def _documents(seed: int) -> list[TokenizedRow]:
    draw = random.Random(seed)  # noqa: S311 - rows for a test
    lengths = [draw.randint(2, 40) for _ in range(7)]
    return [
        TokenizedRow(line=n, tokens=[draw.randrange(VOCABULARY) for _ in range(length)], targets_from=1)
        for n, length in enumerate(lengths, 1)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_packed_documents_have_the_logits_they_have_alone(seed: int, tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", seed=seed)
    ours = load_base_model(base).eval()
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    rows = _documents(seed)
    with torch.inference_mode():
        packed = ours.lm_head(hidden_states(ours, Documents.of(rows, torch.device("cpu"))))
        alone = torch.cat([plain(input_ids=torch.tensor([row.tokens])).logits[0] for row in rows])
    assert (packed - alone).abs().max() < 1e-5
    assert alone.abs().max() > 0.1


@pytest.mark.parametrize("trained_head", [True, False])
@pytest.mark.parametrize("targets", [1, 7, 8, 9, 30])
def test_the_loss_by_chunks_is_the_loss(targets: int, trained_head: bool) -> None:
    torch.manual_seed(targets)
    head = torch.nn.Linear(16, VOCABULARY, bias=False).requires_grad_(trained_head)
    wanted = torch.randint(VOCABULARY, (targets,))
    weights = torch.rand(targets)
    found: list[list[torch.Tensor]] = []
    hidden = torch.randn(targets, 16)
    for chunk in (targets, 4):
        inputs = hidden.clone().requires_grad_()
        head.zero_grad()
        losses = chunked_cross_entropy(head, inputs, wanted, chunk=chunk)
        (losses * weights).sum().backward()
        gradients = [tensor for tensor in (inputs.grad, head.weight.grad) if tensor is not None]
        assert len(gradients) == 1 + trained_head
        found.append([losses.detach(), *(tensor.clone() for tensor in gradients)])
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-6)


def test_the_loss_by_chunks_keeps_no_logits() -> None:
    """What autograd keeps grows with the chunk's logits no more: it is the hidden states, the targets and the head."""
    head = torch.nn.Linear(16, 5_000, bias=False)
    hidden, wanted = torch.randn(256, 16, requires_grad=True), torch.randint(5_000, (256,))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.numel())
        return tensor

    sizes: list[int] = []
    for chunk in (256, 32):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = chunked_cross_entropy(head, hidden, wanted, chunk=chunk)
        sizes.append(sum(size for size in kept.values() if size != head.weight.numel()))
        assert losses.shape == (256,)
    whole, chunked = sizes
    assert whole >= 256 * 5_000
    assert chunked <= 2 * hidden.numel()


def _flops_and_step(spec: TrainSpec) -> tuple[int, Trainer]:
    trainer = Trainer(spec)
    with FlopCounterMode(display=False) as counter:
        trainer.train_step()
    return counter.get_total_flops(), trainer


@METHODS
@ADAPTED
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_activation_checkpointing_comes_to_the_same_weights(name: str, adaptation: str, kind: str, tmp_path: Path) -> None:
    plain, checkpointed = (
        Trainer(tiny_spec(tmp_path, {"name": name}, adaptation, activation_checkpointing=chosen)) for chosen in ("none", kind)
    )
    for _ in range(3):
        # With dropout: what is made again draws the same numbers.
        torch.manual_seed(3)
        one = plain.train_step()
        torch.manual_seed(3)
        other = checkpointed.train_step()
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    weights = checkpointed.snapshot().weights.model
    for key, weight in plain.snapshot().weights.model.items():
        torch.testing.assert_close(weights[key], weight, rtol=1e-4, atol=1e-5)


def test_selective_checkpointing_makes_no_product_again(tmp_path: Path) -> None:
    plain, selective, full = (
        _flops_and_step(tiny_spec(tmp_path, {"name": "sft"}, "full", activation_checkpointing=kind))[0]
        for kind in ("none", "selective", "full")
    )
    assert full > 1.2 * plain
    assert selective == plain


# Of the compiler's own looking at what goes into a layer.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("name", "adaptation"), [("sft", "full"), ("dpo", "lora")])
def test_compiled_layers_come_to_the_same_weights(name: str, adaptation: str, tmp_path: Path) -> None:
    # What the compiler captures and differentiates is tested; its code generator, which is for GPUs, is left out.
    eager, compiled = (Trainer(tiny_spec(tmp_path, {"name": name}, adaptation, dropout=0.0)) for _ in range(2))
    captured = counters["frames"]["ok"]
    compile_layers(compiled._adaptation.model, backend="aot_eager")  # pyright: ignore[reportPrivateUsage] - the CPU never does
    for _ in range(4):
        one, other = eager.train_step(), compiled.train_step()
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    assert counters["frames"]["ok"] > captured
    weights = compiled.snapshot().weights.model
    for key, weight in eager.snapshot().weights.model.items():
        torch.testing.assert_close(weights[key], weight, rtol=1e-3, atol=1e-4)


@METHODS
def test_a_pass_is_bounded_in_tokens(name: str, tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"name": name}, micro_batch_size=8, gradient_accumulation=3, pass_tokens=40)
    objective = Trainer(spec)._objective  # pyright: ignore[reportPrivateUsage] - how it deals
    position, lines, sizes = 0, list[int](), list[int]()
    for _ in range(6):
        step = objective.deal(position)
        assert len(step.batches) == 3
        for batch in step.batches:
            assert batch.tokens <= 40 or len(batch.lines) == 1
            sizes.append(len(batch.lines))
            lines.extend(batch.lines)
        assert objective.deal(position).next_position == step.next_position
        position = step.next_position
    assert position == len(lines)
    assert len(set(sizes)) > 1
    # Every row comes, in the order in which rows come without the bound.
    plain = Trainer(tiny_spec(tmp_path, {"name": name}, micro_batch_size=len(lines), gradient_accumulation=1))._objective  # pyright: ignore[reportPrivateUsage]
    assert [*plain.deal(0).batches[0].lines] == lines


@METHODS
@ADAPTED
def test_a_run_bounded_in_tokens_goes_on_to_the_same_bits(name: str, adaptation: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"micro_batch_size": 8, "pass_tokens": 40, "activation_checkpointing": "selective"}
    whole = tiny_spec(tmp_path, {"name": name}, adaptation, output_dir=tmp_path / "whole", **changes)
    loop.run(Context(events=CollectedEvents()), whole)
    resume_from = None
    spec = whole
    stops: list[int] = []
    for _ in range(whole.training.steps + 1):
        context = Context(events=CollectedEvents())
        spec = tiny_spec(tmp_path, {"name": name}, adaptation, resume_from=resume_from, **changes)
        try:
            with pytest.MonkeyPatch.context() as patch:
                _stop_in_the_middle_of_a_step(patch, context)
                loop.run(context, spec)
            break
        except PreemptedError as stop:
            stops.append(stop.step)
            resume_from = stop.checkpoint
    # No step is lost that was begun when the signal came.
    assert stops == list(range(1, 7))
    result = "adapter/adapter_model.safetensors" if adaptation == "lora" else "model/model.safetensors"
    assert sha256_of(spec.output_dir / result) == sha256_of(whole.output_dir / result)


def _stop_in_the_middle_of_a_step(patch: pytest.MonkeyPatch, context: Context) -> None:
    """As a signal does that comes during the second of a step's passes."""
    loss, passes = RowObjective[Any].loss, iter(range(1_000))

    def stopping(self: RowObjective[Any], batch: Any) -> Any:
        if next(passes) == 1:
            context.stop.set()
        return loss(self, batch)

    patch.setattr(RowObjective, "loss", stopping)
