"""`python -m benchmarks.bare_trainer SPEC.json TIMES.json`: the same trainer's steps with no platform around them.

Trains until it is asked to stop by SIGTERM. Writes when its steps ended, in seconds since the epoch: the first at once, so that
it is known to have begun, and all at the end.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

from workers.runner.specs import TrainSpec


def main() -> None:
    """Trains."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _signum, _frame: stop.set())
    spec = TrainSpec.model_validate_json(Path(sys.argv[1]).read_bytes())

    from workers.runner.training.trainer import Trainer  # noqa: PLC0415 - after the handler: torch takes seconds

    trainer = Trainer(spec, stop)
    trainer.begin()
    trainer.train_step()
    ends = [time.time()]
    Path(sys.argv[2]).write_text(json.dumps(ends))
    while not stop.is_set():
        trainer.train_step()
        ends.append(time.time())
    Path(sys.argv[2]).write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
