"""A small model, trained by the real programs: what benchmarks of checkpoints begin with."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.small_model import write_small_gguf
from workers.manifest import sha256_of

_ROWS = [
    {"prompt": f"What is {number} and {other}?", "completion": f"It is {number + other}, as {number} is not {other}."}
    for number in range(2, 12)
    for other in range(20, 24)
]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Directories of a base model and of prepared data: train.jsonl and eval.jsonl."""

    base_model: Path
    data: Path


async def inputs(folder: Path) -> Inputs:
    """Imports the base model and prepares the data.

    Raises:
        RuntimeError: a program failed; with what it said.
    """
    source = folder / "small.gguf"
    await asyncio.to_thread(write_small_gguf, source)
    imported = {"source_path": source, "source_sha256": sha256_of(source), "output_dir": folder / "import"}
    await _run("import_base_model", imported)
    dataset = folder / "dataset.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    model = folder / "import/model"
    prepare = {"dataset_path": dataset, "base_model_dir": model, "output_dir": folder / "prepare"}
    await _run("prepare", {**prepare, "max_tokens": 64, "eval_fraction": 0.25, "split_seed": 0})
    return Inputs(model, folder / "prepare/data")


async def checkpoints(folder: Path, count: int) -> list[Path]:
    """Trains for `count` optimizer steps with a checkpoint at each, and returns them in order.

    Raises:
        RuntimeError: a program failed; with what it said.
    """
    made = await inputs(folder)
    training = {"steps": count, "micro_batch_size": 2, "checkpoint_every_steps": 1, "warmup_steps": 0}
    spec = {
        "base_model_dir": made.base_model,
        "train_path": made.data / "train.jsonl",
        "output_dir": folder / "train",
        "adaptation": {"lora": {"rank": 2, "alpha": 4, "dropout": 0.1}},
        "training": training,
        "threads": 1,
        "max_run_seconds": 600,
    }
    await _run("train", spec)
    return sorted((folder / "train/checkpoints").iterdir())


async def _run(program: str, spec: Mapping[str, Any]) -> None:
    output_dir = Path(spec["output_dir"])
    output_dir.mkdir()
    spec_path = output_dir / "spec.json"
    spec_path.write_text(json.dumps(spec, default=str))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"workers.runner.{program}", str(spec_path)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{program} ended with {process.returncode}: {said.decode()[-2_000:]}")
