"""headway quota: what projects, teams and the organisation have of each pool."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway_client.cli.failures import InputError
from headway_client.cli.options import AsJson, RequestId
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from headway.quotas.v1.quota_service_pb2 import Quota, QuotaCell

quota = typer.Typer(
    no_args_is_help=True, help="What projects, teams and the organisation have of each pool, and what projects used."
)
QuotaProject = Annotated[str, typer.Argument(metavar="PROJECT", help="The project.", show_default=False)]
Named = Annotated[str, typer.Argument(metavar="[PROJECT]", help="The project, unless an option names another node.")]
Team = Annotated[str, typer.Option("--team", metavar="TEAM", help="A team instead of a project.")]
Organisation = Annotated[bool, typer.Option("--organisation", help="The organisation instead of a project.")]

_CELL = re.compile(
    r"(?P<pool>[a-z0-9.-]+)(?::(?P<resource>[a-z_]+))?=(?P<nominal>[0-9]{1,13})"
    r"(?:\+(?P<borrowing>[0-9]{0,13}))?(?:~(?P<lending>[0-9]{1,13}))?"
)
CELLS_HELP = (
    "h200=8: 8 and no more. h200=8+4: 8 of its own, and up to 4 that others leave idle. h200=8+: as many as are idle. "
    "h200=8+~2: others may use at most 2 of the 8 while they are idle. h200:cpu_millis=96000+: another resource."
)


@quota.command("get")
@connecting
def quota_get(project: Named = "", team: Team = "", organisation: Organisation = False, as_json: AsJson = False) -> None:
    """Shows the quota of a project, a team or the organisation.

    \b
    Examples:
      headway quota get support
      headway quota get --team research
    """
    named = named_node([project] if project else [], team, organisation)
    with connected() as client:
        found = client.get_quota(**named)
    _print_quota(found, as_json)


@quota.command("set")
@connecting
def quota_set(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[PROJECT] POOL=NUMBER...", help=CELLS_HELP, show_default=False),
    ],
    team: Team = "",
    organisation: Organisation = False,
    parent: Annotated[str, typer.Option(metavar="TEAM", help="The team above; default: the organisation.")] = "",
    weight: Annotated[
        int | None, typer.Option(help="Of its share of what is borrowed, in thousandths; default: 1000.", show_default=False)
    ] = None,
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Sets the quota of a node, all of it. Running work is left alone; the scheduler holds to it from its next round.

    \b
    Examples:
      headway quota set support h200=8 cpu=2
      headway quota set --team research h200=64+ --weight 2000
      headway quota set support --parent research h200=8+16
    """
    named = named_node([word for word in words if "=" not in word], team, organisation)
    wanted = cells_of([word for word in words if "=" in word])
    if not wanted and weight is None and not parent:
        raise InputError(
            "nothing to set; expected POOL=NUMBER, --weight or --parent. `headway quota delete` takes a quota away altogether"
        )
    with connected(span="headway quota set") as client:
        stored = client.set_quota(**named, parent=parent, weight=weight, cells=wanted, request_id=request_id)
    _print_quota(stored, as_json)


@quota.command("list")
@connecting
def quota_list(as_json: AsJson = False) -> None:
    """Lists the quota tree, as far as you may see it.

    \b
    Examples:
      headway quota list
    """
    with connected() as client:
        found = list(client.list_quotas(tree=True))
    if as_json:
        print_json({"quotas": [as_dict(one) for one in found]})
        return
    rows = [
        (_node_words(one), f"team {one.parent}" if one.parent else "", one.weight, ", ".join(map(_cell_words, one.cells)))
        for one in found
    ]
    print_table(("NODE", "BELOW", "WEIGHT", "HAS"), rows, "no quotas are set: all may use whatever is free")


