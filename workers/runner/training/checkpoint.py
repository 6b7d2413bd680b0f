"""Checkpoints: all that the next optimizer step depends on, as safetensors and JSON, under a manifest.

step-00000004/
  adapter_model.safetensors  adapter_config.json   the adapter, or model*.safetensors and config.json: as released at this step
  head.safetensors                                 parameters beside the model's, if the method has any
  best/                                            the same of the best step so far, if it was an earlier one
  optimizer.safetensors                            AdamW's moments and step counts
  objective.safetensors                            what the method keeps besides, if anything
  rng.safetensors                                  torch's random state on CPU and on every GPU
  state.json                                       step, data position, metrics, identity of the run, versions, threads
  manifest.json                                    name, size and SHA-256 of each; step
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from opentelemetry import context as otel_context
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from control_plane.jobs.states import FailureKind
from headway_client import telemetry
from workers.manifest import ManifestError, checkpoint_name, verify_checkpoint
from workers.runner.events import EventWriter
from workers.runner.failures import RunnerError
from workers.runner.files import atomic_directory
from workers.runner.models.adaptation import Adaptation
from workers.runner.models.contents import check_checkpoint
from workers.runner.models.scoring_head import HEAD_NAME
from workers.runner.models.sharding import like, whole
from workers.runner.training.objective import Objective
from workers.runner.training.ranks import Ranks
from workers.runner.training.state import RunState, random_state, restore_random_state

_BEST_NAME = "best"
_OPTIMIZER_NAME = "optimizer.safetensors"
_OBJECTIVE_NAME = "objective.safetensors"
_RNG_NAME = "rng.safetensors"
_STATE_NAME = "state.json"


@dataclass(frozen=True)
class Weights:
    """A copy, on the CPU, of what a run trains, as it was at some step."""

    model: dict[str, Tensor]
    heads: dict[str, Tensor]

    @classmethod
    def of(cls, adaptation: Adaptation, objective: Objective[Any]) -> Weights:
        """As they are."""
        return cls(adaptation.tensors(), _copies(objective.heads()))

    @classmethod
    def load(cls, folder: Path, adaptation: Adaptation) -> Weights:
        """As they were saved."""
        path = folder / HEAD_NAME
        return cls(adaptation.load(folder), load_file(path) if path.is_file() else {})

    def save(self, folder: Path, adaptation: Adaptation) -> None:
        """Writes them, for a checkpoint."""
        adaptation.save(folder, self.model)
        self._save_heads(folder)

    def release(self, folder: Path, adaptation: Adaptation) -> None:
        """Writes them with all that is needed to use them beside the base model."""
        adaptation.release(folder, self.model)
        self._save_heads(folder)

    def _save_heads(self, folder: Path) -> None:
        if self.heads:
            save_file(self.heads, folder / HEAD_NAME)


@dataclass(frozen=True)
class Snapshot:
    """A copy, on the CPU, of everything that a checkpoint holds; the run may go on while it is written."""

    adaptation: Adaptation
    """Knows how its weights are written; its own, which go on changing, are not looked at."""
    state: RunState
    weights: Weights
    best: Weights | None
    """What the evaluations have found best, unless it is this step's."""
    optimizer: dict[str, Tensor]
    objective: dict[str, Tensor]
    rng: dict[str, Tensor]


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return output_dir / "checkpoints" / checkpoint_name(step)


