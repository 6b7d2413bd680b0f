"""Which package may import what. The rules of docs/explanation/architecture.md, kept by reading the source.

Each rule says why it is there; a broken one names file, line and import.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"control_plane", "dataset_checks", "scheduler", "workers", "governance", "deploy", "headway", "headway_client"}
MODEL_LIBRARIES = {"torch", "transformers", "peft", "trl", "optuna", "safetensors", "gguf"}
DOMAIN = {"control_plane.jobs.spec", "control_plane.jobs.specs", "control_plane.jobs.states"}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import in a file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it out, so that rules can read it"
            for name in node.names:
                yield node.lineno, f"{node.module}.{name.name}"


def _sources(*folders: str) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        place = ROOT / folder
        found += [place] if place.is_file() else sorted(place.rglob("*.py"))
    return found


def _under(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _assert_none(sources: list[Path], forbidden: set[str], why: str, allowed: set[str] | None = None) -> None:
    assert sources, "the rule matches no file"
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources
        for line, name in _imports(path)
        if _under(name, forbidden) and not _under(name, allowed or set())
    ]
    assert not found, f"{why}\n" + "\n".join(found)


def test_model_libraries_only_in_the_runner() -> None:
    everything = _sources("control_plane", "scheduler", "workers", "governance", "deploy", "client")
    # A tokenizer is loaded where a dataset is checked against its base model: the runner's process, or a command's own.
    tokenizes = ROOT / "client/dataset_checks/rendering.py"
    sources = [path for path in everything if ROOT / "workers/runner" not in path.parents and path != tokenizes]
    _assert_none(
        sources, MODEL_LIBRARIES, "They cost seconds and hundreds of megabytes, and may crash: the runner's own process."
    )


def test_the_scheduler_core_is_pure() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "scheduler.core"}
    impure = {"time", "random", "os", "socket", "asyncio", "logging", "uuid", "secrets", "subprocess", "threading"}
    for path in _sources("scheduler/core"):
        for line, name in _imports(path):
            assert _under(name, allowed), f"{path}:{line} imports {name}: the core takes values and gives values"
            assert not _under(name, impure), f"{path}:{line} imports {name}: time, chance and the world come in as arguments"


def test_domain_modules_know_no_technology() -> None:
    allowed = set(sys.stdlib_module_names) | {"pydantic", "control_plane.errors"} | DOMAIN
    folder = "control_plane/jobs"
    names = ("spec.py", "specs", "states.py", "commands.py", "resolve.py", "workflows.py")
    for path in _sources(*(f"{folder}/{name}" for name in names)):
        for line, name in _imports(path):
            assert _under(name, allowed), f"{path}:{line} imports {name}: arrows point inward"


def test_workflows_are_deterministic_by_what_they_can_reach() -> None:
    allowed = set(sys.stdlib_module_names) | {"temporalio", "pydantic", "workers.workflows"} | DOMAIN
    for path in _sources("workers/workflows"):
        for line, name in _imports(path):
            assert _under(name, allowed), f"{path}:{line} imports {name}: workflow code is replayed"


def test_workers_reach_the_database_only_through_the_contract() -> None:
    _assert_none(
        _sources("workers", "client"),
        {"sqlalchemy", "asyncpg", "control_plane.db", "control_plane.rpc", "control_plane.app", "scheduler"},
        "A worker's write is fenced by its attempt, and only the control plane's services do that.",
    )


def test_the_control_plane_depends_on_no_worker_and_no_scheduler() -> None:
    outer = {"workers", "scheduler", "deploy", "temporalio", "mlflow"}
    # The values of the rules are everybody's.
    values = {"scheduler.core.types"}
    sources = _sources("control_plane")
    explaining = [path for path in sources if ROOT / "control_plane/scheduling" in path.parents]
    others = [path for path in sources if path not in explaining]
    _assert_none(others, outer, "Arrows point inward.", allowed=values)
    # What is foretold and explained is decided by the functions that decide, on what they would read: never by a copy of them.
    reading = {"core", "simulation", "decay", "shapes", "snapshot", "state", "tree"}
    _assert_none(
        explaining,
        outer,
        "Explanations need the rules and what they read, and nothing that acts.",
        allowed={f"scheduler.{module}" for module in reading},
    )


def test_the_runner_knows_neither_temporal_nor_grpc() -> None:
    _assert_none(
        _sources("workers/runner"),
        {"temporalio", "grpc", "boto3", "mlflow", "headway", "workers.cpu", "workers.gpu", "workers.storage", "scheduler"},
        "The runner is a program: a spec file in; lines, checkpoints and a result file out.",
    )


def test_governance_decides_over_values() -> None:
    _assert_none(
        _sources("governance"), {"grpc", "sqlalchemy", "temporalio", "boto3", "workers", "scheduler"}, "No transport there."
    )


def test_governance_takes_values_and_gives_values() -> None:
    allowed = set(sys.stdlib_module_names) | {"governance"} | DOMAIN
    impure = {"time", "random", "os", "socket", "asyncio", "logging", "uuid", "secrets", "subprocess", "threading"}
    for path in _sources("governance"):
        for line, name in _imports(path):
            assert _under(name, allowed), f"{path}:{line} imports {name}: rules about money stand on their own"
            assert not _under(name, impure), f"{path}:{line} imports {name}: time, chance and the world come in as arguments"


def test_the_client_installs_alone() -> None:
    _assert_none(
        _sources("client"),
        OURS - {"headway", "headway_client"},
        "Other teams install the client without the servers.",
        # `up`, `down` and `status` are mounted when the one-machine extra is there. What is wrong with a dataset is the same
        # before it is sent and after: the checks stand on their own, in the client's distribution too.
        allowed={"deploy.one_machine.commands", "dataset_checks"},
    )


def test_dataset_checks_stand_on_their_own() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "pyarrow", "dataset_checks"}
    for path in _sources("client/dataset_checks"):
        for line, name in _imports(path):
            # Tokens are the model libraries' business, where a base model is given.
            libraries = {"transformers", "jinja2"} if path.name == "rendering.py" else set[str]()
            assert _under(name, allowed | libraries), f"{path}:{line} imports {name}: the client and the runner both use this"


def test_nothing_generated_is_edited_and_nothing_else_is_generated() -> None:
    assert all("_pb2" in path.name for path in (ROOT / "gen").rglob("*.py"))
    for path in _sources("control_plane", "scheduler", "workers", "governance", "client"):
        assert "_pb2" not in path.name, f"{path}: generated code belongs in gen/"


@pytest.mark.parametrize("folder", ["control_plane", "scheduler", "workers", "governance", "client"])
def test_the_environment_is_read_in_one_place(folder: str) -> None:
    readers = {
        "control_plane/settings.py",
        "workers/runner",
        "client/headway_client",
        "workers/child.py",
        "workers/guardian.py",
    }
    for path in _sources(folder):
        where = str(path.relative_to(ROOT))
        if any(where.startswith(reader) for reader in readers):
            continue
        text = path.read_text(encoding="utf-8")
        assert "os.environ.get" not in text, f"{where} reads the environment; settings come from control_plane/settings.py"
        assert "os.getenv" not in text, f"{where} reads the environment; settings come from control_plane/settings.py"
