"""headway submit, jobs, get, watch, logs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.exit_codes import ExitCode
from headway_client.cli.failures import InputError
from headway_client.cli.options import AsJson, JobId, JobSet, RequestId, state_of
from headway_client.cli.output import as_dict, print_json, print_table
from headway_client.cli.session import connected, connecting, connection
from headway_client.cli.submitting import print_valid, submit_batch

if TYPE_CHECKING:
    from headway.jobs.v1.job_service_pb2 import SubmitJobRequest
    from headway_client.connection import Connection


@connecting
def submit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="A job file, YAML.", show_default=False)],
    project: Annotated[str, typer.Option("--project", "-p", envvar="HEADWAY_PROJECT", help="In place of the file's.")] = "",
    name: Annotated[str, typer.Option(help="In place of the file's.")] = "",
    priority: Annotated[int | None, typer.Option(min=0, max=1000, help="In place of the file's.", show_default=False)] = None,
    job_set: JobSet = "",
    request_id: RequestId = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="All files as one batch: YAML, and JSONL with a job on every line; all or none.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --batch: submit the good ones even if others are bad.")
    ] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check everything, store nothing, show the resolved spec and the plan.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submits a job, or with --batch many.

    With --watch it exits with 0 only if the job succeeds. Repeated with the same --request-id it submits nothing new.

    \b
    Examples:
      headway submit examples/fine_tune.yaml --watch
      headway submit job.yaml --project support --priority 800
      headway submit job.yaml --validate-only
      headway submit job.yaml --json | jq -r .job.job_id
      headway submit --batch sweep/*.yaml more.jsonl --job-set sweep
    """
    if batch:
        if watch or validate_only or name or priority is not None:
            raise InputError("--batch goes without --watch, --validate-only, --name and --priority: those are about one job")
        submit_batch(files, project, job_set, partial, request_id, as_json)
        return
    if len(files) > 1 or partial:
        raise InputError("FILE: several files are submitted with --batch, which is also what --partial is about")
    request = _request(files[0], project)
    with connected(span="headway submit") as client:
        response = client.submit(
            request.project,
            request.spec,
            name=name or request.name,
            priority=priority if priority is not None else request.priority if request.HasField("priority") else None,
            job_set=job_set,
            request_id=request_id,
            validate_only=validate_only,
        )
    job = response.job
    if as_json:
        print_json(as_dict(response))
    elif validate_only:
        print_valid(files[0], response)
    elif watch:
        print(f"submitted {job.job_id}")
    else:
        print(f"submitted {job.job_id}\n  headway watch {job.job_id}")
    if not as_json:
        for warning in response.warnings:
            print(f"  note: {warning}", file=sys.stderr)
    if watch and not validate_only:
        _watch(connection(), job.job_id, as_json)


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


