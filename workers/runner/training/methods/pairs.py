"""Methods over pairs of a better and a worse answer: direct preference optimisation, and reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import logsigmoid
from typing_extensions import override

from control_plane.jobs.spec import TrainingSpec
from workers.runner.data.tokenized import TokenizedRow
from workers.runner.methods import Dpo
from workers.runner.models.adaptation import Adaptation
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import device
from workers.runner.models.scoring_head import ScoringHead
from workers.runner.training.methods.over_rows import RowObjective, Rows
from workers.runner.training.objective import Mean
from workers.runner.training.rows import PreferenceRow


class _PairObjective(RowObjective[PreferenceRow]):
    @override
    def row_line(self, row: PreferenceRow) -> int:
        return row.line

    @override
    def row_tokens(self, row: PreferenceRow) -> int:
        return 2 * len(row.prompt) + len(row.chosen) + len(row.rejected)


class DpoObjective(_PairObjective):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) with label smoothing (Mitchell 2023).

    Equal to what TRL 1.16's DPOTrainer computes: tests/unit/runner/test_methods_against_trl.py.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        rows: Rows[PreferenceRow],
        training: TrainingSpec,
        method: Dpo,
        pass_tokens: int | None = None,
    ) -> None:
        super().__init__(adaptation, rows, training, pass_tokens)
        self._method = method

    @override
    def row_losses(self, rows: Sequence[PreferenceRow], common: Tensor | None) -> tuple[Tensor, Mapping[str, Mean]]:
        documents = Documents.of(_chosen_then_rejected(rows), device())
        # Negative log-likelihoods become log-likelihoods by the minus: reference minus policy is the log of their ratio.
        with torch.no_grad(), self._adaptation.reference() as reference:
            before = document_losses(reference, documents)
        chosen, rejected = (before - document_losses(self._adaptation.model, documents)).chunk(2)
        scores, smoothing = self._method.beta * (chosen - rejected), self._method.label_smoothing
        losses = -(1 - smoothing) * logsigmoid(scores) - smoothing * logsigmoid(-scores)
        return losses, {
            "reward_margin": _mean(scores),
            "reward_accuracy": _mean((scores > 0).float()),
            "reward_chosen": _mean(self._method.beta * chosen),
            "reward_rejected": _mean(self._method.beta * rejected),
        }


class RewardModelObjective(_PairObjective):
    """A head that scores answers, so that the better one gets the higher score (Ouyang et al. 2022, arXiv:2203.02155).

    The likelihood is Bradley and Terry's; equal to what TRL 1.16's RewardTrainer computes:
    tests/unit/runner/test_methods_against_trl.py.
    """

    def __init__(
        self, adaptation: Adaptation, rows: Rows[PreferenceRow], training: TrainingSpec, pass_tokens: int | None = None
    ) -> None:
        super().__init__(adaptation, rows, training, pass_tokens)
        self._head = ScoringHead.fresh(adaptation.model, training.seed)

    @override
    def heads(self) -> Mapping[str, Parameter]:
        return self._head.parameters()

    @override
    def row_losses(self, rows: Sequence[PreferenceRow], common: Tensor | None) -> tuple[Tensor, Mapping[str, Mean]]:
        documents = Documents.of(_chosen_then_rejected(rows), device())
        chosen, rejected = self._head.scores(self._adaptation.model, documents).chunk(2)
        return -logsigmoid(chosen - rejected), {
            "reward_margin": _mean(chosen - rejected),
            "reward_accuracy": _mean((chosen > rejected).float()),
            "reward_chosen": _mean(chosen),
            "reward_rejected": _mean(rejected),
        }


def _chosen_then_rejected(rows: Sequence[PreferenceRow]) -> list[TokenizedRow]:
    chosen, rejected = zip(*(row.documents() for row in rows), strict=True)
    return [*chosen, *rejected]


def _mean(values: Tensor) -> Mean:
    return Mean(values.detach().sum().item(), len(values))
