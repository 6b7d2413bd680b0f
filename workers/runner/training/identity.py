"""What a run is: hashes that must be equal for a checkpoint to be continued, and where it runs."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version

import torch

from control_plane.jobs.spec import canonical_sha256
from workers.manifest import sha256_of
from workers.runner.models.loading import device
from workers.runner.specs import TrainSpec

_LIBRARIES = ("numpy", "torch", "transformers", "peft", "safetensors")

_NOT_IDENTITY = {
    "output_dir",
    "base_model_dir",
    "train_path",
    "eval_path",
    "threads",
    "processes",
    "resume_from",
    "max_run_seconds",
}
"""Fields of the spec that say where and how long, not what; the files they name are hashed by content."""


def identity_of(spec: TrainSpec) -> dict[str, str]:
    """Hashes of the base model's weights, of the rows, and of what the spec asks for."""
    weights = hashlib.sha256()
    for path in sorted(spec.base_model_dir.glob("*.safetensors")):
        weights.update(f"{path.name} {sha256_of(path)}\n".encode())
    return {
        "base_model_sha256": weights.hexdigest(),
        "train_rows_sha256": sha256_of(spec.train_path),
        "spec_sha256": canonical_sha256(spec.model_dump(mode="json", exclude=_NOT_IDENTITY)),
    }


def environment_of(threads: int, processes: int) -> dict[str, str]:
    """What a result's last bits depend on besides: versions, processor, threads, processes."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "device": torch.cuda.get_device_name() if device().type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": str(threads),
        "processes": str(processes),
    }
