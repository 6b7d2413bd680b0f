"""Which objective a spec's method is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from workers.runner.methods import Dpo, Kto, RewardModel, Sft
from workers.runner.models.adaptation import Adaptation
from workers.runner.specs import TrainSpec
from workers.runner.training.methods.over_rows import Rows
from workers.runner.training.methods.pairs import DpoObjective, RewardModelObjective
from workers.runner.training.methods.supervised import SupervisedObjective
from workers.runner.training.methods.unpaired import KtoObjective
from workers.runner.training.objective import Objective
from workers.runner.training.rows import RowFile, preference_row, supervised_row, unpaired_row

RowT = TypeVar("RowT")


def objective_of(spec: TrainSpec, adaptation: Adaptation, stop: threading.Event) -> Objective[Any]:
    """Opens the rows and makes the method's objective over them.

    Args:
        spec: the run's.
        adaptation: the model and what is trained of it.
        stop: set when the program was asked to stop; looked at while texts are generated and rows evaluated.

    Raises:
        RunnerError: INVALID_DATASET if there are no rows.
    """

    def rows(parse: Callable[[bytes], RowT]) -> Rows[RowT]:
        evaluation = RowFile(spec.eval_path, parse) if spec.eval_path is not None else ()
        return Rows(RowFile(spec.train_path, parse), evaluation, stop)

    training, tokens = spec.training, spec.pass_tokens
    match spec.method:
        case Sft():
            return SupervisedObjective(adaptation, rows(supervised_row), training, tokens)
        case Dpo() as method:
            return DpoObjective(adaptation, rows(preference_row), training, method, tokens)
        case Kto() as method:
            return KtoObjective(adaptation, rows(unpaired_row), training, method, tokens)
        case RewardModel():
            return RewardModelObjective(adaptation, rows(preference_row), training, tokens)
