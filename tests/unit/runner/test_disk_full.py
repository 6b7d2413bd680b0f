"""A disk that is full in the middle of a save: the checkpoints from before are whole, and the program says what happened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runner_support import run

from workers.manifest import verify_checkpoint
from workers.runner.exit_codes import ExitCode

# In a mount namespace of its own, so that it needs no privileges: a small disk, the program on it, and what it left copied out.
_ON_A_SMALL_DISK = """
mount -t tmpfs -o size="$1" none "$2" || exit 99
"$3" -m workers.runner.train "$4"
code=$?
cp -r "$2/." "$5"
exit $code
"""


def _spec(output_dir: Path, base_model: Path, prepared: Path) -> dict[str, Any]:
    return {
        "base_model_dir": base_model,
        "train_path": prepared / "train.jsonl",
        "output_dir": output_dir,
        "adaptation": {"lora": {"rank": 16, "alpha": 8, "dropout": 0.0}},
        "training": {"steps": 4, "micro_batch_size": 1, "checkpoint_every_steps": 1},
        "threads": 1,
        "max_run_seconds": 600,
    }


def _has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-r", "-m", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_namespaces(), reason="needs mount namespaces without privileges, which this system does not give")
def test_the_checkpoints_from_before_are_whole(base_model: Path, prepared: Path, tmp_path: Path) -> None:
    whole = run("train", _spec(tmp_path / "whole", base_model, prepared))
    assert whole.code == ExitCode.DONE, whole.stderr
    size = sum(path.stat().st_size for path in (tmp_path / "whole/checkpoints/step-00000001").iterdir())
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    left.mkdir()
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(_spec(disk, base_model, prepared), default=str))
    ended = subprocess.run(
        [
            *("unshare", "-r", "-m", "sh", "-c", _ON_A_SMALL_DISK, "sh"),
            *(str(5 * size // 2), str(disk), sys.executable, str(spec), str(left)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == ExitCode.INTERNAL, ended.stderr
    failure = json.loads((left / "result.json").read_text())["failure"]
    assert failure["kind"] == "PLATFORM"
    assert "ran out of disk space" in failure["message"]
    assert "worker.scratch_dir" in failure["message"]
    checkpoints = sorted(path.name for path in (left / "checkpoints").iterdir())
    assert checkpoints == ["step-00000001", "step-00000002"]
    for name in checkpoints:
        verify_checkpoint(left / "checkpoints" / name)
