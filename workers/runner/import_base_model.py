"""`python -m workers.runner.import_base_model SPEC.json`: turns a GGUF file into safetensors. See specs.ImportBaseModelSpec."""

from __future__ import annotations

import sys

from workers.runner.program import run
from workers.runner.specs import ImportBaseModelSpec

if __name__ == "__main__":
    sys.exit(run("import_base_model", ImportBaseModelSpec, "workers.runner.models.gguf_import"))
