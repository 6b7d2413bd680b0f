"""Which objective a spec's method is."""

from __future__ import annotations

import threading
from typing import Any

from workers.runner.data.tokenized import read_rows
from workers.runner.models.adaptation import Adaptation
from workers.runner.specs import TrainSpec
from workers.runner.training.methods.supervised import SupervisedObjective
from workers.runner.training.objective import Objective


def objective_of(spec: TrainSpec, adaptation: Adaptation, stop: threading.Event) -> Objective[Any]:
    """Reads the rows and makes the method's objective over them.

    Args:
        spec: the run's.
        adaptation: the model and what is trained of it.
        stop: set when the program was asked to stop; online methods look at it while they generate.
    """
    match spec.method.name:
        case "sft":
            return SupervisedObjective(adaptation, read_rows(spec.train_path), spec.training)