def snapshot(
    adaptation: Adaptation,
    objective: Objective[Any],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    state: RunState,
    best: Weights | None,
    ranks: Ranks,
) -> Snapshot:
    """Copies the run as it stands. Every rank.

    Args:
        adaptation, objective, optimizer: the run's.
        parameters: those that the optimizer moves, by name.
        state: as in `Snapshot`.
        best: as in `Snapshot`.
        ranks: whose random states are kept.
    """
    moments = {
        f"{key}.{name}": whole(value.detach()).to("cpu", copy=True)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    weights = Weights.of(adaptation, objective)
    return Snapshot(adaptation, state, weights, best, moments, objective.tensors(), _random_states(ranks))


def write_checkpoint(target: Path, content: Snapshot) -> None:
    """Writes a checkpoint that appears at `target` complete and durable, or not at all."""
    state = content.state
    extra: dict[str, object] = {"kind": "checkpoint", "step": state.step}
    if state.selection.best_step == state.step > 0:
        # By which the retention of checkpoints knows the best.
        extra["metric"] = state.selection.best_loss
    with atomic_directory(target, extra) as folder:
        content.weights.save(folder, content.adaptation)
        if content.best is not None:
            (folder / _BEST_NAME).mkdir()
            content.best.save(folder / _BEST_NAME, content.adaptation)
        save_file(content.optimizer, folder / _OPTIMIZER_NAME)
        if content.objective:
            save_file(content.objective, folder / _OBJECTIVE_NAME)
        save_file(content.rng, folder / _RNG_NAME)
        (folder / _STATE_NAME).write_text(content.state.model_dump_json(indent=1) + "\n")


def read_state(folder: Path) -> RunState:
    """Verifies every byte of a checkpoint, then reads its state.

    Raises:
        RunnerError: INTEGRITY, naming the file, what was expected and what was found.
    """
    try:
        verify_checkpoint(folder)
        check_checkpoint(folder)
        return RunState.model_validate_json((folder / _STATE_NAME).read_bytes())
    except (ManifestError, OSError, ValueError) as error:
        raise RunnerError(
            FailureKind.INTEGRITY, f"checkpoint {folder.name} is damaged: {error}; resume from an earlier one"
        ) from error


def restore(
    folder: Path,
    adaptation: Adaptation,
    objective: Objective[Any],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    ranks: Ranks,
) -> Weights | None:
    """Puts a verified checkpoint back into weights, objective, optimizer and random state; returns the best, as in `Snapshot`.

    Raises:
        RunnerError: INTEGRITY, if its tensors are not those of this run.
    """
    adaptation.restore(folder)
    _restore_heads(folder, objective.heads())
    moments = load_file(folder / _OPTIMIZER_NAME)
    for name, parameter in parameters.items():
        suffix = "." + name
        for key in [key for key in moments if key.endswith(suffix) and "." not in key.removesuffix(suffix)]:
            kind = key.removesuffix(suffix)
            value = moments.pop(key)
            # AdamW keeps its step counts on the CPU, its moments beside the weights.
            optimizer.state[parameter][kind] = value if kind == "step" else like(value, parameter)
    if moments:
        raise _foreign(_OPTIMIZER_NAME, "the moments of what this job trains")
    kept = folder / _OBJECTIVE_NAME
    objective.restore(load_file(kept) if kept.is_file() else {})
    _restore_random_state(load_file(folder / _RNG_NAME), ranks)
    return Weights.load(folder / _BEST_NAME, adaptation) if (folder / _BEST_NAME).is_dir() else None


def _random_states(ranks: Ranks) -> dict[str, Tensor]:
    states = ranks.gather(random_state())
    return {_of_rank(rank, name): value for rank, state in enumerate(states) for name, value in state.items()}


def _restore_random_state(saved: Mapping[str, Tensor], ranks: Ranks) -> None:
    # A rank that there was not before keeps the state that it was given at the start.
    mine = {name: saved[_of_rank(ranks.rank, name)] for name in random_state() if _of_rank(ranks.rank, name) in saved}
    if mine:
        restore_random_state(mine)


def _of_rank(rank: int, name: str) -> str:
    return f"rank{rank}.{name}" if rank else name


def _restore_heads(folder: Path, heads: Mapping[str, Parameter]) -> None:
    path = folder / HEAD_NAME
    saved = load_file(path) if path.is_file() else {}
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in heads.items()}:
        raise _foreign(HEAD_NAME, "the tensors of this method's heads")
    with torch.no_grad():
        for name, parameter in heads.items():
            parameter.copy_(saved[name])


def _copies(parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in parameters.items()}


def _foreign(name: str, expected: str) -> RunnerError:
    return RunnerError(FailureKind.INTEGRITY, f"{name}: expected {expected}, found others")


class CheckpointWriter:
    """Writes checkpoints off the training thread, one at a time, and reports each once it is complete.

    Args:
        output_dir: the run's.
        events: told of each.
        writes: False in all processes of a run but one; they only know where it is.
    """

    def __init__(self, output_dir: Path, events: EventWriter, *, writes: bool) -> None:
        self._writes = writes
        self._output_dir = output_dir
        self._events = events
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, content: Snapshot) -> Path:
        """Begins to write; waits first for the one before, whose failure is raised here."""
        self.wait()
        path = checkpoint_path(self._output_dir, content.state.step)
        if self._writes:
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
