"""headway why, queue, simulate: why what waits does, and what would become of a change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.options import AsJson, JobId, Project
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.quotas import CELLS_HELP, Organisation, Team, cells_of, named_node, resource_word
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headway.attempts.v1.attempt_service_pb2 import Shape
    from headway.scheduler.v1.scheduler_service_pb2 import Eta, ExplainJobResponse, SimulateResponse
    from headway.scheduler.v1.snapshot_pb2 import QueueState
    from headway.scheduler.v1.wait_reason_pb2 import WaitReason

simulate = typer.Typer(
    no_args_is_help=True, help="What would become of a change, tried on the state of now; nothing is changed."
)

_WAITS = {1: "waits to be admitted", 2: "waits for its lease"}


@connecting
def why(
    job: JobId,
    eta: Annotated[bool, typer.Option("--eta", help="Also when it may start; simulated, which can take seconds.")] = False,
    history: Annotated[int, typer.Option(min=0, max=100, help="Most changes of reasons that are shown.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Says why a job waits: all that holds it up, what would let it go, and what is ahead of it.

    \b
    Examples:
      headway why 0b8f4c1e-3a5d-4f0e-8d4e-2f6a7b9c0d1e
      headway why 0b8f4c1e-3a5d-4f0e-8d4e-2f6a7b9c0d1e --eta
    """
    with connected() as client:
        found = client.explain_job(job, history_size=history, eta=eta)
    if as_json:
        print_json({"explanation": as_dict(found)})
    else:
        _print_explanation(found, history)


def _print_explanation(found: ExplainJobResponse, history: int) -> None:
    from headway_client.text import duration, local_time, seconds_since
    from headway_client.watching.view import state_name

    if not found.waiting_for:
        print(f"job {found.job_id} is {state_name(found.state)} and waits for nothing")
        return
    waited = duration(seconds_since(found.waiting_since))
    print(f"{_WAITS[found.waiting_for]}, for {waited} so far, because of")
    _print_reasons(found.reasons)
    at_least = "at least " if found.line_length >= found.ahead_counted_max else ""
    print_facts(
        [
            ("asks for", _shape(found.shape)),
            ("class", f"{_class_word(found.priority_class)}, priority {found.priority}"),
            *_demotion(found.demoted_by),
            *_policy_facts(found),
            ("ahead", f"{at_least}{found.ahead:,} of {found.line_length:,} like it in project {found.project}"),
            *(_eta_facts(found.eta) if found.HasField("eta") else []),
        ]
    )
    earlier = found.history[1:] if history else []
    if earlier:
        print("\nbefore that")
        print_facts(
            (local_time(change.time, with_date=True), "; ".join(reason.words for reason in change.reasons) or "nothing waited")
            for change in earlier
        )


def _demotion(by: str) -> list[tuple[str, str]]:
    return [("demoted", f"runs as class scavenger all the same: the budget of {by} reached its limit")] if by else []


def _policy_facts(found: ExplainJobResponse) -> list[tuple[str, str]]:
    from headway_client.text import local_time

    facts: list[tuple[str, str]] = []
    if found.filler:
        facts.append(("filler", "jobs of its type are filler by policy: it runs on what nobody else wants"))
    if found.HasField("start_by"):
        raised = ""
        if found.HasField("raised_time"):
            raised = f"; raised for it, by one class at most, at {local_time(found.raised_time, with_date=True)}"
        facts.append(("deadline", f"kept if it starts by {local_time(found.start_by, with_date=True)}{raised}"))
    return facts


def _print_reasons(reasons: Iterable[WaitReason]) -> None:
    from headway_client.text import printable

    for reason in reasons:
        print(f"  {printable(reason.words)}")
        print(f"    until: {printable(reason.unblocked_by)}")


def _eta_facts(eta: Eta) -> list[tuple[str, str]]:
    from headway_client.text import local_time

    if not eta.HasField("p50_time"):
        return [("starts", f"not within what was simulated: {eta.basis}")]
    likely = local_time(eta.p90_time, with_date=True) if eta.HasField("p90_time") else "later than was simulated"
    return [
        ("starts", f"as likely as not by {local_time(eta.p50_time, with_date=True)}, nine times in ten by {likely}"),
        ("", f"({eta.basis})"),
    ]


def _shape(shape: Shape) -> str:
    each = f"{shape.accelerators} of kind {shape.accelerator_kind}"
    more = [f"{shape.cpu_millis / 1000:g} CPUs"] * bool(shape.cpu_millis) + [f"{shape.memory_mib} MiB"] * bool(shape.memory_mib)
    words = ", ".join([f"{shape.members} x {each}" if shape.members > 1 else each, *more])
    words += "".join(f", {name}={value}" for name, value in sorted(shape.labels.items()))
    return words + (f", by {shape.topology.level}" if shape.HasField("topology") else "") + (", spot too" if shape.spot else "")


def _class_word(number: int) -> str:
    from headway.scheduler.v1 import snapshot_pb2 as pb

    return pb.PriorityClass.Name(pb.PriorityClass.ValueType(number)).removeprefix("PRIORITY_CLASS_").lower()


