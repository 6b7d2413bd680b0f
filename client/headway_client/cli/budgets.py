"""headway budget: what may be spent, and what was."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway_client.cli.amounts import MICROS, moment, whole
from headway_client.cli.failures import InputError
from headway_client.cli.options import AsJson, RequestId
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.quotas import Named, Organisation, Team, named_node
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from headway.quotas.v1.budget_pb2 import Budget, SpendingLimit
    from headway.quotas.v1.ledger_pb2 import ReportRow

budget = typer.Typer(no_args_is_help=True, help="What projects, teams and the organisation may spend, and what they did.")

_HOUR_MS = 3_600_000


@budget.command("set")
@connecting
def budget_set(
    project: Named = "",
    team: Team = "",
    organisation: Organisation = False,
    money: Annotated[str, typer.Option(metavar="AMOUNT", help="Hard limit in the currency, such as 1000.50.")] = "",
    gpu_hours: Annotated[str, typer.Option(metavar="HOURS", help="Hard limit in accelerator-hours.")] = "",
    soft_money: Annotated[str, typer.Option(metavar="AMOUNT", help="Told when it is reached.")] = "",
    soft_gpu_hours: Annotated[str, typer.Option(metavar="HOURS", help="Told when it is reached.")] = "",
    period: Annotated[str, typer.Option(help="month or quarter; one_off goes by --from and --until.")] = "month",
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="Of a one-off; UTC unless it says otherwise.")] = "",
    end: Annotated[str, typer.Option("--until", metavar="TIME", help="Of a one-off: the first moment after it.")] = "",
    at_limit: Annotated[str, typer.Option(help="stop, demote or warn.")] = "stop",
    alert: Annotated[
        list[int] | None, typer.Option(metavar="PERCENT", help="Told; may be repeated. Default: 50, 80, 100.")
    ] = None,
    alert_project: Annotated[str, typer.Option(metavar="PROJECT", help="Whose webhooks hear of a team's budget.")] = "",
    etag: Annotated[str, typer.Option(help="Only if the budget is still the one that was read.")] = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Sets a budget, all of it, from now on.

    \b
    Examples:
      headway budget set vision --money 1000 --gpu-hours 500
      headway budget set --team research --money 20000 --period quarter --at-limit demote --alert-project vision
    """
    from headway.quotas.v1 import budget_pb2 as pb
    from headway_client.requests import timestamp

    wanted = pb.Budget(
        **named_node([project] if project else [], team, organisation),
        period=_number(pb.BudgetPeriod, "BUDGET_PERIOD_", period, "--period"),
        start_time=timestamp("--from", moment(start, "--from")),
        end_time=timestamp("--until", moment(end, "--until")),
        hard_limit=_limit(money, gpu_hours, "--money", "--gpu-hours"),
        soft_limit=_limit(soft_money, soft_gpu_hours, "--soft-money", "--soft-gpu-hours"),
        at_hard_limit=_number(pb.AtHardLimit, "AT_HARD_LIMIT_", at_limit, "--at-limit"),
        alert_percents=[50, 80, 100] if alert is None else alert,
        alert_project=alert_project,
    )
    with connected(span="headway budget set") as client:
        stored = client.set_budget(wanted, etag=etag, request_id=request_id)
    _print_budget(stored, as_json)


@budget.command("get")
@connecting
def budget_get(project: Named = "", team: Team = "", organisation: Organisation = False, as_json: AsJson = False) -> None:
    """Shows a budget, and where it stands in the period that runs.

    \b
    Examples:
      headway budget get vision
      headway budget get --organisation
    """
    named = named_node([project] if project else [], team, organisation)
    with connected() as client:
        found = client.get_budget(**named)
    _print_budget(found, as_json)


@budget.command("list")
@connecting
def budget_list(as_json: AsJson = False) -> None:
    """Lists the budgets that you may see.

    \b
    Examples:
      headway budget list
    """
    with connected() as client:
        found = list(client.list_budgets())
    if as_json:
        print_json({"budgets": [as_dict(one) for one in found]})
        return
    from headway.quotas.v1 import budget_pb2

    rows = [
        (
            _node(one),
            _word(budget_pb2.BudgetPeriod, "BUDGET_PERIOD_", one.period),
            _limit_words(one.hard_limit),
            _word(budget_pb2.AtHardLimit, "AT_HARD_LIMIT_", one.at_hard_limit),
            _spending(one.standing.spent.micros, one.standing.spent.accelerator_ms),
            _spending(one.standing.reserved.micros, one.standing.reserved.accelerator_ms),
        )
        for one in found
    ]
    header = ("NODE", "PERIOD", "HARD LIMIT", "AT LIMIT", "SPENT", "RESERVED")
    print_table(header, rows, "no budgets are set: all may spend what they like")


