"""The price list as rows. A price is never changed once it is in force: what a lease was charged by stays to be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import RowMapping, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.refusals import refused_as
from control_plane.db.budget_tables import prices
from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_SCHEDULER
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.jobs.planning import PriceList
from governance.prices import Price

_IN_FORCE = text(
    """
    SELECT DISTINCT ON (kind, spot) kind, spot, valid_from, micros_per_hour
    FROM prices WHERE valid_from <= now() ORDER BY kind, spot, valid_from DESC
    """
)


async def set_price(
    connection: AsyncConnection, kind: str, spot: bool, micros_per_hour: int, setter: str, valid_from: datetime | None = None
) -> RowMapping:
    """Adds a price, or replaces one that has not come into force.

    Args:
        connection: a connection in a transaction.
        kind: of accelerator.
        spot: whether it is that of spot capacity.
        micros_per_hour: millionths of the currency for one accelerator-hour; 0: it costs nothing.
        setter: the principal.
        valid_from: from when on, now or later; None: now.

    Raises:
        RefusedError: a field breaks its limits, or the time has passed.
    """
    now: datetime = (await connection.execute(select(func.now()))).scalar_one()
    with refused_as("price"):
        price = Price(kind, spot, now if valid_from is None else valid_from, micros_per_hour)
    if price.valid_from < now:
        raise invalid_field(
            "price.start_time",
            f"is {price.valid_from.isoformat()}; expected nothing, or a time from now on ({now.isoformat()})",
        )
    values = {"micros_per_hour": micros_per_hour, "setter": setter}
    made = await connection.execute(
        insert(prices)
        .values(kind=kind, spot=spot, valid_from=price.valid_from, **values)
        .on_conflict_do_update(index_elements=["kind", "spot", "valid_from"], set_={**values, "created_at": func.now()})
        .returning(prices)
    )
    await notify(connection, CHANNEL_SCHEDULER)
    return made.mappings().one()


async def remove_price(connection: AsyncConnection, kind: str, spot: bool, valid_from: datetime) -> None:
    """Takes back a price that has not come into force.

    Raises:
        RefusedError: there is no such price, or leases may have been charged by it.
    """
    named = (prices.c.kind == kind, prices.c.spot == spot, prices.c.valid_from == valid_from)
    removed = await connection.execute(delete(prices).where(*named, prices.c.valid_from > func.now()))
    if removed.rowcount == 0:
        said = f"price of {kind}{' on spot' if spot else ''} from {valid_from.isoformat()}"
        if (await connection.execute(select(prices.c.kind).where(*named))).first() is None:
            raise RefusedError(Reason.RESOURCE_NOT_FOUND, f"there is no {said}", {"name": kind})
        raise RefusedError(
            Reason.STILL_NEEDED,
            f"the {said} is in force, or was: leases are charged by it; set another, which takes over from now on",
            {"accelerator_kind": kind},
        )
    await notify(connection, CHANNEL_SCHEDULER)


async def list_prices(
    connection: AsyncConnection, after: tuple[str, bool, datetime] | None, limit: int
) -> Sequence[RowMapping]:
    """All prices, past and future ones too, by kind, spot and time, those after `after`."""
    key = func.row(prices.c.kind, prices.c.spot, prices.c.valid_from)
    query = select(prices).order_by(prices.c.kind, prices.c.spot, prices.c.valid_from).limit(limit)
    if after is not None:
        query = query.where(key > func.row(*after))
    return (await connection.execute(query)).mappings().all()


async def prices_in_force(connection: AsyncConnection) -> list[Price]:
    """The price of each kind, with and without spot, that is in force when the transaction began."""
    rows = await connection.execute(_IN_FORCE)
    return [Price(row.kind, row.spot, row.valid_from, row.micros_per_hour) for row in rows]


async def price_list(connection: AsyncConnection, currency: str) -> PriceList | None:
    """What estimates are made with: prices in force, spot capacity left out; None if there are none."""
    listed = {price.kind: price.micros_per_hour for price in await prices_in_force(connection) if not price.spot}
    return PriceList(currency, listed) if listed else None


async def ensure_prices(connection: AsyncConnection, micros_per_hour: Mapping[str, int], setter: str) -> None:
    """Gives kinds that never had a price the one that the settings name; for the start of a control plane."""
    for kind, micros in sorted(micros_per_hour.items()):
        known = select(prices.c.kind).where(prices.c.kind == kind, prices.c.spot.is_(False)).limit(1)
        if (await connection.execute(known)).first() is None:
            await set_price(connection, kind, False, micros, setter)