@connecting
def jobs(
    project: Annotated[str, typer.Option("--project", "-p", envvar="HEADWAY_PROJECT", help="The project.")] = "",
    all_projects: Annotated[bool, typer.Option("--all-projects", help="Of every project you may see.")] = False,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.", show_default=False)
    ] = None,
    filter_: Annotated[str, typer.Option("--filter", metavar="FILTER", help="Only jobs that match.")] = "",
    order_by: Annotated[str, typer.Option(help="create_time or priority; then asc or desc.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The most jobs to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Lists a project's jobs, newest first unless ordered otherwise.

    \b
    Examples:
      headway jobs --project support
      headway jobs -p support --state running --state queued
      headway jobs -p support --filter 'priority >= 500 AND job_set = "sweep"' --order-by "priority desc"
      headway jobs --all-projects --filter 'state = RUNNING'
      headway jobs -p support --json | jq '.jobs[].job_id'
    """
    from itertools import islice

    if not project and not all_projects:
        raise InputError("--project: is absent; expected it, HEADWAY_PROJECT, or --all-projects")
    states = [state_of(name) for name in state or ()]
    with connected() as client:
        listed = client.list_jobs(
            "" if all_projects else project,
            states=states,
            filter_=filter_,
            order_by=order_by,
            # A table shows nothing of what a summary leaves out.
            summary=not as_json,
            page_size=min(limit, 1000),
        )
        found = list(islice(listed, limit))
    if as_json:
        print_json({"jobs": [as_dict(job) for job in found]})
        return
    from headway_client.text import local_time
    from headway_client.watching.view import phase_name, state_name

    rows = [
        (
            *((job.project,) if all_projects else ()),
            job.job_id,
            job.name,
            state_name(job.state),
            phase_name(job.phase) if job.phase else "",
            job.priority,
            local_time(job.create_time, with_date=True),
        )
        for job in found
    ]
    header = (*(("PROJECT",) if all_projects else ()), "JOB", "NAME", "STATE", "PHASE", "PRIORITY", "CREATED")
    print_table(header, rows, "there are no such jobs" if all_projects else f"project {project} has no such jobs")


@connecting
def get(job: JobId, as_json: AsJson = False) -> None:
    """Shows one job: where it stands, why it waits or failed, what it produced.

    \b
    Examples:
      headway get 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway get 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --json | jq .job.result.evaluate
    """
    with connected() as client:
        found, cost = client.get_job_and_cost(job)
    if as_json:
        print_json({"job": as_dict(found), "cost": as_dict(cost)})
        return
    from headway_client.cli.job_summary import print_job

    print_job(found, cost)


@connecting
def watch(job: JobId, as_json: AsJson = False) -> None:
    """Follows a job until it ends: its phases, its progress, its result.

    It may be left with Ctrl-C and taken up again at any time; the job does not notice. It exits with 0 only if the job
    succeeds. Where the output is not a terminal there is a line for everything that happens.

    \b
    Examples:
      headway watch 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway watch 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --json | jq -r 'select(.progress).progress.progress.metrics.loss'
    """
    _watch(connection(), job, as_json)


def _watch(target: Connection, job_id: str, as_json: bool) -> None:
    import asyncio

    from rich.console import Console

    from headway.jobs.v1.job_pb2 import JOB_STATE_SUCCEEDED
    from headway_client.watching.follow import watch_as_json, watch_on_console

    def write(line: str) -> None:
        print(line, flush=True)

    following = watch_as_json(target, job_id, write) if as_json else watch_on_console(target, job_id, Console())
    job = asyncio.run(following)
    if job.state != JOB_STATE_SUCCEEDED:
        raise typer.Exit(ExitCode.JOB_NOT_SUCCEEDED)


@connecting
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes until the job ends.")] = False,
    level: Annotated[
        str,
        typer.Option(
            help="Only lines at least this serious: debug, info, warning, error; and no measurements.", show_default=False
        ),
    ] = "",
    attempt: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Only of this attempt; 0: of all.")] = 0,
    source: Annotated[str, typer.Option(help="Only lines from here, such as runner, agent or stderr.")] = "",
    text: Annotated[str, typer.Option(help="Only lines that hold this text as it stands.")] = "",
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only since this time, in UTC.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prints what a job's processes wrote, attempt after attempt, with its measurements.

    \b
    Examples:
      headway logs 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway logs -f 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --level warning
      headway logs 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --attempt 2 --source stderr --text "out of memory"
      headway logs 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --json | jq -r 'select(.line).line.text'
    """
    from headway_client.cli.log_lines import level_of, record_line

    min_level = level_of(level)
    with connected() as client:
        batches = client.tail_logs(
            job,
            follow=follow,
            min_level=min_level,
            attempt=attempt,
            source=source,
            text=text,
            since=since and since.replace(tzinfo=UTC),
        )
        for batch in batches:
            for record in batch.records:
                if as_json:
                    print_json(as_dict(record))
                else:
                    print(record_line(record), flush=True)
