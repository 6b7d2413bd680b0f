"""A random model of two layers that fits in a page, and random rows for it: a run takes a second."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from control_plane.jobs.spec import LoraSpec, StageTraining
from control_plane.jobs.specs.rlhf import AdaptationSpec
from workers.runner.specs import TrainSpec

VOCABULARY = 61


def write_tiny_model(folder: Path, *, tied: bool = True, seed: int = 0) -> Path:
    """Writes a base model's directory; its tokenizer is never loaded."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def _tokens(draw: random.Random, least: int, most: int) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]


def _supervised(draw: random.Random, line: int) -> dict[str, Any]:
    prompt = _tokens(draw, 1, 9)
    return {"line": line, "targets_from": len(prompt), "tokens": prompt + _tokens(draw, 1, 9)}


def _preference(draw: random.Random, line: int) -> dict[str, Any]:
    return {"line": line, "prompt": _tokens(draw, 1, 9), "chosen": _tokens(draw, 1, 9), "rejected": _tokens(draw, 1, 9)}


def _unpaired(draw: random.Random, line: int) -> dict[str, Any]:
    fields = {"line": line, "prompt": _tokens(draw, 1, 9), "completion": _tokens(draw, 1, 9)}
    return {**fields, "label": draw.random() < 0.5}


FORMATS: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "sft": _supervised,
    "dpo": _preference,
    "reward_model": _preference,
    "kto": _unpaired,
}
"""A row of each method's format."""


def write_rows(path: Path, method: str, count: int = 23, seed: int = 0) -> Path:
    """Writes random rows in a method's format."""
    draw = random.Random(seed)  # noqa: S311 - rows for a test
    path.write_text("".join(json.dumps(FORMATS[method](draw, line)) + "\n" for line in range(1, count + 1)))
    return path


def tiny_spec(folder: Path, method: dict[str, Any], adaptation: str = "lora", **changes: Any) -> TrainSpec:
    """A short run with dropout and accumulation; model and rows are made in `folder` if they are not there."""
    base, rows = folder / "base", folder / f"{method['name']}.jsonl"
    if not base.exists():
        write_tiny_model(base)
    if not rows.exists():
        write_rows(rows, method["name"])
    outer = {name: changes.pop(name) for name in list(changes) if name in TrainSpec.model_fields}
    dropout = changes.pop("dropout", 0.2)
    training: dict[str, Any] = {
        "steps": 7,
        "micro_batch_size": 2,
        "gradient_accumulation": 3,
        "learning_rate": 1e-2,
        "learning_rate_schedule": "cosine",
        "checkpoint_every_steps": 2,
        "weight_decay": 0.1,
        **changes,
    }
    fields: dict[str, Any] = {
        "output_dir": folder / "out",
        "base_model_dir": base,
        "train_path": rows,
        "method": method,
        "adaptation": AdaptationSpec.model_validate({"method": adaptation, "lora": LoraSpec(rank=2, alpha=4, dropout=dropout)}),
        "training": StageTraining(**training),
        "threads": 1,
        "max_run_seconds": 600.0,
    }
    return TrainSpec(**{**fields, **outer})
