"""Supervised fine-tuning: the mean negative log-likelihood per target token of the whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from control_plane.jobs.spec import TrainingSpec
from workers.runner.data.tokenized import TokenizedRow, batches
from workers.runner.models.adaptation import Adaptation
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import device
from workers.runner.training.objective import BatchLoss, Objective, Step
from workers.runner.training.order import DataOrder


@dataclass(frozen=True)
class SupervisedBatch:
    """Rows of one pass, and how many tokens carry loss in the whole step."""

    rows: Sequence[TokenizedRow]
    step_targets: int

    @property
    def lines(self) -> Sequence[int]:
        """Of each row."""
        return [row.line for row in self.rows]

    @property
    def tokens(self) -> int:
        """Of prompts and completions."""
        return sum(len(row.tokens) for row in self.rows)


class SupervisedObjective(Objective[SupervisedBatch]):
    """Rows in the data order, `micro_batch_size` of them in a pass.

    Every target token of a step weighs the same, however the step is cut into micro-batches.
    """

    def __init__(self, adaptation: Adaptation, rows: Sequence[TokenizedRow], training: TrainingSpec) -> None:
        self._adaptation = adaptation
        self._rows = rows
        self._training = training
        self._order = DataOrder(len(rows), training.seed)

    @override
    def deal(self, position: int) -> Step[SupervisedBatch]:
        size = self._training.micro_batch_size
        count = size * self._training.gradient_accumulation
        rows = [self._rows[index] for index in self._order.take(position, count)]
        targets = sum(row.target_count for row in rows)
        return Step([SupervisedBatch(part, targets) for part in batches(rows, size)], position + count)

    @override
    def loss(self, batch: SupervisedBatch) -> BatchLoss:
        losses = document_losses(self._adaptation.model, Documents.of(batch.rows, device()))
        return BatchLoss(losses.sum() / batch.step_targets, losses.detach())
