"""`python -m workers.runner.train SPEC.json`: fine-tunes a base model with LoRA. See specs.TrainSpec."""

from __future__ import annotations

import sys

from workers.runner.program import run
from workers.runner.specs import TrainSpec

if __name__ == "__main__":
    sys.exit(run("train", TrainSpec, "workers.runner.training.loop"))