@quota.command("delete")
@connecting
def quota_delete(
    project: Named = "",
    team: Team = "",
    organisation: Organisation = False,
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Takes a node out of the quota tree; a team must have no children.

    \b
    Examples:
      headway quota delete support
      headway quota delete --team research
    """
    named = named_node([project] if project else [], team, organisation)
    with connected(span="headway quota delete") as client:
        client.delete_quota(**named, request_id=request_id)
    if as_json:
        print_json({})
    else:
        print(f"{project or team or 'the organisation'} has no quota")


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


def named_node(projects: list[str], team: str, organisation: bool) -> dict[str, Any]:
    """The node of the tree that a command is about.

    Raises:
        InputError: it does not name exactly one.
    """
    given = len(projects) + bool(team) + organisation
    if given != 1:
        raise InputError(f"{given} nodes are named; expected one PROJECT, --team TEAM or --organisation")
    return {"project": projects[0]} if projects else {"team": team} if team else {"organisation": True}


def cells_of(texts: list[str]) -> list[QuotaCell]:
    """The cells that a command line names.

    Raises:
        InputError: one is none, or is named twice.
    """
    from headway.quotas.v1 import quota_service_pb2 as pb

    resources = {name.removeprefix("RESOURCE_").lower(): number for name, number in pb.Resource.items() if number}
    cells: dict[tuple[str, int], QuotaCell] = {}
    for text in texts:
        found = _CELL.fullmatch(text)
        resource = resources.get((found["resource"] or "accelerators") if found else "")
        if found is None or resource is None:
            raise InputError(f"POOL=NUMBER: {text} is no quota; expected such as h200=8, h200=8+4 or h200:cpu_millis=96000+")
        borrowing = 0 if found["borrowing"] is None else int(found["borrowing"]) if found["borrowing"] else None
        cell = pb.QuotaCell(
            pool=found["pool"],
            resource=resource,
            nominal=int(found["nominal"]),
            borrowing_limit=borrowing,
            lending_limit=None if found["lending"] is None else int(found["lending"]),
        )
        if cells.setdefault((cell.pool, cell.resource), cell) is not cell:
            raise InputError(f"POOL=NUMBER: {text} names {cell.pool} again; expected each pool and resource once")
    return list(cells.values())


def _print_quota(found: Quota, as_json: bool) -> None:
    if as_json:
        print_json({"quota": as_dict(found)})
        return
    print_facts(
        [
            ("below", f"team {found.parent}" if found.parent else ""),
            ("weight", found.weight),
            *((_cell_name(cell), _limits_words(cell)) for cell in found.cells),
        ]
    )
    if not found.cells:
        print("nothing of its own; it may use whatever is free")
    for pool in found.unknown_pools:
        print(f"no node is in pool {pool}; it counts once there is one")


def _node_words(found: Quota) -> str:
    return found.project or (f"team {found.team}" if found.team else "the organisation")


def _cell_name(cell: QuotaCell) -> str:
    resource = resource_word(cell.resource)
    return cell.pool if resource == "accelerators" else f"{cell.pool}:{resource}"


def _cell_words(cell: QuotaCell) -> str:
    """A cell as the command line takes it."""
    borrowing = f"+{cell.borrowing_limit}" if cell.HasField("borrowing_limit") else "+"
    lending = f"~{cell.lending_limit}" if cell.HasField("lending_limit") else ""
    return f"{_cell_name(cell)}={cell.nominal}{'' if borrowing == '+0' else borrowing}{lending}"


def _limits_words(cell: QuotaCell) -> str:
    """A cell in words."""
    if not cell.HasField("borrowing_limit"):
        own = f"{cell.nominal} of its own, and whatever others leave idle"
    elif cell.borrowing_limit:
        own = f"{cell.nominal} of its own, and up to {cell.borrowing_limit} that others leave idle"
    else:
        own = f"at most {cell.nominal} at once"
    return f"{own}; lends at most {cell.lending_limit}" if cell.HasField("lending_limit") else own


def resource_word(number: int) -> str:
    """A resource as the command line calls it."""
    from headway.quotas.v1 import quota_service_pb2 as pb

    return pb.Resource.Name(pb.Resource.ValueType(number)).removeprefix("RESOURCE_").lower()
