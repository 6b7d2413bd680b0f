"""headway cancel, pause, resume, preempt, reprioritize, update, rerun: steering jobs, one or many at once."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from headway_client.cli.exit_codes import ExitCode
from headway_client.cli.failures import InputError, Report, show
from headway_client.cli.options import AsJson, JobId, JobSet, Reason, RequestId
from headway_client.cli.output import as_dict, print_json, print_table
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headway.jobs.v1.job_pb2 import Job
    from headway.jobs.v1.job_service_pb2 import JobSelection, SelectionOutcome
    from headway.jobs.v1.job_spec_pb2 import JobSpec
    from headway_client.client import Client

    class _AskOne(Protocol):
        def __call__(self, job_id: str, /, *, reason: str, request_id: str | None) -> Job: ...

    class _AskMany(Protocol):
        def __call__(self, selection: JobSelection, /, *, reason: str, request_id: str | None) -> SelectionOutcome: ...

    _Ask = tuple[_AskOne, _AskMany]
    """How a client asks for a verb: of one job, and of a selection."""

Jobs = Annotated[
    list[str] | None, typer.Argument(metavar="[JOB...]", help="The jobs' ids; or --job-set or --filter.", show_default=False)
]
OfJobSet = Annotated[str, typer.Option("--job-set", metavar="NAME", help="All jobs of a job set.")]
Filter = Annotated[str, typer.Option("--filter", metavar="FILTER", help="All jobs that match; needs --reason.")]
InProject = Annotated[
    str, typer.Option("--project", "-p", envvar="HEADWAY_PROJECT", help="With --job-set and --filter: their project.")
]


def _verb(ask: Callable[[Client], _Ask]) -> Callable[..., None]:
    """The command that asks for a verb, of one job or of many; it has the name and the help of `ask`."""

    def command(
        jobs: Jobs = None,
        job_set: OfJobSet = "",
        filter_: Filter = "",
        project: InProject = "",
        reason: Reason = "",
        request_id: RequestId = None,
        as_json: AsJson = False,
    ) -> None:
        _steer(ask.__name__, ask, _selection(jobs, job_set, filter_, project), reason, request_id, as_json)

    command.__name__, command.__doc__ = ask.__name__, ask.__doc__
    return connecting(command)


@_verb
def cancel(client: Client) -> _Ask:
    """Asks jobs to stop. What they hold is given back; what they have stored stays.

    \b
    Examples:
      headway cancel 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway cancel 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --reason "wrong dataset"
      headway cancel --job-set sweep -p support --reason "wrong dataset"
      headway cancel --filter 'state = QUEUED AND priority < 100' -p support --reason "budget"
    """
    return client.cancel_job, client.cancel_jobs


@_verb
def pause(client: Client) -> _Ask:
    """Asks jobs to hold still: at a checkpoint, without a lease, until they are resumed.

    \b
    Examples:
      headway pause 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway pause --job-set sweep -p support
    """
    return client.pause_job, client.pause_jobs


@_verb
def resume(client: Client) -> _Ask:
    """Lets paused jobs go on, from their checkpoint if they have one.

    \b
    Examples:
      headway resume 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway resume --job-set sweep -p support
    """
    return client.resume_job, client.resume_jobs


@_verb
def preempt(client: Client) -> _Ask:
    """Takes running jobs' leases: each checkpoints, gives its lease back and asks for a new one in its turn.

    \b
    Examples:
      headway preempt 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --reason "the machine is needed"
    """
    return client.preempt_job, client.preempt_jobs


@connecting
def reprioritize(
    priority: Annotated[int, typer.Option(min=0, max=1000, help="The new priority.", show_default=False)],
    jobs: Jobs = None,
    job_set: OfJobSet = "",
    filter_: Filter = "",
    project: InProject = "",
    reason: Reason = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Gives jobs another priority; it counts from the scheduler's next round on.

    \b
    Examples:
      headway reprioritize 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --priority 800
      headway reprioritize --job-set sweep -p support --priority 100
    """

    def ask(client: Client) -> _Ask:
        return partial(client.reprioritize_job, priority=priority), partial(client.reprioritize_jobs, priority=priority)

    _steer("reprioritize", ask, _selection(jobs, job_set, filter_, project), reason, request_id, as_json)


