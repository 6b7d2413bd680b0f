"""The train program's spec: what is written by one process is what the other reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control_plane.jobs.spec import StageTraining, TrainingSpec
from workers.runner.specs import TrainSpec


def _spec(**changes: Any) -> TrainSpec:
    fields: dict[str, Any] = {
        "output_dir": Path("out"),
        "base_model_dir": Path("base"),
        "train_path": Path("train.jsonl"),
        "threads": 1,
        "max_run_seconds": 1.0,
        "training": TrainingSpec(),
    }
    return TrainSpec(**{**fields, **changes})


@pytest.mark.parametrize("training", [TrainingSpec(), StageTraining(), StageTraining(learning_rate_schedule="cosine")])
def test_the_kind_of_training_survives_the_file(training: TrainingSpec) -> None:
    spec = _spec(training=training)
    assert type(spec.training) is type(training)
    read = TrainSpec.model_validate_json(spec.model_dump_json())
    assert read == spec
    assert type(read.training) is type(training)


def test_what_a_spec_of_few_words_means_is_the_fine_tunes_default() -> None:
    assert _spec(training={}).training == TrainingSpec()
