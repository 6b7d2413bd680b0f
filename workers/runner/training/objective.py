"""The port between the trainer, which owns the optimizer step, and a training method, which owns what is minimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from torch import Tensor
from torch.nn import Parameter


class MicroBatch(Protocol):
    """What goes through the model in one forward and backward pass."""

    @property
    def lines(self) -> Sequence[int]:
        """The dataset's line of each row, counted from 1."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that go through the trained model."""
        ...


BatchT = TypeVar("BatchT", bound=MicroBatch)


@dataclass(frozen=True)
class Step(Generic[BatchT]):
    """One optimizer step's micro-batches, and the data position of the step after it."""

    batches: Sequence[BatchT]
    next_position: int


@dataclass(frozen=True)
class Mean:
    """A mean in parts: the sum of the parts' totals over the sum of their weights."""

    total: float
    weight: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float:
        """The mean; 0 over nothing."""
        return self.total / self.weight if self.weight else 0.0


@dataclass(frozen=True)
class BatchLoss:
    """What a micro-batch contributes to its step."""

    loss: Tensor
    """A number with a gradient, scaled so that the sum over the step's micro-batches is the step's loss."""
    row_losses: Tensor
    """(rows,), detached: what each of the micro-batch's rows adds, to name those that are not finite."""
    metrics: Mapping[str, Mean] = field(default_factory=dict[str, Mean])


class Objective(ABC, Generic[BatchT]):
    """What a method minimises, over which data.

    Everything that a next step depends on is the data position, the trained parameters, torch's random state, and what
    `tensors` holds; so a run goes on from a checkpoint of these to the same bits.
    """

    @abstractmethod
    def deal(self, position: int) -> Step[BatchT]:
        """The micro-batches of the optimizer step at a data position; online methods generate here.

        Raises:
            PreemptedError: the program was asked to stop while it generated. Nothing but torch's random state has changed.
            RunnerError: there is nothing to learn from in the rows dealt, which are named.
        """

    @abstractmethod
    def loss(self, batch: BatchT) -> BatchLoss:
        """The loss of a micro-batch, in the step's scale. Called under autocast, with gradients."""

    def after_step(self) -> None:
        """Told when the optimizer has stepped."""
        return

    def begin(self) -> None:
        """Told before the first step of a run from the start; a resumed run gets `restore` instead.

        Raises:
            PreemptedError: the program was asked to stop.
        """
        return

    def heads(self) -> Mapping[str, Parameter]:
        """Parameters beside the model's that are trained with it, by name. Saved with the result as `head.safetensors`."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides parameters and their moments: copies, on the CPU."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave."""
        return

    def evaluate(self) -> Mean | None:
        """The loss over the evaluation rows without gradients; None if the method has no such loss or was given no rows.

        Raises:
            PreemptedError: the program was asked to stop.
        """
        return None