@connecting
def queue(
    project: Annotated[str, typer.Argument(metavar="[PROJECT]", envvar="HEADWAY_PROJECT", help="The project.")],
    as_json: AsJson = False,
) -> None:
    """Shows what of a project waits and why, and what it has and uses up to the organisation.

    \b
    Examples:
      headway queue support
    """
    with connected() as client:
        found = client.explain_queue(project)
    if as_json:
        print_json({"queue": as_dict(found)})
        return
    from headway_client.text import duration, seconds_since

    rows = [
        (
            f"{line.count:,}",
            "admission" if line.waiting_for == 1 else "lease",
            _class_word(line.priority_class),
            _shape(line.shape),
            duration(seconds_since(line.oldest_time)),
            line.reasons[0].words + (f" (and {len(line.reasons) - 1} more)" if len(line.reasons) > 1 else ""),
        )
        for line in found.lines
    ]
    print_table(("WAIT", "FOR", "CLASS", "EACH ASKS FOR", "OLDEST", "BECAUSE OF"), rows, f"nothing of project {project} waits")
    print_facts(_demotion(found.demoted_by))
    print()
    _print_path(found.path)
    print(f"\n{found.jobs_admitted} jobs of the project are under way")


def _print_path(path: Iterable[QueueState]) -> None:
    rows = [
        (
            node.project or (f"team {node.team}" if node.team else "the organisation"),
            f"{cell.quota.pool}:{resource_word(cell.quota.resource)}",
            f"{cell.used:,}",
            f"{cell.quota.nominal:,}",
            f"{cell.borrowed:,}",
            f"{cell.available:,}" if cell.HasField("available") else "no limit",
        )
        for node in path
        for cell in node.cells
    ]
    print_table(("NODE", "POOL", "USED", "OWN", "BORROWED", "STILL ALLOWED"), rows, "no quota applies, and nothing is used")


@simulate.command("submit")
@connecting
def simulate_submit(
    project: Project,
    accelerators: Annotated[int, typer.Option(min=1, max=4_096, help="Of each member.")] = 1,
    kind: Annotated[str, typer.Option(help="Of accelerator.")] = "any",
    members: Annotated[int, typer.Option(min=1, max=4_096, help="Of the gang: all start together or none.")] = 1,
    spot: Annotated[bool, typer.Option("--spot", help="Nodes that may be taken away will do.")] = False,
    priority: Annotated[int, typer.Option(min=0, max=1000, help="Of each job.")] = 500,
    hours: Annotated[float, typer.Option(min=0.001, max=720, help="Declared longest run time.")] = 1.0,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many jobs.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Tries a submission: whether it would start, where, and if not why and when.

    \b
    Examples:
      headway simulate submit -p support --accelerators 8 --kind h200 --members 4 --hours 12
    """
    from headway.attempts.v1.attempt_service_pb2 import Shape

    shape = Shape(accelerators=accelerators, accelerator_kind=kind, members=members, spot=spot)
    seconds = max(1, round(hours * 3_600))
    with connected() as client:
        found = client.simulate_submission(project, shape, priority=priority, max_run_seconds=seconds, count=count)
    if as_json:
        print_json({"simulation": as_dict(found)})
        return
    where = ", ".join(f"{part.node} ({part.members})" if members > 1 else part.node for part in found.placement)
    print(f"{found.started} of {count} would start at once{f', the first on {where}' if where else ''}")
    if found.reasons:
        print("the next would wait, because of")
        _print_reasons(found.reasons)
    if found.HasField("eta"):
        print_facts(_eta_facts(found.eta))
    _print_effects(found)


@simulate.command("quota")
@connecting
def simulate_quota(
    words: Annotated[list[str], typer.Argument(metavar="[PROJECT] POOL=NUMBER...", help=CELLS_HELP, show_default=False)],
    team: Team = "",
    organisation: Organisation = False,
    parent: Annotated[str, typer.Option(metavar="TEAM", help="The team above; default: the organisation.")] = "",
    weight: Annotated[int | None, typer.Option(help="In thousandths; default: 1000.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Tries a quota: who would get more or less, and who would be displaced.

    \b
    Examples:
      headway simulate quota support h200=4
    """
    from headway.quotas.v1.quota_service_pb2 import Quota

    named = named_node([word for word in words if "=" not in word], team, organisation)
    cells = cells_of([word for word in words if "=" in word])
    with connected() as client:
        found = client.simulate_quota(Quota(**named, parent=parent, weight=weight, cells=cells))
    if as_json:
        print_json({"simulation": as_dict(found)})
    else:
        _print_effects(found)


@simulate.command("lost-node")
@connecting
def simulate_lost_node(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name.", show_default=False)], as_json: AsJson = False
) -> None:
    """Tries the loss of a node: whose work would have to start again.

    \b
    Examples:
      headway simulate lost-node gpu-17
    """
    with connected() as client:
        found = client.simulate_lost_node(node)
    if as_json:
        print_json({"simulation": as_dict(found)})
    else:
        _print_effects(found)


def _print_effects(found: SimulateResponse) -> None:
    rows = [
        (effect.project, f"{effect.granted_change:+}", len(effect.displaced_job_ids), " ".join(effect.displaced_job_ids[:3]))
        for effect in found.effects
    ]
    print_table(
        ("PROJECT", "LEASES GRANTED", "DISPLACED", "JOBS"), rows, "the next round would be the same for all you may see"
    )
    print(f"{found.displaced} leases would be displaced in all")
