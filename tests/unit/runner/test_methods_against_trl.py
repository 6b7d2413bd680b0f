"""Our objectives give the losses and gradients that TRL's trainers compute for the same rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import VOCABULARY, tiny_spec
from torch import Tensor

from workers.runner.specs import TrainSpec
from workers.runner.training.methods.over_rows import RowObjective
from workers.runner.training.rows import PreferenceRow, RowFile, UnpairedRow, preference_row, unpaired_row
from workers.runner.training.trainer import Trainer

# trl 1.16 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BETA = 0.3


@pytest.fixture(scope="module")
def trl() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import trl  # noqa: PLC0415 - it takes seconds to load

    return trl


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - only for TRL, which wants to have one
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    backend = Tokenizer(models.WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="0", eos_token="1", unk_token="0")


def _text(tokens: Sequence[int]) -> str:
    return "".join(f"{token} " for token in tokens)


def _moved(spec: TrainSpec) -> Trainer:
    """A run whose policy has moved away from its reference."""
    trainer = Trainer(spec)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainer._parameters.values():  # pyright: ignore[reportPrivateUsage] - to move it
            parameter.add_(0.03 * torch.randn_like(parameter))
    return trainer


def _ours(trainer: Trainer, rows: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    objective = trainer._objective  # pyright: ignore[reportPrivateUsage] - what is compared
    assert isinstance(objective, RowObjective)
    [batch] = objective._batches([rows])  # pyright: ignore[reportPrivateUsage] - the rows in their order
    loss = objective.loss(batch).loss
    loss.backward()
    parameters = trainer._parameters  # pyright: ignore[reportPrivateUsage]
    return loss.detach(), {name: value.grad for name, value in parameters.items() if value.grad is not None}


def _theirs(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}


def _assert_equal(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    assert len(ours[1]) == len(theirs[1]) > 0
    for (name, found), (_, wanted) in zip(ours[1].items(), theirs[1].items(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def _model(spec: TrainSpec, trainer: Trainer | None = None) -> Any:
    """A model of transformers' own, of the base model's weights or of those that a run has come to."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model: Any = AutoModelForCausalLM.from_pretrained(spec.base_model_dir, dtype=torch.float32, attn_implementation="eager")
    if trainer is not None:
        model.load_state_dict(trainer.snapshot().weights.model, strict=False)
        model.tie_weights()
    return model


def _options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "max_length": None,
        "disable_dropout": True,
        **more,
    }


def test_dpo(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset  # noqa: PLC0415

    spec = tiny_spec(tmp_path, {"name": "dpo", "beta": BETA}, "full")
    rows: list[PreferenceRow] = list(RowFile(spec.train_path, preference_row)[:4])
    ours = _moved(spec)
    data = [{"prompt": _text(row.prompt), "chosen": _text(row.chosen), "rejected": _text(row.rejected)} for row in rows]
    theirs = trl.DPOTrainer(
        model=_model(spec, ours),
        ref_model=_model(spec),
        args=trl.DPOConfig(**_options(tmp_path, beta=BETA)),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    fields = [{"prompt_ids": row.prompt, "chosen_ids": row.chosen, "rejected_ids": row.rejected} for row in rows]
    expected = _theirs(theirs, theirs.data_collator(fields))
    found = _ours(ours, rows)
    assert abs(found[0].item() - 0.6931) > 0.01
    _assert_equal(found, expected)

    # Smoothing is the mixture of the pairs and of the pairs the wrong way round.
    swapped = [{**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in fields]
    flipped, _ = _theirs(theirs, theirs.data_collator(swapped))
    smoothed = _moved(tiny_spec(tmp_path, {"name": "dpo", "beta": BETA, "label_smoothing": 0.2}, "full"))
    torch.testing.assert_close(_ours(smoothed, rows)[0], 0.8 * expected[0] + 0.2 * flipped, rtol=1e-5, atol=1e-6)


def test_kto(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset  # noqa: PLC0415

    method = {"name": "kto", "beta": BETA, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    spec = tiny_spec(tmp_path, method, "full")
    rows: list[UnpairedRow] = list(RowFile(spec.train_path, unpaired_row)[:4])
    assert {row.label for row in rows} == {True, False}
    ours = _moved(spec)
    data = [{"prompt": _text(row.prompt), "completion": _text(row.completion), "label": row.label} for row in rows]
    options = _options(tmp_path, beta=BETA, desirable_weight=1.3, undesirable_weight=0.7)
    theirs = trl.KTOTrainer(
        model=_model(spec, ours),
        ref_model=_model(spec),
        args=trl.KTOConfig(**options),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    completions = [row.completion for row in rows]
    fields = [
        {"prompt_ids": row.prompt, "completion_ids": row.completion, "KL_completion_ids": other, "label": row.label}
        for row, other in zip(rows, [completions[-1], *completions[:-1]], strict=True)
    ]
    found = _ours(ours, rows)
    _assert_equal(found, _theirs(theirs, theirs.data_collator(fields)))


def test_reward_model(trl: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset  # noqa: PLC0415
    from transformers import LlamaForSequenceClassification  # noqa: PLC0415

    spec = tiny_spec(tmp_path, {"name": "reward_model"}, "full")
    rows: list[PreferenceRow] = list(RowFile(spec.train_path, preference_row)[:4])
    ours = _moved(spec)
    model: Any = LlamaForSequenceClassification.from_pretrained(
        spec.base_model_dir, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    )
    model.config.pad_token_id = 0
    weights = ours.snapshot().weights
    model.load_state_dict({**weights.model, **weights.heads}, strict=False)
    data = [{"chosen": _text([*row.prompt, *row.chosen]), "rejected": _text([*row.prompt, *row.rejected])} for row in rows]
    theirs = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(**_options(tmp_path)),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    fields = [{"chosen_ids": [*row.prompt, *row.chosen], "rejected_ids": [*row.prompt, *row.rejected]} for row in rows]
    _assert_equal(_ours(ours, rows), _theirs(theirs, theirs.data_collator(fields)))
