"""`python -m workers.runner.prepare SPEC.json`: validates, tokenises and splits a dataset. See specs.PrepareSpec."""

from __future__ import annotations

import sys

from workers.runner.program import run
from workers.runner.specs import PrepareSpec

if __name__ == "__main__":
    sys.exit(run("prepare", PrepareSpec, "workers.runner.data.preparation"))
