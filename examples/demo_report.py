"""What the demo shows at its end: the registered version's lineage, and where a person can look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from headway.jobs.v1.job_pb2 import Job
from headway.registry.v1.registry_service_pb2 import ModelVersion
from headway_client.cli.catalog import version_facts
from headway_client.connection import ADMIN_TOKEN_NAME, Connection


def show(console: Console, connection: Connection, data_dir: Path, job: Job, version: ModelVersion | None) -> None:
    """Prints both."""
    if version is not None:
        heading(console, "The registered version")
        _print(console, [(name, str(value)) for name, value in version_facts(version)])
    heading(console, "Where to look")
    _print(console, _places(connection, data_dir, job, version))


def heading(console: Console, text: str) -> None:
    """Begins a part of the demo."""
    console.print()
    console.rule(Text(text, style="bold"), align="left", style="dim")


def _print(console: Console, rows: list[tuple[str, str]]) -> None:
    shown = [(name, value) for name, value in rows if value]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        # Never broken by us, so that an address can be clicked and a command copied.
        console.print(Text(f"  {name:<{width}}   ", style="dim").append(value, style="default not dim"), soft_wrap=True)


# grpcurl expands the variable itself, so that no list of processes shows the token.
_GRPCURL = "grpcurl -plaintext -expand-headers -H 'authorization: Bearer ${HEADWAY_TOKEN}'"


def _places(connection: Connection, data_dir: Path, job: Job, version: ModelVersion | None) -> list[tuple[str, str]]:
    state = json.loads((data_dir / "state.json").read_text())
    request = json.dumps({"job_id": job.job_id})
    places = [
        ("workflow", _under(state, "temporal_ui_url", f"namespaces/default/workflows/{job.job_id}")),
        ("trace", _trace_url(connection, state, job)),
        ("logs", str(data_dir / "logs")),
        ("token", f"export HEADWAY_TOKEN=$(cat {data_dir / ADMIN_TOKEN_NAME})"),
        ("gRPC", f"{_GRPCURL} -d '{request}' {connection.address} headway.jobs.v1.JobService/GetJob"),
        ("services", f"{_GRPCURL} {connection.address} list"),
    ]
    if version is not None:
        page = f"#/models/{version.project}.{version.model}/versions/{version.mlflow_version}"
        places.insert(1, ("model", _under(state, "mlflow_url", page)))
    return places


def _under(state: dict[str, Any], key: str, path: str) -> str:
    return f"{str(state[key]).rstrip('/')}/{path}" if state.get(key) else ""


def _trace_url(connection: Connection, state: dict[str, Any], job: Job) -> str:
    experiment = connection.otlp_headers.get("x-mlflow-experiment-id")
    if experiment is None:
        return ""
    return _under(state, "mlflow_url", f"#/experiments/{experiment}/traces?selectedEvaluationId=tr-{job.trace_id}")
