"""headway diff, job-set: jobs beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.options import AsJson, Project
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Value

_WHOLE_MAX = 2**53
"""Up to here a double has every whole number, so it may have been one."""

job_set = typer.Typer(no_args_is_help=True, help="Groupings of jobs, as those who submitted them chose.")


@connecting
def diff(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The first job's id.", show_default=False)],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The second job's id.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Shows what differs between two jobs: in spec, data, code and result.

    \b
    Examples:
      headway diff 2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11 7d8a1b90-0c7e-4b57-8f1d-3f5a2c9e4b12
    """
    with connected() as client:
        found = client.diff_jobs(job, other)
    if as_json:
        print_json({"differences": [as_dict(one) for one in found]})
        return
    from headway.jobs.v1.job_service_pb2 import DiffSection

    rows = [
        (DiffSection.Name(one.section).removeprefix("DIFF_SECTION_").lower(), one.path, _said(one.left), _said(one.right))
        for one in found
    ]
    print_table(("PART", "FIELD", _short(job), _short(other)), rows, "the two jobs do not differ")


def _short(job_id: str) -> str:
    # Ids begin with the time they were made at, so those of jobs that are compared begin alike.
    return f"…{job_id[-8:]}"


def _said(value: Value) -> str:
    from google.protobuf.json_format import MessageToJson

    kind, number = value.WhichOneof("kind"), value.number_value
    if kind in (None, "null_value"):
        return ""
    if kind == "number_value" and number.is_integer() and abs(number) <= _WHOLE_MAX:
        return str(int(number))
    return MessageToJson(value, indent=None, ensure_ascii=False)


@job_set.command("get")
@connecting
def job_set_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The job set's name.", show_default=False)],
    project: Project,
    as_json: AsJson = False,
) -> None:
    """Shows how many jobs of a set stand where.

    \b
    Examples:
      headway job-set get sweep --project support
    """
    with connected() as client:
        found = client.get_job_set(project, name)
    if as_json:
        print_json({"job_set": as_dict(found)})
        return
    from headway_client.text import local_time

    states = sorted(found.states.items())
    print_facts(
        [
            ("job set", f"{found.name} of project {found.project}"),
            ("jobs", found.job_count),
            *((state, count) for state, count in states if count),
            ("began", local_time(found.create_time, with_date=True)),
        ]
    )


@job_set.command("list")
@connecting
def job_set_list(project: Project, as_json: AsJson = False) -> None:
    """Lists a project's job sets.

    \b
    Examples:
      headway job-set list --project support
    """
    with connected() as client:
        found = list(client.list_job_sets(project))
    if as_json:
        print_json({"job_sets": [as_dict(one) for one in found]})
        return
    rows = [
        (one.name, one.job_count, ", ".join(f"{count} {state}" for state, count in sorted(one.states.items()) if count))
        for one in found
    ]
    print_table(("JOB SET", "JOBS", "STATES"), rows, f"project {project} has no job sets")
