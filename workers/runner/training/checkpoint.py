"""Checkpoints: all that the next optimizer step depends on, as safetensors and JSON, under a manifest.

step-00000004/
  adapter_model.safetensors  adapter_config.json   the adapter, as it would be released at this step
  optimizer.safetensors                            AdamW's moments and step counts
  rng.safetensors                                  torch's random state on CPU and on every GPU
  state.json                                       step, data position, metrics, identity of the run, versions, threads
  manifest.json                                    name, size and SHA-256 of each; step
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from opentelemetry import context as otel_context
from peft import PeftModel
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from control_plane.jobs.states import FailureKind
from headway_client import telemetry
from workers.manifest import ManifestError, verify_manifest
from workers.runner.events import EventWriter
from workers.runner.failures import RunnerError
from workers.runner.files import atomic_directory
from workers.runner.models.adapters import adapter_config, adapter_tensors, restore_adapter, save_adapter, trainable

_OPTIMIZER_NAME = "optimizer.safetensors"
_RNG_NAME = "rng.safetensors"
_STATE_NAME = "state.json"


class RunState(BaseModel):
    """What of a run is numbers, not tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer steps completed."""
    rows_seen: int
    """The data position: places of the data order consumed."""
    tokens_seen: int
    loss: float
    """Nats per target token over the last step."""
    identity: dict[str, str]
    """What must be equal for a checkpoint to be continued: hashes of base model, data and spec."""
    environment: dict[str, str]
    """What must be equal for it to be continued to the same bits: library versions, threads, device."""


@dataclass(frozen=True)
class Snapshot:
    """A copy, on the CPU, of everything that a checkpoint holds; the run may go on while it is written."""

    state: RunState
    adapter: dict[str, Tensor]
    adapter_config: dict[str, Any]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return output_dir / "checkpoints" / f"step-{step:08d}"


def snapshot(model: PeftModel, optimizer: torch.optim.Optimizer, state: RunState) -> Snapshot:
    """Copies the run as it stands."""
    moments = {
        f"{key}.{name}": value.detach().to("cpu", copy=True)
        for name, parameter in trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }
    rng = {"cpu": torch.get_rng_state()}
    rng.update({f"cuda.{index}": value for index, value in enumerate(_cuda_rng())})
    return Snapshot(state, adapter_tensors(model), adapter_config(model), moments, rng)


def write_checkpoint(target: Path, content: Snapshot) -> None:
    """Writes a checkpoint that appears at `target` complete and durable, or not at all."""
    with atomic_directory(target, {"kind": "checkpoint", "step": content.state.step}) as folder:
        save_adapter(folder, content.adapter, content.adapter_config)
        save_file(content.optimizer, folder / _OPTIMIZER_NAME)
        save_file(content.rng, folder / _RNG_NAME)
        (folder / _STATE_NAME).write_text(content.state.model_dump_json(indent=1) + "\n")


def read_state(folder: Path) -> RunState:
    """Verifies every byte of a checkpoint, then reads its state.

    Raises:
        RunnerError: INTEGRITY, naming the file, what was expected and what was found.
    """
    try:
        verify_manifest(folder)
        return RunState.model_validate_json((folder / _STATE_NAME).read_bytes())
    except (ManifestError, OSError, ValueError) as error:
        raise RunnerError(
            FailureKind.INTEGRITY, f"checkpoint {folder.name} is damaged: {error}; resume from an earlier one"
        ) from error


def restore(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Puts a verified checkpoint back into model, optimizer and random state."""
    restore_adapter(model, folder)
    moments = load_file(folder / _OPTIMIZER_NAME)
    for name, parameter in trainable(model).items():
        suffix = "." + name
        for key in [key for key in moments if key.endswith(suffix)]:
            kind = key.removesuffix(suffix)
            value = moments.pop(key)
            # AdamW keeps its step counts on the CPU, its moments beside the weights.
            optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
    if moments:
        raise RunnerError(FailureKind.INTEGRITY, f"{_OPTIMIZER_NAME}: expected this adapter's moments, found others")
    rng = load_file(folder / _RNG_NAME)
    torch.set_rng_state(rng["cpu"])
    for index in range(len(_cuda_rng())):
        if f"cuda.{index}" in rng:
            torch.cuda.set_rng_state(rng[f"cuda.{index}"], index)


class CheckpointWriter:
    """Writes checkpoints off the training thread, one at a time, and reports each once it is complete."""

    def __init__(self, output_dir: Path, events: EventWriter) -> None:
        self._output_dir = output_dir
        self._events = events
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, content: Snapshot) -> Path:
        """Begins to write; waits first for the one before, whose failure is raised here."""
        self.wait()
        path = checkpoint_path(self._output_dir, content.state.step)
        self._pending = self._pool.submit(self._write, path, content, otel_context.get_current())
        return path

    def wait(self) -> None:
        """Returns when the checkpoint in hand is complete; raises what went wrong with it."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Waits and ends the thread, without raising."""
        self._pool.shutdown()

    def _write(self, path: Path, content: Snapshot, parent: otel_context.Context) -> None:
        token = otel_context.attach(parent)
        try:
            with telemetry.tracer().start_as_current_span("runner.checkpoint") as span:
                span.set_attribute("headway.step", content.state.step)
                write_checkpoint(path, content)
                self._events.checkpoint(content.state.step, path)
        finally:
            otel_context.detach(token)


def _cuda_rng() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
