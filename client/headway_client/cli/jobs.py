"""headway submit, jobs, get, watch, logs, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.exit_codes import ExitCode
from headway_client.cli.failures import InputError
from headway_client.cli.options import Address, AsJson, JobId, Project, RequestId
from headway_client.cli.output import as_dict, as_plain, print_json, print_table
from headway_client.cli.session import address_of, connected

if TYPE_CHECKING:
    from headway.jobs.v1.job_pb2 import Job, JobState
    from headway.jobs.v1.job_service_pb2 import SubmitJobRequest


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job file, YAML.", show_default=False)],
    project: Annotated[str, typer.Option("--project", "-p", envvar="HEADWAY_PROJECT", help="In place of the file's.")] = "",
    name: Annotated[str, typer.Option(help="In place of the file's.")] = "",
    priority: Annotated[int | None, typer.Option(min=0, max=1000, help="In place of the file's.", show_default=False)] = None,
    request_id: RequestId = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check everything, store nothing, show the resolved spec.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Submits a job.

    With --watch it exits with 0 only if the job succeeds. Repeated with the same --request-id it submits nothing new.

    \b
    Examples:
      headway submit examples/fine_tune.yaml --watch
      headway submit job.yaml --project support --priority 800
      headway submit job.yaml --validate-only
      headway submit job.yaml --json | jq -r .job.job_id
    """
    request = _request(file, project)
    with connected(address, span="headway submit") as client:
        job = client.submit_job(
            request.project,
            request.spec,
            name=name or request.name,
            priority=priority if priority is not None else request.priority if request.HasField("priority") else None,
            request_id=request_id,
            validate_only=validate_only,
        )
    if as_json:
        print_json({"job": as_dict(job)})
    elif validate_only:
        _print_valid(file, job)
    elif watch:
        print(f"submitted {job.job_id}")
    else:
        print(f"submitted {job.job_id}\n  headway watch {job.job_id}")
    if watch and not validate_only:
        _watch(address_of(address), job.job_id, as_json)


def _request(file: Path, project: str) -> SubmitJobRequest:
    from headway_client.job_file import JobFileError, read_job_file

    try:
        request = read_job_file(file)
    except JobFileError as error:
        raise InputError(str(error)) from error
    request.project = project or request.project
    if not request.project:
        raise InputError(f"{file}: project: is absent; expected it in the file, as --project or as HEADWAY_PROJECT")
    if not request.HasField("spec"):
        raise InputError(f"{file}: spec: is absent; expected what the job is to do")
    return request


def _print_valid(file: Path, job: Job) -> None:
    import yaml

    print(f"{file} is valid. With its defaults it says:\n")
    print(yaml.safe_dump({"spec": as_plain(job.spec)}, sort_keys=False, allow_unicode=True), end="")


def jobs(
    project: Project,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The most jobs to list.")] = 50,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Lists a project's jobs, newest first.

    \b
    Examples:
      headway jobs --project support
      headway jobs -p support --state running --state queued
      headway jobs -p support --json | jq '.jobs[].job_id'
    """
    from itertools import islice

    states = [_state(name) for name in state or ()]
    with connected(address) as client:
        found = list(islice(client.list_jobs(project, states=states, page_size=min(limit, 1000)), limit))
    if as_json:
        print_json({"jobs": [as_dict(job) for job in found]})
        return
    from headway_client.text import local_time
    from headway_client.watching.view import phase_name, state_name

    rows = [
        (
            job.job_id,
            job.name,
            state_name(job.state),
            phase_name(job.phase) if job.phase else "",
            job.priority,
            local_time(job.create_time, with_date=True),
        )
        for job in found
    ]
    print_table(("JOB", "NAME", "STATE", "PHASE", "PRIORITY", "CREATED"), rows, f"project {project} has no such jobs")


def _state(name: str) -> JobState.ValueType:
    from headway.jobs.v1.job_pb2 import JobState

    known = {key.removeprefix("JOB_STATE_").lower(): number for key, number in JobState.items() if number}
    if name.lower() not in known:
        raise InputError(f"--state: {name} is no state of a job; expected one of {', '.join(known)}")
    return known[name.lower()]


def get(job: JobId, as_json: AsJson = False, address: Address = None) -> None:
    """Shows one job: where it stands, why it waits or failed, what it produced.

    \b
    Examples:
      headway get 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway get 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --json | jq .job.result.evaluate
    """
    with connected(address) as client:
        found = client.get_job(job)
    if as_json:
        print_json({"job": as_dict(found)})
        return
    from headway_client.cli.job_summary import print_job

    print_job(found)


def watch(job: JobId, as_json: AsJson = False, address: Address = None) -> None:
    """Follows a job until it ends: its phases, its progress, its result.

    It may be left with Ctrl-C and taken up again at any time; the job does not notice. It exits with 0 only if the job
    succeeds. Where the output is not a terminal there is a line for everything that happens.

    \b
    Examples:
      headway watch 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway watch 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --json | jq -r 'select(.progress).progress.progress.metrics.loss'
    """
    _watch(address_of(address), job, as_json)


def _watch(address: str, job_id: str, as_json: bool) -> None:
    import asyncio

    from rich.console import Console

    from headway.jobs.v1.job_pb2 import JOB_STATE_SUCCEEDED
    from headway_client.watching.follow import watch_as_json, watch_on_console

    def write(line: str) -> None:
        print(line, flush=True)

    following = watch_as_json(address, job_id, write) if as_json else watch_on_console(address, job_id, Console())
    job = asyncio.run(following)
    if job.state != JOB_STATE_SUCCEEDED:
        raise typer.Exit(ExitCode.JOB_NOT_SUCCEEDED)


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes until the job ends.")] = False,
    level: Annotated[
        str, typer.Option(help="Only lines at least this serious: debug, info, warning, error.", show_default=False)
    ] = "",
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Prints what a job's processes wrote, attempt after attempt, with its measurements.

    \b
    Examples:
      headway logs 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway logs -f 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --level warning
      headway logs 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --json | jq -r 'select(.line).line.text'
    """
    from headway_client.cli.log_lines import level_of, record_line

    min_level = level_of(level)
    with connected(address) as client:
        for batch in client.tail_logs(job, follow=follow, min_level=min_level):
            for record in batch.records:
                if as_json:
                    print_json(as_dict(record))
                else:
                    print(record_line(record), flush=True)


def cancel(
    job: JobId,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Asks a job to stop. What it holds is given back; what it has stored stays.

    \b
    Examples:
      headway cancel 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway cancel 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --reason "wrong dataset"
    """
    with connected(address, span="headway cancel") as client:
        found = client.cancel_job(job, reason=reason, request_id=request_id)
    if as_json:
        print_json({"job": as_dict(found)})
        return
    from headway_client.watching.view import state_name

    print(f"{found.job_id} is {state_name(found.state)}")
