"""A real model, small: SmolLM2's GGUF cut to its first two layers and two thousand tokens, imported by the real program."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from runner_support import ROWS, CollectedEvents, Finished, run

from tests.small_model import write_small_gguf
from workers.manifest import sha256_of
from workers.runner.events import EventWriter
from workers.runner.program import Context
from workers.runner.specs import PrepareSpec


@pytest.fixture
def events() -> CollectedEvents:
    return CollectedEvents()


@pytest.fixture
def context(events: CollectedEvents) -> Context:
    return Context(events=events, stop=threading.Event())


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's GGUF, cut. The vocabulary is a working one: the tokens that the first merges make."""
    target = tmp_path_factory.mktemp("gguf") / "blob-without-suffix"
    write_small_gguf(target)
    return target


@pytest.fixture(scope="session")
def imported(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The end of the import program over the cut model."""
    output_dir = tmp_path_factory.mktemp("imported")
    spec = {"source_path": small_gguf, "source_sha256": sha256_of(small_gguf), "output_dir": output_dir}
    finished = run("import_base_model", spec)
    assert finished.code == 0, finished.stderr
    return finished


@pytest.fixture(scope="session")
def base_model(imported: Finished) -> Path:
    """The imported model's directory."""
    return imported.output_dir / "model"


@pytest.fixture(scope="session")
def prepared(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and eval.jsonl over rows of arithmetic, made in this process."""
    from workers.runner.data.preparation import run as prepare  # noqa: PLC0415 - only tests that need it load the tokenizer

    folder = tmp_path_factory.mktemp("prepared")
    dataset = folder / "dataset.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    spec = PrepareSpec(
        dataset_path=dataset,
        base_model_dir=base_model,
        output_dir=folder,
        max_tokens=64,
        eval_fraction=0.25,
        split_seed=0,
    )
    prepare(Context(events=EventWriter(None)), spec)
    return folder / "data"
