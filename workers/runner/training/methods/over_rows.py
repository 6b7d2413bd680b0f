"""What the methods over a fixed set of rows share: how a step's rows are dealt, weighed and evaluated."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from control_plane.jobs.spec import TrainingSpec
from workers.runner.failures import PreemptedError
from workers.runner.models.adaptation import Adaptation
from workers.runner.models.loading import autocast
from workers.runner.training.objective import BatchLoss, Mean, Objective, Step
from workers.runner.training.order import DataOrder, passes

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class RowBatch(Generic[RowT]):
    """Rows of one pass."""

    rows: Sequence[RowT]
    lines: Sequence[int]
    tokens: int
    step_weight: int
    """Weight of all rows of the step together."""
    common: Tensor | None
    """What the step's rows have in common, for methods that find such a thing before the first pass."""


@dataclass(frozen=True)
class Rows(Generic[RowT]):
    """The rows of a run.

    train: to learn from. evaluation: to measure on; may be empty. stop: set when the program was asked to stop.
    """

    train: Sequence[RowT]
    evaluation: Sequence[RowT]
    stop: threading.Event


class RowObjective(Objective[RowBatch[RowT]], Generic[RowT]):
    """Rows in the data order; a step's loss is the weighted mean over its rows, however it is cut into micro-batches.

    Args:
        adaptation: the model and what is trained of it.
        rows: what to learn from and to measure on.
        training: how rows make a step.
        pass_tokens: if given, a pass takes as many rows as have so many tokens together, at least one and at most
            `micro_batch_size`.
    """

    def __init__(
        self, adaptation: Adaptation, rows: Rows[RowT], training: TrainingSpec, pass_tokens: int | None = None
    ) -> None:
        self._adaptation = adaptation
        self._rows = rows
        self._training = training
        self._pass_tokens = pass_tokens
        self._order = DataOrder(len(rows.train), training.seed)

    @abstractmethod
    def row_losses(self, rows: Sequence[RowT], common: Tensor | None) -> tuple[Tensor, Mapping[str, Mean]]:
        """(rows,): each row's loss times its weight, with its gradient; and metrics."""

    @abstractmethod
    def row_line(self, row: RowT) -> int:
        """The row's line in the dataset."""

    @abstractmethod
    def row_tokens(self, row: RowT) -> int:
        """Tokens that go through the model for a row."""

    def row_weight(self, row: RowT) -> int:
        """What a row weighs in the mean."""
        return 1

    def in_common(self, passes: Sequence[Sequence[RowT]]) -> Tensor | None:
        """What the rows of a step, or of a pass of the evaluation, have in common. Called under autocast, without gradients."""
        return None

    @override
    def deal(self, position: int) -> Step[RowBatch[RowT]]:
        dealt = passes(
            (self._rows.train[index] for index in self._order.from_position(position)),
            count=self._training.gradient_accumulation,
            most_rows=self._training.micro_batch_size,
            most_tokens=self._pass_tokens,
            tokens_of=self.row_tokens,
        )
        return Step(self._batches(dealt), position + sum(map(len, dealt)))

    @override
    def loss(self, batch: RowBatch[RowT]) -> BatchLoss:
        losses, metrics = self.row_losses(batch.rows, batch.common)
        return BatchLoss(losses.sum() / batch.step_weight, losses.detach(), metrics)

    @override
    def evaluate(self) -> Mean | None:
        rows, size = self._rows.evaluation, self._training.micro_batch_size
        if not rows:
            return None
        training = self._adaptation.model.training
        self._adaptation.model.eval()
        try:
            total = Mean(0.0, 0.0)
            for start in range(0, len(rows), size):
                if self._rows.stop.is_set():
                    raise PreemptedError
                [batch] = self._batches([rows[start : start + size]])
                with torch.no_grad(), autocast():
                    losses, _ = self.row_losses(batch.rows, batch.common)
                total += Mean(losses.sum().item(), batch.step_weight)
            return total
        finally:
            self._adaptation.model.train(training)

    def _batches(self, dealt: Sequence[Sequence[RowT]]) -> list[RowBatch[RowT]]:
        weight = sum(self.row_weight(row) for rows in dealt for row in rows)
        with torch.no_grad(), autocast():
            common = self.in_common(dealt)
        return [
            RowBatch(
                rows=rows,
                lines=[self.row_line(row) for row in rows],
                tokens=sum(map(self.row_tokens, rows)),
                step_weight=weight,
                common=common,
            )
            for rows in dealt
        ]
