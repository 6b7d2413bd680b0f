"""headway price: what an accelerator-hour costs."""

from __future__ import annotations

from typing import Annotated

import typer

from headway_client.cli.amounts import MICROS, exact, moment, whole
from headway_client.cli.failures import InputError
from headway_client.cli.options import AsJson, RequestId
from headway_client.cli.output import as_dict, print_json, print_table
from headway_client.cli.session import connected, connecting

price = typer.Typer(no_args_is_help=True, help="What an accelerator-hour costs.")

Kind = Annotated[str, typer.Argument(metavar="KIND", help="Of accelerator, such as h200.", show_default=False)]
Spot = Annotated[bool, typer.Option("--spot", help="Of spot capacity.")]


@price.command("set")
@connecting
def price_set(
    kind: Kind,
    per_hour: Annotated[str, typer.Argument(metavar="AMOUNT", help="Of the currency, such as 3.60.", show_default=False)],
    spot: Spot = False,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="From when on. Default: now.")] = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Sets what an accelerator-hour costs, from now on or from a time on.

    \b
    Examples:
      headway price set h200 3.60
      headway price set h200 1.20 --spot
    """
    micros = whole(per_hour, MICROS, "AMOUNT")
    with connected(span="headway price set") as client:
        stored = client.set_price(kind, micros, spot=spot, start_time=moment(start, "--from"), request_id=request_id)
    if as_json:
        print_json({"price": as_dict(stored)})
        return
    from headway_client.text import local_time

    since = local_time(stored.start_time, with_date=True)
    print(f"{kind}{' on spot' if spot else ''} costs {exact(micros)} {stored.currency} an hour from {since}")


@price.command("list")
@connecting
def price_list(as_json: AsJson = False) -> None:
    """Lists all prices, past and future ones too.

    \b
    Examples:
      headway price list
    """
    with connected() as client:
        found = list(client.list_prices())
    if as_json:
        print_json({"prices": [as_dict(one) for one in found]})
        return
    rows = [
        (
            one.accelerator_kind,
            "yes" if one.spot else "no",
            f"{exact(one.micros_per_hour)} {one.currency}",
            one.start_time.ToJsonString(),
            "yes" if one.in_force else "no",
            one.setter,
        )
        for one in found
    ]
    print_table(("KIND", "SPOT", "AN HOUR", "FROM", "IN FORCE", "SET BY"), rows, "no prices are set: nothing costs money")


@price.command("delete")
@connecting
def price_delete(
    kind: Kind,
    start: Annotated[str, typer.Argument(metavar="TIME", help="From when on it would hold.", show_default=False)],
    spot: Spot = False,
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Takes back a price that has not come into force.

    \b
    Examples:
      headway price delete h200 2030-01-01
    """
    since = moment(start, "TIME")
    if since is None:
        raise InputError("TIME: is empty; expected such as 2030-01-01")
    with connected(span="headway price delete") as client:
        client.delete_price(kind, since, spot=spot, request_id=request_id)
    if as_json:
        print_json({})
    else:
        print(f"the price of {kind} from {since.isoformat()} will not come into force")
