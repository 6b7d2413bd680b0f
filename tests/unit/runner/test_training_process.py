"""A training process can be ended anywhere and continued by another to the same adapter, to the last bit."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from runner_support import Running, start
from tiny_model import tiny_spec

from workers.manifest import sha256_of, verify_manifest
from workers.runner.specs import TrainOk, read_result

STEPS = 24


def _spec(output_dir: Path, base_model: Path, prepared: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base_model_dir": base_model,
        "train_path": prepared / "train.jsonl",
        "output_dir": output_dir,
        "adaptation": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
        "training": {
            "steps": STEPS,
            "micro_batch_size": 2,
            "gradient_accumulation": 2,
            "checkpoint_every_steps": 3,
        },
        "threads": 1,
        "max_run_seconds": 600,
        **changes,
    }


def _adapter(output_dir: Path) -> str:
    return sha256_of(output_dir / "adapter" / "adapter_model.safetensors")


def _signal_at_step(running: Running, step: int, signum: signal.Signals) -> None:
    for event in running.events():
        if event["type"] == "progress" and event["step"] >= step:
            running.process.send_signal(signum)
            return
    pytest.fail(f"the run ended before step {step}: {running.stderr_path.read_text()}")


def test_killed_or_stopped_and_resumed_equals_uninterrupted(base_model: Path, prepared: Path, tmp_path: Path) -> None:
    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))

    first = start("train", _spec(killed, base_model, prepared))
    uninterrupted = start("train", _spec(whole, base_model, prepared))
    _signal_at_step(first, 8, signal.SIGKILL)
    after_kill = first.finish()
    assert after_kill.code == -signal.SIGKILL
    assert after_kill.result == {}
    checkpoints = sorted(path for path in (killed / "checkpoints").iterdir() if not path.name.endswith(".partial"))
    last = checkpoints[-1]
    saved = verify_manifest(last)["extra"]["step"]
    assert 3 <= saved < STEPS - 6

    second = start("train", _spec(resumed, base_model, prepared, resume_from=last))
    _signal_at_step(second, saved + 4, signal.SIGTERM)
    after_stop = second.finish()
    assert after_stop.code == 75, after_stop.stderr
    stopped_at = after_stop.result["preempted"]["step"]
    checkpoint = Path(after_stop.result["preempted"]["checkpoint"])
    assert verify_manifest(checkpoint)["extra"]["step"] == stopped_at
    assert saved + 4 <= stopped_at < STEPS
    assert after_stop.events[-1]["type"] == "checkpoint" or stopped_at % 3 == 0

    third = start("train", _spec(resumed, base_model, prepared, resume_from=checkpoint)).finish()
    assert third.code == 0, third.stderr
    ok = read_result(resumed, TrainOk).ok
    assert ok is not None
    assert (ok.resumed_from_step, ok.steps) == (stopped_at, STEPS)

    finished = uninterrupted.finish()
    assert finished.code == 0, finished.stderr
    assert finished.result["ok"]["final_loss"] == ok.final_loss
    assert _adapter(resumed) == _adapter(whole)
    # The adapter of another step is another one: the comparison above can fail.
    assert sha256_of(checkpoint / "adapter_model.safetensors") != _adapter(whole)


@pytest.mark.parametrize(("name", "adaptation"), [("dpo", "full"), ("kto", "lora")])
def test_a_preference_run_killed_and_resumed_equals_uninterrupted(name: str, adaptation: str, tmp_path: Path) -> None:
    def spec(output: str, **more: Any) -> dict[str, Any]:
        changes: dict[str, Any] = {"steps": 200, "checkpoint_every_steps": 20, "micro_batch_size": 4, "pass_tokens": 60, **more}
        made = tiny_spec(tmp_path, {"name": name}, adaptation, output_dir=tmp_path / output, **changes)
        return made.model_dump(mode="json")

    killed = start("train", spec("killed"))
    whole = start("train", spec("whole"))
    _signal_at_step(killed, 50, signal.SIGKILL)
    assert killed.finish().code == -signal.SIGKILL
    checkpoints = sorted((tmp_path / "killed" / "checkpoints").glob("step-*[0-9]"))
    assert 1 < len(checkpoints) < 10
    resumed = start("train", spec("resumed", resume_from=checkpoints[-1])).finish()
    assert (resumed.code, whole.finish().code) == (0, 0), resumed.stderr
    result = "adapter/adapter_model.safetensors" if adaptation == "lora" else "model/model.safetensors"
    assert sha256_of(tmp_path / "resumed" / result) == sha256_of(tmp_path / "whole" / result)


def test_a_refused_allocation_is_out_of_memory(base_model: Path, prepared: Path, tmp_path: Path) -> None:
    spec = _spec(tmp_path, base_model, prepared)
    spec["adaptation"]["lora"]["dropout"] = 0.0
    spec["training"] |= {"micro_batch_size": 1_024, "gradient_accumulation": 1}
    limit = 1_500_000_000
    running = start("train", spec, before=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    finished = running.finish()
    assert finished.code == 77, finished.stderr
    assert finished.result["failure"]["kind"] == "OUT_OF_MEMORY"
    assert "micro_batch_size" in finished.result["failure"]["message"]
    assert not (tmp_path / "adapter").exists()
