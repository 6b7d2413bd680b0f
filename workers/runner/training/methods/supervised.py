"""Supervised fine-tuning: the mean negative log-likelihood per target token of the whole step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from typing_extensions import override

from workers.runner.data.tokenized import TokenizedRow
from workers.runner.models.documents import Documents, document_losses
from workers.runner.models.loading import device
from workers.runner.training.methods.over_rows import RowObjective
from workers.runner.training.objective import Mean


class SupervisedObjective(RowObjective[TokenizedRow]):
    """Every target token of a step weighs the same."""

    @override
    def row_losses(self, rows: Sequence[TokenizedRow], common: Tensor | None) -> tuple[Tensor, Mapping[str, Mean]]:
        return document_losses(self._adaptation.model, Documents.of(rows, device())), {}

    @override
    def row_line(self, row: TokenizedRow) -> int:
        return row.line

    @override
    def row_tokens(self, row: TokenizedRow) -> int:
        return len(row.tokens)

    @override
    def row_weight(self, row: TokenizedRow) -> int:
        return row.target_count
