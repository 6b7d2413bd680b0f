"""`python -m workers.runner.evaluate SPEC.json`: scores base and tuned model on the held-out rows. See specs.EvaluateSpec."""

from __future__ import annotations

import sys

from workers.runner.program import run
from workers.runner.specs import EvaluateSpec

if __name__ == "__main__":
    sys.exit(run("evaluate", EvaluateSpec, "workers.runner.evaluation.scoring"))
