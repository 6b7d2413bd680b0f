"""The numeric guard: a run stops before it learns from a number that is none, and says which rows it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.training.objective import MicroBatch

_MOST_NAMED_ROWS = 20


def not_finite(row_losses: Tensor, batch: MicroBatch) -> list[int]:
    """The lines of the rows whose loss is NaN or infinite."""
    return [line for line, good in zip(batch.lines, row_losses.isfinite().tolist(), strict=True) if not good]


def check_norm(norm: float, limit: float, step: int, batches: Sequence[MicroBatch]) -> None:
    """Looks at the gradient's norm before the optimizer moves anything.

    Args:
        norm: before clipping.
        limit: the largest that is taken for learning rather than for an explosion.
        step: counted from 1.
        batches: the step's.

    Raises:
        RunnerError: NUMERIC, with the rows of the step, if the norm is not finite or above the limit.
    """
    lines = [line for batch in batches for line in batch.lines]
    if not math.isfinite(norm):
        raise numeric_error(f"the gradient's norm is {norm}", step, lines)
    if norm > limit:
        raise numeric_error(f"the gradient explodes: its norm is {norm:g}, expected at most {limit:g},", step, lines)


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
