"""headway audit: who did what, and whether the log still says so."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.exit_codes import ExitCode
from headway_client.cli.failures import InputError, Report, show
from headway_client.cli.options import AnyProject, AsJson
from headway_client.cli.output import as_dict, print_json, print_table
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from headway_client.audit_chain import Head

audit = typer.Typer(no_args_is_help=True, help="Every call that changed something or was denied, chained by hashes.")

Time = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="In UTC.", show_default=False)]
_TAMPERED = "the audit log is not what was written"


@audit.command("list")
@connecting
def audit_list(
    project: AnyProject = "",
    principal: Annotated[str, typer.Option(help="Only this subject's calls.")] = "",
    method: Annotated[str, typer.Option(help="Only calls of this method, such as headway.jobs.v1.JobService/SubmitJob.")] = "",
    refused: Annotated[bool, typer.Option("--refused", help="Only calls that were refused.")] = False,
    since: Time = None,
    until: Time = None,
    after: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Only records after this place in the chain.")] = 0,
    newest_first: Annotated[bool, typer.Option("--newest-first", help="Begin with the newest record.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The most records to list.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Lists audit records in the order of their chain, or the newest first; with --json a line each.

    \b
    Examples:
      headway audit list --project support --since 2026-01-01
      headway audit list --newest-first --limit 20
      headway audit list --refused --json | jq -r '[.principal, .method, .reason] | @tsv'
    """
    with connected() as client:
        records = client.list_audit_records(
            project=project,
            principal=principal,
            method=method,
            after_position=after,
            refused_only=refused,
            start_time=since and since.replace(tzinfo=UTC),
            end_time=until and until.replace(tzinfo=UTC),
            newest_first=newest_first,
            page_size=min(limit, 1000),
        )
        if as_json:
            for record in islice(records, limit):
                print_json(as_dict(record))
            return
        found = list(islice(records, limit))
    from headway_client.text import local_time

    rows = [
        (
            record.position,
            local_time(record.time, with_date=True),
            record.principal,
            record.method.rpartition(".")[2],
            record.project,
            record.object,
            record.reason or record.code,
        )
        for record in found
    ]
    print_table(("POSITION", "TIME", "WHO", "METHOD", "PROJECT", "OBJECT", "RESULT"), rows, "there are no such records")


@audit.command("verify")
@connecting
def audit_verify(
    expect_head: Annotated[
        list[str] | None,
        typer.Option(metavar="POSITION:HASH", help="A head noted earlier, which must be in the chain; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetches the whole audit log and computes every hash anew, here. Needs the right to see all of it.

    It finds records that were changed, removed, added or moved. That the newest ones were cut off it can only find with a head
    that was noted elsewhere: keep what it prints, and give it back with --expect-head.

    \b
    Examples:
      headway audit verify
      headway audit verify --expect-head "$(cat last-head)" --json | jq -r .head > last-head
    """
    from headway_client.audit_chain import BrokenChainError, Head, verify

    noted = [_head(text) for text in expect_head or ()]
    with connected() as client:
        stated = client.get_audit_head()
        heads = [*noted, Head(stated.position, stated.hash)]
        try:
            head = verify(client.list_audit_records(page_size=1000), heads)
        except BrokenChainError as error:
            show(Report(ExitCode.TAMPERED, "DATA_LOSS", f"{_TAMPERED}: {error}"), as_json)
            raise typer.Exit(ExitCode.TAMPERED) from error
    if as_json:
        print_json({"head": str(head), "position": head.position, "hash": head.hash})
    else:
        print(f"{head.position} records, each unchanged and in its place\nhead {head}")


def _head(text: str) -> Head:
    from headway_client.audit_chain import Head

    position, _, hash_ = text.strip().partition(":")
    valid = position.isascii() and position.isdigit() and len(hash_) == 64 and set(hash_) <= set("0123456789abcdef")
    if not valid:
        raise InputError(f"--expect-head: {text} is no head; expected POSITION:HASH with 64 lower-case hex digits")
    return Head(int(position), hash_)