@connecting
def update(
    job: JobId,
    name: Annotated[str | None, typer.Option(help="The new name.", show_default=False)] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=1000, help="The new priority.", show_default=False)] = None,
    job_set: Annotated[str | None, typer.Option(help="The new job set; empty: none.", show_default=False)] = None,
    etag: Annotated[str, typer.Option(help="Refuse if the job has changed since it had this etag.")] = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Changes a job's name, priority or job set.

    \b
    Examples:
      headway update 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --name "second try" --job-set sweep
    """
    if name is None and priority is None and job_set is None:
        raise InputError("nothing to change; expected --name, --priority or --job-set")
    with connected(span="headway update") as client:
        changed = client.update_job(job, name=name, priority=priority, job_set=job_set, etag=etag, request_id=request_id)
    if as_json:
        print_json({"job": as_dict(changed)})
    else:
        print(f"{changed.job_id} is {changed.name!r}, priority {changed.priority}, job set {changed.job_set or 'none'}")


@connecting
def rerun(
    job: JobId,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="A field of the spec and its new value; may be repeated."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--spec", metavar="FILE", help="A job file whose spec has the new values of --field.")
    ] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--field", metavar="PATH", help="With --spec: a field to take from it.")
    ] = None,
    name: Annotated[str, typer.Option(help="Default: the job's.")] = "",
    priority: Annotated[int | None, typer.Option(min=0, max=1000, help="Default: the job's.", show_default=False)] = None,
    job_set: JobSet = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Submits a job again, on the same bytes, with the changes that are named.

    \b
    Examples:
      headway rerun 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11
      headway rerun 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 --set fine_tune.training.learning_rate=0.0005
    """
    spec, paths = _changed(changes or (), file, fields or ())
    with connected(span="headway rerun") as client:
        found = client.rerun_job(
            job, spec=spec, spec_paths=paths, name=name, priority=priority, job_set=job_set, request_id=request_id
        )
    if as_json:
        print_json({"job": as_dict(found)})
    else:
        print(f"submitted {found.job_id}, a rerun of {found.rerun_of}\n  headway watch {found.job_id}")


def _selection(jobs: list[str] | None, job_set: str, filter_: str, project: str) -> JobSelection:
    """The jobs that the options name."""
    from headway.jobs.v1.job_service_pb2 import JobSelection
    from headway_client.arguments import build

    named = list(jobs or ())
    if sum(map(bool, (named, job_set, filter_))) != 1:
        raise InputError("JOB: which jobs? expected one of job ids, --job-set and --filter")
    if named:
        return build(JobSelection, job_ids=named)
    if not project:
        raise InputError("--project: is absent; expected it with --job-set and --filter, or as HEADWAY_PROJECT")
    return build(JobSelection, job_set=job_set, filter=filter_, project=project)


def _steer(
    verb: str, ask: Callable[[Client], _Ask], selection: JobSelection, reason: str, request_id: str | None, as_json: bool
) -> None:
    """Asks for a verb. One job that is named is no selection: what refuses it is the command's error."""
    with connected(span=f"headway {verb}") as client:
        one, many = ask(client)
        if len(selection.job_ids) == 1:
            _print_job(one(selection.job_ids[0], reason=reason, request_id=request_id), as_json)
            return
        outcome = many(selection, reason=reason, request_id=request_id)
    _print_outcome(outcome, as_json)
    if not outcome.outcomes:
        show(_nothing_matched(verb, selection), as_json)
        raise typer.Exit(ExitCode.NOT_FOUND)
    if any(job.HasField("status") for job in outcome.outcomes):
        raise typer.Exit(ExitCode.REFUSED)


def _nothing_matched(verb: str, selection: JobSelection) -> Report:
    """Jobs whose state makes the verb pointless do not match either."""
    where = f"job set {selection.job_set}" if selection.job_set else "what the filter finds"
    filter_ = selection.filter or f'job_set = "{selection.job_set}"'
    return Report(
        ExitCode.NOT_FOUND,
        "NOT_FOUND",
        f"no job matched: {where} in project {selection.project} has none to {verb}",
        hint=f"`headway jobs -p {selection.project} --filter {shlex.quote(filter_)}` lists what there is, in whatever state",
    )


def _changed(changes: Iterable[str], file: Path | None, fields: Iterable[str]) -> tuple[JobSpec | None, list[str]]:
    """The values to change, as a spec that holds them, and where in it."""
    from headway.jobs.v1.job_spec_pb2 import JobSpec
    from headway_client.job_file import JobFileError, parse_job, read_job_file

    paths, spec = list(fields), JobSpec()
    if bool(paths) != (file is not None):
        raise InputError("--spec and --field go together: a file, and which of its fields to take")
    try:
        if file is not None:
            spec = read_job_file(file).spec
        for change in changes:
            path, equals, value = change.partition("=")
            if not equals or not all(part.isidentifier() for part in path.split(".")):
                raise InputError(f"--set: {change} is no change; expected PATH=VALUE, such as fine_tune.training.steps=20")
            nested = "spec: {" + "".join(f"{part}: {{" for part in path.split(".")[:-1])
            nested += f"{path.split('.')[-1]}: {value}" + "}" * len(path.split("."))
            spec.MergeFrom(parse_job(Path("--set"), nested).spec)
            paths.append(path)
    except JobFileError as error:
        raise InputError(str(error)) from error
    return (spec if paths else None), paths


def _print_job(job: Job, as_json: bool) -> None:
    if as_json:
        print_json({"job": as_dict(job)})
        return
    from headway_client.watching.view import state_name

    print(f"{job.job_id} is {state_name(job.state)}, priority {job.priority}")


def _print_outcome(outcome: SelectionOutcome, as_json: bool) -> None:
    """The fate of every job."""
    if as_json:
        print_json({"outcome": as_dict(outcome)})
    elif outcome.outcomes:
        from headway_client.watching.view import state_name

        rows = [(one.job_id, state_name(one.state) if one.state else "", one.status.message) for one in outcome.outcomes]
        print_table(("JOB", "STATE", "REFUSED BECAUSE"), rows, "")
        refused_count = sum(one.HasField("status") for one in outcome.outcomes)
        more = "; more match: repeat the command" if outcome.more else ""
        print(f"{outcome.changed_count} changed, {refused_count} refused{more}")