@budget.command("delete")
@connecting
def budget_delete(
    project: Named = "",
    team: Team = "",
    organisation: Organisation = False,
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Takes a budget: its node is not limited any more.

    \b
    Examples:
      headway budget delete vision
    """
    named = named_node([project] if project else [], team, organisation)
    with connected(span="headway budget delete") as client:
        client.delete_budget(**named, request_id=request_id)
    if as_json:
        print_json({})
    else:
        print(f"{project or team or 'the organisation'} has no budget")


@budget.command("ledger")
@connecting
def budget_ledger(
    project: Named = "",
    team: Team = "",
    organisation: Organisation = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The most entries to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Lists what moved in a ledger, newest first.

    \b
    Examples:
      headway budget ledger vision --limit 20
    """
    named = named_node([project] if project else [], team, organisation)
    with connected() as client:
        found = list(islice(client.list_ledger_entries(**named), limit))
    if as_json:
        print_json({"entries": [as_dict(one) for one in found]})
        return
    from headway.quotas.v1 import ledger_pb2
    from headway_client.text import local_time

    rows = [
        (
            one.entry_id,
            local_time(one.create_time, with_date=True),
            _word(ledger_pb2.LedgerEntryKind, "LEDGER_ENTRY_KIND_", one.kind),
            _word(ledger_pb2.LedgerAccount, "LEDGER_ACCOUNT_", one.account),
            _spending(one.amount.micros, one.amount.accelerator_ms),
            one.job_id,
        )
        for one in found
    ]
    print_table(("ENTRY", "TIME", "KIND", "ACCOUNT", "AMOUNT", "JOB"), rows, "nothing has moved yet")


@budget.command("report")
@connecting
def budget_report(
    project: Annotated[str, typer.Option("--project", "-p", help="Only this project. Default: all you may see.")] = "",
    by: Annotated[list[str] | None, typer.Option(help="project, user, model, job_type or month; may be repeated.")] = None,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="Default: the first of this month, UTC.")] = "",
    end: Annotated[str, typer.Option("--until", metavar="TIME", help="The first moment after it. Default: now.")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shows what leases granted in a stretch of time were charged, beside what was foretold.

    \b
    Examples:
      headway budget report --by project --by user
      headway budget report -p vision --by model --csv
    """
    from headway.quotas.v1 import ledger_pb2 as pb

    names = by or ["project"]
    now = datetime.now(UTC)
    first = moment(start, "--from") or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    dimensions = [_number(pb.ReportDimension, "REPORT_DIMENSION_", name, "--by") for name in names]
    written = pb.REPORT_FORMAT_CSV if as_csv else pb.REPORT_FORMAT_JSON if as_json else pb.REPORT_FORMAT_UNSPECIFIED
    with connected() as client:
        found = client.get_report(first, moment(end, "--until") or now, project=project, by=dimensions, format=written)
    if found.text:
        print(found.text.rstrip("\r\n"))
        return
    rows = [(*row.keys, *_report_cells(row)) for row in found.rows]
    rows.append((*["total", *[""] * (len(names) - 1)], *_report_cells(found.total)))
    header = (*(name.upper() for name in names), "LEASES", "RUNNING", "GPU-HOURS", found.currency, "ESTIMATED", "VARIANCE")
    print_table(header, rows, "")


def _limit(money: str, gpu_hours: str, money_option: str, hours_option: str) -> SpendingLimit | None:
    from headway.quotas.v1.budget_pb2 import SpendingLimit

    if not money and not gpu_hours:
        return None
    return SpendingLimit(
        micros=whole(money, MICROS, money_option) if money else None,
        accelerator_ms=whole(gpu_hours, _HOUR_MS, hours_option) if gpu_hours else None,
    )


def _number(enum: Any, prefix: str, word: str, option: str) -> Any:
    """The value of an enum that a word names.

    Raises:
        InputError: there is none.
    """
    known = {name.removeprefix(prefix).lower(): number for name, number in enum.items() if number}
    if word not in known:
        raise InputError(f"{option}: {word} is unknown; expected one of {', '.join(known)}")
    return known[word]


def _word(enum: Any, prefix: str, number: int) -> str:
    return str(enum.Name(number)).removeprefix(prefix).lower()


def _node(found: Budget) -> str:
    return found.project or (f"team {found.team}" if found.team else "the organisation")


def _spending(micros: int, accelerator_ms: int) -> str:
    from headway_client.text import hours, money

    return f"{money(micros)}, {hours(accelerator_ms)} h"


def _limit_words(limit: SpendingLimit) -> str:
    from headway_client.text import hours, money

    said = [money(limit.micros)] if limit.HasField("micros") else []
    return ", ".join([*said, f"{hours(limit.accelerator_ms)} h"] if limit.HasField("accelerator_ms") else said)


def _report_cells(row: ReportRow) -> tuple[object, ...]:
    from headway_client.text import hours, money

    compared = row.estimates
    estimated = f"{money(compared.estimated_micros_low)} to {money(compared.estimated_micros_high)}" if compared.jobs else ""
    variance = money(compared.variance_micros) if compared.jobs else ""
    charged = row.charged
    return row.leases, row.open_leases, hours(charged.accelerator_ms), money(charged.micros), estimated, variance


def _print_budget(found: Budget, as_json: bool) -> None:
    if as_json:
        print_json({"budget": as_dict(found)})
        return
    from headway.quotas.v1.budget_pb2 import AtHardLimit, BudgetPeriod

    facts: list[tuple[str, object]] = [
        ("node", _node(found)),
        ("period", _word(BudgetPeriod, "BUDGET_PERIOD_", found.period)),
        ("hard limit", _limit_words(found.hard_limit)),
        ("at the limit", _word(AtHardLimit, "AT_HARD_LIMIT_", found.at_hard_limit)),
        ("soft limit", _limit_words(found.soft_limit)),
        ("tells at", ", ".join(f"{percent} %" for percent in found.alert_percents)),
        ("tells", found.alert_project),
        ("etag", found.etag),
    ]
    if found.HasField("standing"):
        stands = found.standing
        facts += [
            ("spent", _spending(stands.spent.micros, stands.spent.accelerator_ms)),
            ("reserved", _spending(stands.reserved.micros, stands.reserved.accelerator_ms)),
            ("left", _limit_words(stands.left)),
            ("demoted", "its work runs on what nobody else wants" if stands.demoted else ""),
        ]
    print_facts(facts)
