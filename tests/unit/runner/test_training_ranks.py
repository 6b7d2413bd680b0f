"""Two processes that share a model and its passes come to what one comes to, and can be stopped and continued as one can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_support import Finished, run, start
from safetensors.torch import load_file
from tiny_model import tiny_spec

from workers.manifest import sha256_of, verify_manifest


def _spec(folder: Path, name: str, adaptation: str, output: str, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"steps": 6, "gradient_accumulation": 4, "processes": 2, "learning_rate": 1e-3, **changes}
    made = tiny_spec(folder, {"name": name}, adaptation, output_dir=folder / output, **fields)
    return made.model_dump(mode="json")


def _weights(folder: Path, adaptation: str) -> Path:
    return folder / ("adapter/adapter_model.safetensors" if adaptation == "lora" else "model/model.safetensors")


def _metrics(finished: Finished) -> list[dict[str, float]]:
    assert finished.code == 0, finished.stderr
    return [event["metrics"] for event in finished.events if event["type"] == "progress"]


@pytest.mark.parametrize(
    ("name", "adaptation", "more"),
    [("sft", "full", {"pass_tokens": 30}), ("dpo", "lora", {}), ("kto", "full", {"activation_checkpointing": "selective"})],
)
def test_two_processes_come_to_what_one_comes_to(name: str, adaptation: str, more: dict[str, Any], tmp_path: Path) -> None:
    two = start("train", _spec(tmp_path, name, adaptation, "two", dropout=0.0, **more))
    one = run("train", _spec(tmp_path, name, adaptation, "one", dropout=0.0, processes=1, **more))
    expected, found = _metrics(one), _metrics(two.finish())
    assert len(found) == len(expected) == 6
    for here, there in zip(found, expected, strict=True):
        assert here.keys() == there.keys()
        for metric in here.keys() - {"tokens_per_second"}:
            assert here[metric] == pytest.approx(there[metric], rel=1e-4, abs=1e-6), metric
    wanted = load_file(_weights(tmp_path / "one", adaptation))
    for key, weight in load_file(_weights(tmp_path / "two", adaptation)).items():
        torch.testing.assert_close(weight, wanted[key], rtol=1e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_two_processes_stopped_and_continued_equal_uninterrupted(tmp_path: Path) -> None:
    adaptation = "lora"  # With dropout: each process has a random state of its own.
    changes: dict[str, Any] = {"steps": 60, "checkpoint_every_steps": 50}
    whole = start("train", _spec(tmp_path, "sft", adaptation, "whole", **changes))
    stopped = start("train", _spec(tmp_path, "sft", adaptation, "stopped", **changes))
    for event in stopped.events():
        if event["type"] == "progress" and event["step"] >= 5:
            stopped.process.send_signal(signal.SIGTERM)
            break
    end = stopped.finish()
    assert end.code == 75, end.stderr
    checkpoint = Path(end.result["preempted"]["checkpoint"])
    assert 5 <= verify_manifest(checkpoint)["extra"]["step"] < 60
    again = run("train", _spec(tmp_path, "sft", adaptation, "again", resume_from=checkpoint, **changes))
    assert (again.code, whole.finish().code) == (0, 0), again.stderr
    assert sha256_of(_weights(tmp_path / "again", adaptation)) == sha256_of(_weights(tmp_path / "whole", adaptation))


def test_what_two_processes_cannot_do_is_refused(tmp_path: Path) -> None:
    uneven = start("train", _spec(tmp_path, "sft", "lora", "uneven", gradient_accumulation=3))
    head = run("train", _spec(tmp_path, "reward_model", "lora", "head"))
    end = uneven.finish()
    assert (end.code, head.code) == (64, 64), end.stderr + head.stderr
    assert "expected a multiple of the 2 processes" in end.result["failure"]["message"]
    assert "reward_model trains a head" in head.result["failure"]["message"]


def test_torchrun_can_start_them(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(_spec(tmp_path, "sft", "lora", "out", steps=2)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*command, "-m", "workers.runner.train", str(spec)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["ok"]["steps"] == 2
