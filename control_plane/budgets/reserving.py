"""Reservations: what leases may cost is set aside when they are granted, for all of a round at once.

`reserve_many` belongs into the transaction of the grants, after the jobs' and leases' rows are locked: reservation and grant
are never without each other. One statement looks whether there is room and appends entries, reservations and balances, under
the locks of the ledgers; so however many do it at once, what is spent and reserved stays within every limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.alerts import alert_of_reached
from control_plane.budgets.ledgers import ChargedTo, lock, open_ledgers
from control_plane.budgets.prices import prices_in_force
from governance import costs
from governance.budgets import Budget, Scope, ScopeKind
from governance.prices import Price, price_at
from governance.values import Amounts, Book, InvalidValueError

# Who comes first in the call comes first. A lease that does not fit by itself is hopeless: it is refused, and takes no room
# from others. Each of the others is judged as if all before it had been granted. Where one of those is not, another may fit
# after all: it is asked for again, in the same transaction, until each is granted or hopeless.
# A balance without limit has the room that 64 bits leave. Windows, not joins: nothing is known here of how many rows there are.
_RESERVE = text(
    """
    WITH asked AS (
        SELECT given.*, ledger_id,
            budget_micros + CASE WHEN limit_micros IS NULL THEN CAST(4e18 AS numeric) ELSE 0 END AS room_micros,
            budget_ms + CASE WHEN limit_ms IS NULL THEN CAST(4e18 AS numeric) ELSE 0 END AS room_ms
        FROM unnest(
            CAST(:lease_ids AS uuid[]), CAST(:job_ids AS uuid[]), CAST(:projects AS text[]), CAST(:accelerators AS integer[]),
            CAST(:kinds AS text[]), CAST(:spots AS boolean[]), CAST(:prices AS bigint[]), CAST(:held_ms AS bigint[]),
            CAST(:micros AS bigint[]), CAST(:accelerator_ms AS bigint[])
        ) WITH ORDINALITY
            AS given (lease_id, job_id, project, accelerators, kind, spot, price, held_ms, micros, accelerator_ms, ordinal)
        JOIN unnest(CAST(:path_projects AS text[]), CAST(:path_ledgers AS bigint[])) AS path (project, ledger_id)
            USING (project)
        JOIN ledgers USING (ledger_id)
    ), alone AS (
        SELECT *, micros > room_micros OR accelerator_ms > room_ms AS short,
            bool_or(micros > room_micros OR accelerator_ms > room_ms) OVER (PARTITION BY ordinal) AS hopeless
        FROM asked
    ), in_turn AS (
        SELECT *,
            sum(CASE WHEN hopeless THEN 0 ELSE micros END) OVER so_far <= room_micros
            AND sum(CASE WHEN hopeless THEN 0 ELSE accelerator_ms END) OVER so_far <= room_ms AS fits
        FROM alone WINDOW so_far AS (PARTITION BY ledger_id ORDER BY ordinal)
    ), judged AS MATERIALIZED (
        SELECT *, NOT hopeless AND bool_and(fits) OVER (PARTITION BY ordinal) AS granted FROM in_turn
    ), reserved AS (
        INSERT INTO reservations
            (lease_id, job_id, project, accelerators, kind, spot, micros_per_hour, held_ms, micros, accelerator_ms)
        SELECT DISTINCT ON (ordinal)
            lease_id, job_id, project, accelerators, kind, spot, price, held_ms, micros, accelerator_ms
        FROM judged WHERE granted ORDER BY ordinal
    ), entered AS (
        INSERT INTO ledger_entries (kind, reference, ledger_id, account, micros, accelerator_ms)
        SELECT 'RESERVE', lease_id, ledger_id, account, sign * micros, sign * accelerator_ms
        FROM judged CROSS JOIN (VALUES ('BUDGET', -1), ('RESERVED', 1)) AS side (account, sign)
        WHERE granted AND (micros <> 0 OR accelerator_ms <> 0)
        ORDER BY ordinal, ledger_id, sign
    ), balanced AS (
        UPDATE ledgers
        SET budget_micros = budget_micros - moved.micros, reserved_micros = reserved_micros + moved.micros,
            budget_ms = budget_ms - moved.ms, reserved_ms = reserved_ms + moved.ms
        FROM (
            SELECT ledger_id, CAST(sum(micros) AS bigint) AS micros, CAST(sum(accelerator_ms) AS bigint) AS ms
            FROM judged WHERE granted GROUP BY ledger_id
        ) AS moved
        WHERE ledgers.ledger_id = moved.ledger_id
    )
    SELECT DISTINCT ON (ordinal) ordinal, granted, hopeless, ledger_id, micros > room_micros AS short_of_money,
        CASE WHEN micros > room_micros THEN room_micros ELSE room_ms END AS room
    FROM judged ORDER BY ordinal, short DESC, ledger_id
    """
)


@dataclass(frozen=True, slots=True)
class LeaseToReserve:
    """A lease that is about to be granted."""

    lease_id: str
    job_id: str
    project: str
    accelerators: int
    """Of all its members together."""
    kind: str
    """Of the pool that it is granted in."""
    spot: bool
    """Whether that is a spot pool."""
    run_ms: int
    """The longest that it can be held: its longest run time, and what starting and stopping may take."""


class ShortfallCause(StrEnum):
    """Why a reservation was refused."""

    NO_ROOM = "NO_ROOM"
    """The budget has less left."""
    NOT_RUNNING = "NOT_RUNNING"
    """The scope's one-off budget has not begun, or is over."""
    NO_PRICE = "NO_PRICE"
    """Money is limited, and the kind has no price."""
    IMPOSSIBLE = "IMPOSSIBLE"
    """It is more than any budget can hold."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A lease that must not be granted now, and why."""

    lease_id: str
    cause: ShortfallCause
    scope: Scope
    """The first whose budget is short, in the order of their ledgers; where none is, the project."""
    book: Book = Book.MONEY
    asked: int = 0
    """In the book's unit."""
    left: int = 0
    """In the book's unit."""


