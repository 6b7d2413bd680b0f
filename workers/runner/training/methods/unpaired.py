"""Kahneman-Tversky optimisation over single answers that are desirable or not."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from typing_extensions import override

from control_plane.jobs.spec import TrainingSpec
from workers.runner.methods import Kto
from workers.runner.models.adaptation import Adaptation
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import device
from workers.runner.training.methods.over_rows import RowObjective, Rows
from workers.runner.training.objective import Mean
from workers.runner.training.rows import UnpairedRow


class KtoObjective(RowObjective[UnpairedRow]):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306).

    The point that gains and losses are counted from is the divergence from the reference, estimated once for a step from its
    prompts with each other's answers; TRL 1.16's KTOTrainer estimates it for each pass, so that the two are equal where a step
    has one pass: tests/unit/runner/test_methods_against_trl.py. A step of one row, which has no other answer, is refused.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        rows: Rows[UnpairedRow],
        training: TrainingSpec,
        method: Kto,
        pass_tokens: int | None = None,
    ) -> None:
        super().__init__(adaptation, rows, training, pass_tokens)
        self._method = method

    @override
    def row_line(self, row: UnpairedRow) -> int:
        return row.line

    @override
    def row_tokens(self, row: UnpairedRow) -> int:
        return len(row.prompt) + len(row.completion)

    @override
    def in_common(self, passes: Sequence[Sequence[UnpairedRow]]) -> Tensor:
        rows = [row for part in passes for row in part]
        others = iter([rows[-1], *rows[:-1]])
        total = torch.zeros((), device=device())
        with _inference(self._adaptation):
            for part in passes:
                mismatched = [
                    UnpairedRow(row.line, row.prompt, other.completion, row.label)
                    for row, other in zip(part, others, strict=False)
                ]
                total = total + self._log_ratios(mismatched).sum()
        return (total / len(rows)).clamp(min=0)

    @override
    def row_losses(self, rows: Sequence[UnpairedRow], common: Tensor | None) -> tuple[Tensor, Mapping[str, Mean]]:
        assert common is not None  # noqa: S101 - `in_common` gives it
        method = self._method
        log_ratios = self._log_ratios(rows)
        desirable = torch.tensor([row.label for row in rows], device=log_ratios.device)
        gain = torch.where(desirable, log_ratios - common, common - log_ratios)
        weights = torch.where(desirable, method.desirable_weight, method.undesirable_weight)
        rewards = method.beta * log_ratios.detach()
        return weights * (1 - torch.sigmoid(method.beta * gain)), {
            "kl": Mean(common.item(), 1.0),
            "reward_desirable": Mean(rewards[desirable].sum().item(), int(desirable.sum())),
            "reward_undesirable": Mean(rewards[~desirable].sum().item(), int((~desirable).sum())),
        }

    def _log_ratios(self, rows: Sequence[UnpairedRow]) -> Tensor:
        documents = Documents.of([row.document() for row in rows], device())
        with torch.no_grad(), self._adaptation.reference() as reference:
            before = document_losses(reference, documents)
        return before - document_losses(self._adaptation.model, documents)


@contextmanager
def _inference(adaptation: Adaptation) -> Generator[None]:
    """Without dropout: an estimate is the better for it."""
    training = adaptation.model.training
    adaptation.model.eval()
    try:
        yield
    finally:
        adaptation.model.train(training)
