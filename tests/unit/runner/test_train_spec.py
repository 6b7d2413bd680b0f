"""The train program's spec: what is written by one process is what the other reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from control_plane.jobs.spec import StageTraining, TrainingSpec
from workers.runner.methods import Kto, Method
from workers.runner.specs import SelectionSpec, TrainSpec


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


def test_every_field_and_method_is_described() -> None:
    text = (Path(__file__).parents[3] / "docs/reference/runner.md").read_text(encoding="utf-8")
    for name in TrainSpec.model_fields:
        assert f"| `{name}` |" in text, f"docs/reference/runner.md does not describe {name}"
    for method in get_args(Method):
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{method.model_fields['name'].default}` |")]
        for setting in method.model_fields.keys() - {"name"}:
            assert f"`{setting}`" in row, f"docs/reference/runner.md does not describe {setting} of {row}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"selection": SelectionSpec(every_steps=1)}, "expected eval_path"),
        ({"compile_layers": True, "activation_checkpointing": "full"}, "a layer that is made again is not compiled"),
        ({"method": Kto(), "training": TrainingSpec(micro_batch_size=1)}, "KTO compares a step's answers"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _spec(**changes)
