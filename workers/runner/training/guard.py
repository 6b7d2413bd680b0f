"""The numeric guard: a run stops before it learns from a number that is none, and says which rows it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.training.objective import MicroBatch

_MOST_NAMED_ROWS = 20


class NumericGuard:
    """Looks at every micro-batch's losses and every step's gradient before the optimizer sees them.

    Args:
        max_norm: the largest gradient norm, before clipping, that is taken for learning rather than for an explosion.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def check_losses(self, row_losses: Tensor, step: int, batch: MicroBatch) -> None:
        """Raises RunnerError: NUMERIC, with the rows whose loss is NaN or infinite."""
        finite = row_losses.isfinite().tolist()
        if not all(finite):
            lines = [line for line, good in zip(batch.lines, finite, strict=True) if not good]
            raise numeric_error("the loss is not finite", step, lines)

    def check_norm(self, norm: float, step: int, batches: Sequence[MicroBatch]) -> None:
        """Raises RunnerError: NUMERIC, with the rows of the step, if the gradient's norm is not finite or explodes."""
        lines = [line for batch in batches for line in batch.lines]
        if not math.isfinite(norm):
            raise numeric_error(f"the gradient's norm is {norm}", step, lines)
        if norm > self._max_norm:
            raise numeric_error(
                f"the gradient explodes: its norm is {norm:g}, expected at most {self._max_norm:g},", step, lines
            )


def numeric_error(what: str, step: int, lines: Sequence[int]) -> RunnerError:
    """The failure of a step, counted from 1, for what was found in the rows of these lines of the dataset."""
    named = list(dict.fromkeys(lines))
    shown = ", ".join(map(str, named[:_MOST_NAMED_ROWS]))
    more = f" and {len(named) - _MOST_NAMED_ROWS} more" if len(named) > _MOST_NAMED_ROWS else ""
    return RunnerError(
        FailureKind.NUMERIC,
        f"{what} at step {step}, with the rows of lines {shown}{more} of the dataset; nothing was updated. "
        "Look at these rows, or lower the learning rate",
    )