@dataclass(frozen=True, slots=True)
class _Priced:
    lease: LeaseToReserve
    price: int
    held_ms: int
    amounts: Amounts


async def reserve_many(
    connection: AsyncConnection, leases: Sequence[LeaseToReserve], above: Mapping[str, Sequence[Scope]]
) -> list[Shortfall]:
    """Reserves what leases may cost, in every budget on the way to the root; first come, first served, and all of one or none.

    Alerts of budgets that reach a level by it are written in the same transaction.

    Args:
        connection: in the transaction that grants the leases, at READ COMMITTED.
        leases: those to be granted, in order; none that has a reservation.
        above: of each project, the teams and the organisation on the way to the root; a project not named has nothing above.

    Returns:
        Those that are refused: they must not be granted. All others have their reservation.
    """
    if not leases:
        return []
    paths = {lease.project: tuple(above.get(lease.project, ())) for lease in leases}
    now, charged_to = await open_ledgers(connection, paths)
    prices = await prices_in_force(connection)
    terms = {(kind, spot): price_at(prices, kind, spot, now) for kind, spot in {(lease.kind, lease.spot) for lease in leases}}
    refused: list[Shortfall] = []
    pending: list[_Priced] = []
    for lease in leases:
        judged = _judge(lease, charged_to[lease.project], terms[lease.kind, lease.spot])
        if isinstance(judged, Shortfall):
            refused.append(judged)
        else:
            pending.append(judged)
    await lock(connection, (ledger for path in charged_to.values() for ledger in path.ledgers.values()))
    granted_any = False
    while pending:
        rows = (await connection.execute(_RESERVE, _parameters(pending, charged_to))).all()
        judged = list(zip(pending, rows, strict=True))
        refused += [_no_room(priced, row, charged_to) for priced, row in judged if row.hopeless]
        granted_any = granted_any or any(row.granted for row in rows)
        pending = [priced for priced, row in judged if not (row.granted or row.hopeless)]
    if granted_any:
        await alert_of_reached(connection, _budgets(charged_to.values()))
    return refused


def _judge(lease: LeaseToReserve, path: ChargedTo, price: Price | None) -> _Priced | Shortfall:
    """What can be said of a lease without looking at balances."""
    project = Scope(ScopeKind.PROJECT, lease.project)
    if path.closed is not None:
        return Shortfall(lease.lease_id, ShortfallCause.NOT_RUNNING, path.closed)
    if price is None and path.money_limited:
        return Shortfall(lease.lease_id, ShortfallCause.NO_PRICE, project)
    micros_per_hour = 0 if price is None else price.micros_per_hour
    try:
        held = costs.held_ms(lease.accelerators, lease.run_ms)
        return _Priced(lease, micros_per_hour, held, costs.reservation(held, lease.kind, micros_per_hour))
    except InvalidValueError:
        return Shortfall(lease.lease_id, ShortfallCause.IMPOSSIBLE, project)


def _no_room(priced: _Priced, row: Row[Any], charged_to: Mapping[str, ChargedTo]) -> Shortfall:
    scopes = {ledger: scope for scope, ledger in charged_to[priced.lease.project].ledgers.items()}
    book = Book.MONEY if row.short_of_money else Book.ACCELERATOR_TIME
    asked = priced.amounts.of(book)
    return Shortfall(priced.lease.lease_id, ShortfallCause.NO_ROOM, scopes[row.ledger_id], book, asked, int(row.room))


def _parameters(pending: Sequence[_Priced], charged_to: Mapping[str, ChargedTo]) -> dict[str, Any]:
    projects = {priced.lease.project for priced in pending}
    path = [(project, ledger) for project in sorted(projects) for ledger in charged_to[project].ledgers.values()]
    return {
        "lease_ids": [priced.lease.lease_id for priced in pending],
        "job_ids": [priced.lease.job_id for priced in pending],
        "projects": [priced.lease.project for priced in pending],
        "accelerators": [priced.lease.accelerators for priced in pending],
        "kinds": [priced.lease.kind for priced in pending],
        "spots": [priced.lease.spot for priced in pending],
        "prices": [priced.price for priced in pending],
        "held_ms": [priced.held_ms for priced in pending],
        "micros": [priced.amounts.micros for priced in pending],
        "accelerator_ms": [priced.amounts.accelerator_ms for priced in pending],
        "path_projects": [project for project, _ in path],
        "path_ledgers": [ledger for _, ledger in path],
    }


def _budgets(charged_to: Iterable[ChargedTo]) -> Mapping[int, Budget]:
    """Budgets by the ledger they are counted in."""
    return {path.ledgers[budget.scope]: budget for path in charged_to for budget in path.budgets}
