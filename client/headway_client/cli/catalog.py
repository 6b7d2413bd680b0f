"""headway dataset, base-model, models, model: what jobs read and what they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli import dataset_checking
from headway_client.cli.failures import InputError
from headway_client.cli.options import AsJson, Attribution, License, Name, Project, RequestId
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from headway.registry.v1.registry_service_pb2 import ModelVersion
    from headway_client.client import Client
    from headway_client.uploads import Uploaded

dataset = typer.Typer(no_args_is_help=True, help="Datasets of a project: immutable bytes with a name and a hash.")
base_model = typer.Typer(no_args_is_help=True, help="Models to start from.")
model = typer.Typer(no_args_is_help=True, help="One version of a registered model.")

DatasetFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="JSON lines, CSV or Parquet.", show_default=False),
]
dataset.command("validate")(dataset_checking.validate)

ModelFile = Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.", show_default=False)]


@dataset.command("add")
@connecting
def dataset_add(
    name: Name,
    file: DatasetFile,
    project: Project,
    license_: License = "",
    attribution: Attribution = "",
    request_id: RequestId = None,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Send it without validating it first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Validates a file, uploads it and gives it a name. The store refuses bytes that do not have the announced hash.

    \b
    Examples:
      headway dataset add questions examples/data/chatterbot_english.jsonl -p support --license BSD-3-Clause
    """
    holding = ""
    if not unchecked:
        report = dataset_checking.refuse_faulty(file, quiet=as_json)
        kind = report.row_format.value.replace("_", " ") if report.row_format else "rows"
        holding = f": {report.rows:,} rows of {kind}"
    with connected(span="headway dataset add") as client:
        uploaded = _upload(client, project, file, quiet=as_json)
        added = client.register_dataset(
            project, name, uploaded, license_=license_, attribution=attribution, request_id=request_id
        )
    if as_json:
        print_json({"dataset": as_dict(added)})
    else:
        print(f"dataset {added.name} of project {added.project} is sha256 {added.sha256}{holding}")


@dataset.command("list")
@connecting
def dataset_list(project: Project, as_json: AsJson = False) -> None:
    """Lists a project's datasets.

    \b
    Examples:
      headway dataset list --project support
    """
    with connected() as client:
        found = list(client.list_datasets(project))
    if as_json:
        print_json({"datasets": [as_dict(item) for item in found]})
        return
    from headway_client.text import size

    rows = [(item.name, size(item.size_bytes), item.sha256[:12], item.license) for item in found]
    print_table(("NAME", "SIZE", "SHA256", "LICENCE"), rows, f"project {project} has no datasets")


@base_model.command("add")
@connecting
def base_model_add(
    name: Name,
    file: ModelFile,
    project: Project,
    license_: License = "",
    attribution: Attribution = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Uploads a GGUF file, as the project named, and makes it known to every project as a base model.

    \b
    Examples:
      headway base-model add smollm2-135m-instruct SmolLM2-135M-Instruct.Q4_1.gguf -p support --license Apache-2.0
    """
    with connected(span="headway base-model add") as client:
        uploaded = _upload(client, project, file, quiet=as_json)
        added = client.register_base_model(name, uploaded, license_=license_, attribution=attribution, request_id=request_id)
    if as_json:
        print_json({"base_model": as_dict(added)})
    else:
        print(f"base model {added.name} is sha256 {added.sha256}")


@base_model.command("list")
@connecting
def base_model_list(as_json: AsJson = False) -> None:
    """Lists the base models.

    \b
    Examples:
      headway base-model list
    """
    with connected() as client:
        found = list(client.list_base_models())
    if as_json:
        print_json({"base_models": [as_dict(item) for item in found]})
        return
    from headway_client.text import size

    rows = [(item.name, size(item.size_bytes), item.sha256[:12], item.license) for item in found]
    print_table(("NAME", "SIZE", "SHA256", "LICENCE"), rows, "there are no base models")


def _upload(client: Client, project: str, file: Path, quiet: bool) -> Uploaded:
    """Sends the file, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
            task = progress.add_task(f"uploading {file.name}", total=file.stat().st_size)
            return client.upload(project, file, lambda count: progress.advance(task, count))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


@connecting
def models(
    project: Project,
    name: Annotated[str, typer.Option("--model", help="Only versions of this model.")] = "",
    as_json: AsJson = False,
) -> None:
    """Lists the model versions that a project's jobs made, newest first.

    \b
    Examples:
      headway models --project support
      headway models -p support --model support-assistant --json
    """
    with connected() as client:
        found = list(client.list_model_versions(project, name))
    if as_json:
        print_json({"model_versions": [as_dict(item) for item in found]})
        return
    from headway_client.text import local_time

    rows = [
        (
            item.model,
            item.version,
            ", ".join(item.aliases),
            item.lineage.base_model,
            item.lineage.job_id,
            local_time(item.create_time, with_date=True),
        )
        for item in found
    ]
    header = ("MODEL", "VERSION", "ALIASES", "BASE MODEL", "JOB", "REGISTERED")
    print_table(header, rows, f"project {project} has no registered models")


@model.command("show")
@connecting
def model_show(
    name: Annotated[str, typer.Argument(metavar="MODEL[:VERSION|@ALIAS]", help="Default alias: dev.", show_default=False)],
    project: Project,
    as_json: AsJson = False,
) -> None:
    """Shows one version with its lineage: what it was made of and by.

    \b
    Examples:
      headway model show support-assistant -p support
      headway model show support-assistant:3 -p support
      headway model show support-assistant@dev -p support --json | jq .model_version.lineage
    """
    wanted, version, alias = _version_of(name)
    with connected() as client:
        found = client.get_model_version(project, wanted, version=version, alias=alias)
    if as_json:
        print_json({"model_version": as_dict(found)})
    else:
        print_facts(version_facts(found))


def _version_of(name: str) -> tuple[str, int | None, str | None]:
    model_name, colon, number = name.partition(":")
    if not colon:
        model_name, _, alias = name.partition("@")
        return model_name, None, alias or "dev"
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise InputError(f"MODEL: {name} names no version; expected MODEL:NUMBER, MODEL@ALIAS or MODEL")
    return model_name, int(number), None


def version_facts(version: ModelVersion) -> list[tuple[str, object]]:
    """A model version with its lineage, a name and a value each."""
    from headway_client.text import local_time

    lineage = version.lineage
    metrics = {key: value for key, value in as_dict(version.metrics).items() if isinstance(value, int | float)}
    return [
        ("model", f"{version.model} version {version.version}"),
        ("project", version.project),
        ("aliases", ", ".join(version.aliases)),
        ("registered", local_time(version.create_time, with_date=True)),
        ("metrics", ", ".join(f"{key} {value:.4g}" for key, value in sorted(metrics.items()))),
        ("manifest", version.manifest_uri),
        ("manifest sha256", version.manifest_sha256),
        ("dataset", f"{lineage.dataset}, sha256 {lineage.dataset_sha256}"),
        ("base model", f"{lineage.base_model}, sha256 {lineage.base_model_sha256}"),
        ("spec sha256", lineage.spec_sha256),
        ("code version", lineage.code_version),
        ("environment", f"lock file sha256 {lineage.environment_lock_sha256}"),
        ("job", f"{lineage.job_id}, attempt {lineage.attempt}"),
        ("trace", lineage.trace_id),
        ("MLflow version", version.mlflow_version),
    ]
