"""One run's model, optimizer and place in the data, and the optimizer step that moves them on."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from control_plane.jobs.states import FailureKind
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.models.activations import checkpoint_activations
from workers.runner.models.adaptation import adapt
from workers.runner.models.documents import compile_layers
from workers.runner.models.loading import autocast, device, use_threads
from workers.runner.models.sharding import whole
from workers.runner.specs import TrainSpec
from workers.runner.training.checkpoint import Snapshot, Weights, read_state, restore, snapshot
from workers.runner.training.guard import check_norm, not_finite, numeric_error
from workers.runner.training.identity import environment_of, identity_of
from workers.runner.training.objective import Mean, Objective, Step
from workers.runner.training.objectives import objective_of
from workers.runner.training.order import learning_rate
from workers.runner.training.ranks import Ranks
from workers.runner.training.state import RunState, random_state, restore_random_state


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did. loss: the step's. tokens: all that went through the trained model."""

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    method: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the method measures besides."""


class Trainer:
    """A training between two optimizer steps.

    `state` says how far it is. The learning rate is a function of the step and what is dealt a function of the data
    position, so besides parameters and moments only torch's random state (which dropout draws from) and what the
    objective keeps are saved.
    """

    def __init__(self, spec: TrainSpec, stop: threading.Event | None = None) -> None:
        use_threads(spec.threads)
        self.ranks = Ranks()
        self._spec = spec.training
        self._selection = spec.selection
        self._best: Weights | None = None
        self._resumed = False
        self._adaptation = adapt(spec.base_model_dir, spec.adaptation, spec.training.seed)
        checkpoint_activations(self._adaptation.model, spec.activation_checkpointing)
        if spec.compile_layers and device().type == "cuda":
            compile_layers(self._adaptation.model)
        self._adaptation.model.train()
        # What one process does between two steps, all do; so they are not stopped there one by one.
        stop = stop if stop is not None and self.ranks.count == 1 else threading.Event()
        self._objective: Objective[Any] = objective_of(spec, self._adaptation, stop)
        if self.ranks.count > 1 and self._objective.heads():
            raise RunnerError(
                FailureKind.USER_ERROR, f"{spec.method.name} trains a head, which one process alone can do; set processes to 1"
            )
        self.ranks.share(self._adaptation, spec.training.gradient_accumulation, spec.training.seed)
        self._parameters = _trained(self._adaptation.parameters(), self._objective.heads())
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=0.0, weight_decay=spec.training.weight_decay)
        self._max_norm = spec.training.max_grad_norm * spec.max_norm_ratio
        self.state = RunState(
            step=0,
            position=0,
            tokens_seen=0,
            loss=0.0,
            identity=identity_of(spec),
            environment=environment_of(spec.threads, self.ranks.count),
        )

    @property
    def trained_parameters(self) -> int:
        """Number of values that are trained."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def result_name(self) -> str:
        """The directory of the result below the output directory."""
        return self._adaptation.result_name

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
        self._best = restore(checkpoint, self._adaptation, self._objective, self._optimizer, self._parameters, self.ranks)
        if saved.step and saved.selection.best_step == saved.step:
            self._best = Weights.of(self._adaptation, self._objective)
        self._resumed = True
        here = self.state.environment
        self.state = saved.model_copy(update={"environment": here})
        return [
            f"{name} was {saved.environment.get(name)}, is {value}"
            for name, value in here.items()
            if saved.environment.get(name) != value
        ]

    def begin(self) -> None:
        """Makes ready what the objective needs before the first step of a run that was not resumed.

        Raises:
            PreemptedError: asked to stop.
        """
        if not self._resumed:
            self._objective.begin()

    def snapshot(self) -> Snapshot:
        """A copy of the run as it stands. Every rank."""
        best = None if self.state.selection.best_step == self.state.step else self._best
        return snapshot(self._adaptation, self._objective, self._optimizer, self._parameters, self.state, best, self.ranks)

    def result(self) -> Weights:
        """What was trained: the best of the evaluated steps where they select, else as it stands. Every rank."""
        return self._best or Weights.of(self._adaptation, self._objective)

    def save_result(self, folder: Path, result: Weights) -> None:
        """Writes what `result` gave."""
        result.release(folder, self._adaptation)

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or no more are worth making."""
        return self._no_more_steps and not self.evaluation_due

    @property
    def evaluation_due(self) -> bool:
        """Whether the step in hand is to be evaluated before the next."""
        step, selection = self.state.step, self._selection
        if selection is None or self.state.selection.evaluated_step == step:
            return False
        return step % selection.every_steps == 0 or step == self._spec.steps

    @property
    def _no_more_steps(self) -> bool:
        patience = None if self._selection is None else self._selection.patience
        return self.state.step >= self._spec.steps or self.state.selection.exhausted(patience)

    def evaluate(self) -> float:
        """Measures the loss on the held-out rows, and keeps the weights if they are the best so far.

        Raises:
            RunnerError: NUMERIC, if the loss is not finite; USER_ERROR, if the method has none to select by.
            PreemptedError: asked to stop; the evaluation is still due.
        """
        selection = self._selection
        mean = self._objective.evaluate()
        if mean is None or selection is None:
            raise RunnerError(
                FailureKind.USER_ERROR, "the method has no loss on held-out rows to select by; leave out `selection`"
            )
        if not math.isfinite(mean.value):
            raise RunnerError(
                FailureKind.NUMERIC, f"the loss on the held-out rows is {mean.value} after step {self.state.step}"
            )
        chosen = self.state.selection.evaluated(self.state.step, mean.value, selection.min_gain)
        if chosen.best_step == self.state.step:
            self._best = Weights.of(self._adaptation, self._objective)
        self.state = self.state.model_copy(update={"selection": chosen})
        return mean.value

    def train_step(self) -> StepMetrics:
        """Makes one optimizer step over the micro-batches that the objective deals.

        Raises:
            RunnerError: NUMERIC, before anything was updated: a loss or the gradient is not finite, or the gradient explodes.
            PreemptedError: asked to stop while it generated; the run is as it was before the step.
        """
        spec, state = self._spec, self.state
        step = self._deal()
        loss, metrics = self._accumulate(step)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._parameters.values(), spec.max_grad_norm)))
        check_norm(norm, self._max_norm, state.step + 1, step.batches)
        rate = learning_rate(spec, state.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._objective.after_step()
        tokens = sum(batch.tokens for batch in step.batches)
        self.state = state.model_copy(
            update={
                "step": state.step + 1,
                "position": step.next_position,
                "tokens_seen": state.tokens_seen + tokens,
                "loss": loss,
            }
        )
        measured = {name: mean.value for name, mean in metrics.items()}
        return StepMetrics(loss=loss, learning_rate=rate, grad_norm=norm, tokens=tokens, method=measured)

    def _deal(self) -> Step[Any]:
        before = random_state()
        try:
            return self._objective.deal(self.state.position)
        except PreemptedError:
            restore_random_state(before)
            raise

    def _accumulate(self, step: Step[Any]) -> tuple[float, dict[str, Mean]]:
        """Adds up the gradient of the step's loss."""
        loss = 0.0
        metrics: dict[str, Mean] = {}
        for batch in self.ranks.mine(step.batches):
            with autocast():
                found = self._objective.loss(batch)
            lines = [line for part in self.ranks.gather(not_finite(found.row_losses, batch)) for line in part]
            if lines:
                raise numeric_error("the loss is not finite", self.state.step + 1, lines)
            # Sharded gradients are averaged over the processes, and a step's loss is a sum.
            (found.loss * self.ranks.count).backward()
            loss += found.loss.item()
            for name, mean in found.metrics.items():
                metrics[name] = metrics.get(name, Mean(0.0, 0.0)) + mean
        return self._together(loss, metrics)

    def _together(self, loss: float, metrics: dict[str, Mean]) -> tuple[float, dict[str, Mean]]:
        parts = self.ranks.gather((loss, metrics))
        if len(parts) == 1:
            return parts[0]
        names = dict.fromkeys(name for _, part in parts for name in part)
        none = Mean(0.0, 0.0)
        return sum(part for part, _ in parts), {name: sum((part.get(name, none) for _, part in parts), none) for name in names}


def _trained(model: Mapping[str, Parameter], heads: Mapping[str, Parameter]) -> dict[str, Parameter]:
    return {**model, **{f"head.{name}": parameter for name, parameter in heads.items()}}
