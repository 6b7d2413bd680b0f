"""headway workers, quota: what there is to run on, and who may hold how much of it."""

from __future__ import annotations

from typing import Annotated

import typer

from headway_client.cli.failures import InputError
from headway_client.cli.options import AsJson, RequestId
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.session import connected, connecting

quota = typer.Typer(no_args_is_help=True, help="How many accelerators a project may hold at once, and what it used.")
QuotaProject = Annotated[str, typer.Argument(metavar="PROJECT", help="The project.", show_default=False)]


@connecting
def workers(as_json: AsJson = False) -> None:
    """Lists the workers that train and evaluate.

    \b
    Examples:
      headway workers
      headway workers --json | jq '.workers[] | select(.alive)'
    """
    with connected() as client:
        found = list(client.list_workers())
    if as_json:
        print_json({"workers": [as_dict(worker) for worker in found]})
        return
    from headway_client.text import local_time

    rows = [
        (
            worker.name,
            "alive" if worker.alive else "lost",
            worker.accelerator_kind,
            f"{worker.accelerators_leased} of {worker.accelerators} leased",
            local_time(worker.heartbeat_time, with_date=True),
        )
        for worker in found
    ]
    print_table(("WORKER", "STATE", "KIND", "ACCELERATORS", "LAST HEARD"), rows, "no worker has registered")


@quota.command("get")
@connecting
def quota_get(project: QuotaProject, as_json: AsJson = False) -> None:
    """Shows a project's quota.

    \b
    Examples:
      headway quota get support
    """
    with connected() as client:
        found = client.get_quota(project)
    if as_json:
        print_json({"quota": as_dict(found)})
    else:
        _print_quota(dict(found.max_accelerators))


@quota.command("set")
@connecting
def quota_set(
    project: QuotaProject,
    limits: Annotated[
        list[str],
        typer.Argument(metavar="KIND=NUMBER...", help="The most at once; what is not named has no limit.", show_default=False),
    ],
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Sets a project's quota, all of it. Running work is left alone; the scheduler holds to it from its next round.

    \b
    Examples:
      headway quota set support h200=8 cpu=2
    """
    wanted = dict(_limit(text) for text in limits)
    if len(wanted) < len(limits):
        raise InputError("KIND=NUMBER: a kind is named twice; expected each once")
    with connected(span="headway quota set") as client:
        stored = client.set_quota(project, wanted, request_id=request_id)
    if as_json:
        print_json({"quota": as_dict(stored)})
    else:
        _print_quota(dict(stored.max_accelerators))


def _limit(text: str) -> tuple[str, int]:
    kind, _, number = text.rpartition("=")
    if not kind or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise InputError(f"KIND=NUMBER: {text} is no limit; expected a kind and a whole number up to 1,000,000, such as h200=8")
    return kind, int(number)


def _print_quota(limits: dict[str, int]) -> None:
    if limits:
        print_facts((kind, f"at most {number} at once") for kind, number in sorted(limits.items()))
    else:
        print("no limit")


@quota.command("usage")
@connecting
def quota_usage(project: QuotaProject, as_json: AsJson = False) -> None:
    """Shows what a project holds now and used so far, by kind of accelerator.

    \b
    Examples:
      headway quota usage support
    """
    with connected() as client:
        found = client.get_usage(project)
    if as_json:
        print_json({"usage": [as_dict(item) for item in found]})
        return
    rows = [
        (item.accelerator_kind, item.accelerators_held, f"{item.accelerator_seconds:,.1f}", f"{item.gpu_hours:,.3f}")
        for item in found
    ]
    header = ("KIND", "HELD", "ACCELERATOR-SECONDS", "GPU-HOURS")
    print_table(header, rows, f"project {project} has used nothing")
