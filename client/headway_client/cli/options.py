"""Options that many commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.failures import InputError

if TYPE_CHECKING:
    from headway.jobs.v1.job_pb2 import JobState

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or a line each in a stream.")]
Project = Annotated[str, typer.Option("--project", "-p", envvar="HEADWAY_PROJECT", help="The project.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
RequestId = Annotated[
    str | None,
    typer.Option(metavar="UUID", help="Makes the command safe to repeat. Default: a new one each time.", show_default=False),
]
License = Annotated[str, typer.Option("--license", help="An SPDX expression or free text.")]
Attribution = Annotated[str, typer.Option(help="Who made it and where it is from.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name, of [a-z0-9.-].", show_default=False)]
AnyProject = Annotated[
    str, typer.Option("--project", "-p", envvar="HEADWAY_PROJECT", help="The project; without it, the organisation.")
]
JobSet = Annotated[str, typer.Option("--job-set", metavar="NAME", help="A job set, of [a-z0-9.-].")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]


def state_of(name: str) -> JobState.ValueType:
    """The state of a job that a word names.

    Raises:
        InputError: there is no such state.
    """
    from headway.jobs.v1.job_pb2 import JobState

    known = {key.removeprefix("JOB_STATE_").lower(): number for key, number in JobState.items() if number}
    if name.lower() not in known:
        raise InputError(f"--state: {name} is no state of a job; expected one of {', '.join(known)}")
    return known[name.lower()]
