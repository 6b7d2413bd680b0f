"""One run's model, optimizer and place in the data, and the optimizer step that moves them on."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from control_plane.jobs.spec import canonical_sha256
from control_plane.jobs.states import FailureKind
from workers.manifest import sha256_of
from workers.runner.data.tokenized import TokenizedRow, batches, read_rows
from workers.runner.failures import RunnerError
from workers.runner.models.adapters import adapter_config, adapter_tensors, inject_lora, save_adapter, trainable
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import autocast, device, load_base_model, use_threads
from workers.runner.specs import TrainSpec
from workers.runner.training.checkpoint import RunState, Snapshot, read_state, restore, snapshot
from workers.runner.training.order import DataOrder, learning_rate

_LIBRARIES = ("numpy", "torch", "transformers", "peft", "safetensors")
_MOST_NAMED_ROWS = 20


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did. loss: nats per target token. tokens: all that went through the model."""

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int


class Trainer:
    """A LoRA fine-tune between two optimizer steps.

    `state` says how far it is. The learning rate and the order of the rows are functions of the step, so besides weights and
    moments only torch's random state (which dropout draws from) has to be kept.
    """

    def __init__(self, spec: TrainSpec) -> None:
        use_threads(spec.threads)
        self._spec = spec.training
        self._rows = read_rows(spec.train_path)
        self._order = DataOrder(len(self._rows), spec.training.seed)
        self._model = inject_lora(load_base_model(spec.base_model_dir), spec.lora, spec.training.seed)
        self._model.train()
        self._parameters = list(trainable(self._model).values())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=0.0, weight_decay=spec.training.weight_decay)
        self.state = RunState(
            step=0, rows_seen=0, tokens_seen=0, loss=0.0, identity=_identity(spec), environment=_environment(spec.threads)
        )

    @property
    def adapter_parameters(self) -> int:
        """Number of values that are trained."""
        return sum(parameter.numel() for parameter in self._parameters)

    def resume(self, checkpoint: Path) -> list[str]:
        """Continues from a checkpoint; returns what differs from where it was written, which costs bit-exactness.

        Raises:
            RunnerError: INTEGRITY, if it is damaged or of another run.
        """
        saved = read_state(checkpoint)
        for name, expected in self.state.identity.items():
            if saved.identity.get(name) != expected:
                raise RunnerError(
                    FailureKind.INTEGRITY,
                    f"checkpoint {checkpoint.name} is of another run: expected {name} {expected}, "
                    f"found {saved.identity.get(name)}",
                )
        restore(checkpoint, self._model, self._optimizer)
        here = self.state.environment
        self.state = saved.model_copy(update={"environment": here})
        return [
            f"{name} was {saved.environment.get(name)}, is {value}"
            for name, value in here.items()
            if saved.environment.get(name) != value
        ]

    def snapshot(self) -> Snapshot:
        """A copy of the run as it stands."""
        return snapshot(self._model, self._optimizer, self.state)

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter as it stands."""
        save_adapter(folder, adapter_tensors(self._model), adapter_config(self._model))

    def train_step(self) -> StepMetrics:
        """Makes one optimizer step over `gradient_accumulation` micro-batches.

        Raises:
            RunnerError: NUMERIC, before anything was updated, if a loss or the gradient is not finite.
        """
        spec, state = self._spec, self.state
        count = spec.micro_batch_size * spec.gradient_accumulation
        rows = [self._rows[index] for index in self._order.take(state.rows_seen, count)]
        loss = self._accumulate(rows)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, spec.max_grad_norm))
        if not math.isfinite(norm):
            raise self._numeric(f"the gradient's norm is {norm}", rows)
        rate = learning_rate(spec, state.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        tokens = sum(len(row.tokens) for row in rows)
        self.state = state.model_copy(
            update={
                "step": state.step + 1,
                "rows_seen": state.rows_seen + count,
                "tokens_seen": state.tokens_seen + tokens,
                "loss": loss,
            }
        )
        return StepMetrics(loss=loss, learning_rate=rate, grad_norm=norm, tokens=tokens)

    def _accumulate(self, rows: Sequence[TokenizedRow]) -> float:
        """Adds up the gradient of the mean loss per target token of the whole step, however it is cut into micro-batches."""
        targets = sum(row.target_count for row in rows)
        loss = 0.0
        for micro_batch in batches(rows, self._spec.micro_batch_size):
            with autocast():
                losses = document_losses(self._model.get_base_model(), Documents.of(micro_batch, device()))
            self._check_finite(micro_batch, losses.detach())
            mean = losses.sum() / targets
            mean.backward()
            loss += mean.item()
        return loss

    def _check_finite(self, rows: Sequence[TokenizedRow], losses: Tensor) -> None:
        finite = losses.isfinite().tolist()
        if not all(finite):
            raise self._numeric("the loss is not finite", [row for row, good in zip(rows, finite, strict=True) if not good])

    def _numeric(self, what: str, rows: Sequence[TokenizedRow]) -> RunnerError:
        lines = ", ".join(str(row.line) for row in rows[:_MOST_NAMED_ROWS])
        more = f" and {len(rows) - _MOST_NAMED_ROWS} more" if len(rows) > _MOST_NAMED_ROWS else ""
        return RunnerError(
            FailureKind.NUMERIC,
            f"{what} at step {self.state.step + 1}, with the rows of lines {lines}{more} of the dataset; nothing was updated. "
            "Look at these rows, or lower the learning rate",
        )


def _identity(spec: TrainSpec) -> dict[str, str]:
    weights = hashlib.sha256()
    for path in sorted(spec.base_model_dir.glob("*.safetensors")):
        weights.update(f"{path.name} {sha256_of(path)}\n".encode())
    return {
        "base_model_sha256": weights.hexdigest(),
        "train_rows_sha256": sha256_of(spec.train_path),
        "spec_sha256": canonical_sha256(
            {"lora": spec.lora.model_dump(mode="json"), "training": spec.training.model_dump(mode="json")}
        ),
    }


def _environment(threads: int) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "device": torch.cuda.get_device_name() if device().type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": str(threads),
    }
