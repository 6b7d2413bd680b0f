"""The result is the best of the evaluated steps, a run stops when it gains no more, and both survive any end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runner_support import CollectedEvents
from tiny_model import tiny_spec, write_rows

from control_plane.jobs.states import FailureKind
from workers.manifest import metric_of, sha256_of, verify_checkpoint
from workers.runner.data.tokenized import TokenizedRow
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.program import Context
from workers.runner.specs import SelectionSpec, TrainOk, TrainSpec
from workers.runner.training import loop
from workers.runner.training.checkpoint import checkpoint_path, read_state
from workers.runner.training.methods.over_rows import RowObjective
from workers.runner.training.methods.supervised import SupervisedObjective
from workers.runner.training.objective import Mean
from workers.runner.training.selection import Selection
from workers.runner.training.state import RunState

METHODS = pytest.mark.parametrize("name", ["sft", "dpo", "kto", "reward_model"])
ADAPTED = pytest.mark.parametrize("adaptation", ["lora", "full"])


def test_gains_are_counted_from_the_best() -> None:
    found = Selection()
    seen: list[tuple[int, int, bool]] = []
    for step, loss in enumerate([5.0, 4.0, 4.5, 3.95, 3.5, 3.6, 3.7], 1):
        found = found.evaluated(step, loss, min_gain=0.1)
        seen.append((found.best_step, found.without_gain, found.exhausted(2)))
    assert seen == [(1, 0, False), (2, 0, False), (2, 1, False), (2, 2, True), (5, 0, False), (5, 1, False), (5, 2, True)]
    assert not found.exhausted(None)


def _spec(folder: Path, name: str, adaptation: str, output: str, **changes: Any) -> TrainSpec:
    held_out = write_rows(folder / "held_out.jsonl", name, count=5, seed=9)
    fields: dict[str, Any] = {"steps": 12, "learning_rate": 0.05, "learning_rate_schedule": "constant", **changes}
    fields.setdefault("selection", SelectionSpec(every_steps=2, patience=3))
    # So few rows and so high a rate that the run soon learns them by heart and gets worse on others.
    write_rows(folder / f"{name}.jsonl", name, count=6)
    return tiny_spec(folder, {"name": name}, adaptation, eval_path=held_out, output_dir=folder / output, **fields)


def _result(spec: TrainSpec) -> dict[str, str]:
    folder = spec.output_dir / ("adapter" if spec.adaptation.method == "lora" else "model")
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def _checkpoints(spec: TrainSpec) -> list[tuple[Path, RunState]]:
    return [(path, read_state(path)) for path in sorted((spec.output_dir / "checkpoints").iterdir())]


def _evaluations(events: CollectedEvents) -> dict[int, float]:
    found = [fields for kind, fields in events.seen if kind == "progress" and "eval_loss" in fields["metrics"]]
    return {fields["step"]: fields["metrics"]["eval_loss"] for fields in found}


@METHODS
@ADAPTED
def test_the_best_step_is_the_result(name: str, adaptation: str, tmp_path: Path, events: CollectedEvents) -> None:
    spec = _spec(tmp_path, name, adaptation, "whole")
    ok = loop.run(Context(events=events), spec)
    losses = _evaluations(events)
    assert ok.best_step is not None
    assert ok.best_step == min(losses, key=lambda step: losses[step])
    assert ok.best_eval_loss == losses[ok.best_step]
    assert list(losses) == list(range(2, ok.steps + 1, 2))
    assert ok.steps == 12 or ok.steps == ok.best_step + 6
    metrics = {state.step: metric_of(verify_checkpoint(path)) for path, state in _checkpoints(spec)}
    assert metrics == {
        state.step: losses[state.step] if state.selection.best_step == state.step else None for _, state in _checkpoints(spec)
    }
    # The same run cut off at its best step leaves the same weights.
    cut = _spec(tmp_path, name, adaptation, "cut", steps=ok.best_step, selection=None)
    loop.run(Context(events=CollectedEvents()), cut)
    assert _result(cut) == _result(spec)


def _stop_after_a_step(events: CollectedEvents, context: Context) -> None:
    def stop(kind: str, fields: dict[str, Any]) -> None:
        if kind == "progress" and "loss" in fields["metrics"]:
            context.stop.set()

    events.on_event = stop


@METHODS
@ADAPTED
def test_the_best_survives_a_stop_at_any_step(name: str, adaptation: str, tmp_path: Path) -> None:
    whole = _spec(tmp_path, name, adaptation, "whole")
    expected = loop.run(Context(events=CollectedEvents()), whole)
    spec, resume_from = whole, None
    ends: list[TrainOk] = []
    for _ in range(20):
        context = Context(events=(events := CollectedEvents()))
        _stop_after_a_step(events, context)
        spec = _spec(tmp_path, name, adaptation, "stopped", resume_from=resume_from)
        try:
            ends.append(loop.run(context, spec))
            break
        except PreemptedError as stop:
            resume_from = stop.checkpoint
    assert _result(spec) == _result(whole)
    assert (ends[0].best_step, ends[0].best_eval_loss, ends[0].steps) == (
        expected.best_step,
        expected.best_eval_loss,
        expected.steps,
    )


def test_a_stop_within_an_evaluation_leaves_it_due(tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _spec(tmp_path, "sft", "lora", "whole")
    loop.run(Context(events=CollectedEvents()), whole)
    spec = _spec(tmp_path, "sft", "lora", "stopped")
    weight = SupervisedObjective.row_weight

    def stop_in_evaluation(self: SupervisedObjective, row: TokenizedRow) -> int:
        if not self._adaptation.model.training:  # pyright: ignore[reportPrivateUsage] - whether it evaluates
            context.stop.set()
        return weight(self, row)

    monkeypatch.setattr(SupervisedObjective, "row_weight", stop_in_evaluation)
    with pytest.raises(PreemptedError) as caught:
        loop.run(context, spec)
    monkeypatch.undo()
    assert caught.value.checkpoint == checkpoint_path(spec.output_dir, 2)
    again = _spec(tmp_path, "sft", "lora", "stopped", resume_from=caught.value.checkpoint)
    loop.run(Context(events=CollectedEvents()), again)
    assert _result(again) == _result(whole)


def test_a_loss_that_is_none_is_no_best(tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(_self: RowObjective[Any]) -> Mean:
        return Mean(float("nan"), 1.0)

    monkeypatch.setattr(RowObjective, "evaluate", nan)
    with pytest.raises(RunnerError, match="the loss on the held-out rows is nan after step 2") as caught:
        loop.run(context, _spec(tmp_path, "sft", "lora", "out"))
    assert caught.value.failure.kind is FailureKind.NUMERIC
