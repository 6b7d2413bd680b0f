"""`python -m workers.runner.train SPEC.json`: trains a base model by one method. See specs.TrainSpec."""

from __future__ import annotations

import sys
from pathlib import Path

from workers.runner.program import run
from workers.runner.rank import is_launched, launch
from workers.runner.specs import TrainSpec


def main() -> int:
    """Runs the program, in as many processes as its spec says; returns the exit code."""
    if len(sys.argv) == 2 and not is_launched():
        count = TrainSpec.model_validate_json(Path(sys.argv[1]).read_bytes()).processes
        if count > 1:
            return launch([sys.executable, "-m", "workers.runner.train", sys.argv[1]], count)
    return run("train", TrainSpec, "workers.runner.training.loop")


if __name__ == "__main__":
    sys.exit(main())
