"""Workers as rows, and what their leases hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, Text

from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_SCHEDULER, leases, workers
from control_plane.errors import Reason, RefusedError

_JOBS_NAMED = 20
"""Most jobs that a refusal names."""

# A lease of before there were placements has one member, on its worker.
_MEMBERS = (
    "leases CROSS JOIN LATERAL"
    " jsonb_array_elements(coalesce(placement, jsonb_build_array(jsonb_build_array(worker, 1)))) AS part"
)
_HELD = text(
    f"""
    SELECT part ->> 0 AS node, sum((part ->> 1)::int * accelerators)::bigint AS accelerators,
        sum((part ->> 1)::int * cpu_millis::bigint)::bigint AS cpu_millis,
        sum((part ->> 1)::int * memory_mib::bigint)::bigint AS memory_mib, count(*) AS leases
    FROM {_MEMBERS} WHERE state = 'GRANTED' GROUP BY 1
    """  # noqa: S608 - a constant
).columns(node=Text, accelerators=BigInteger, cpu_millis=BigInteger, memory_mib=BigInteger, leases=BigInteger)
_LEASES_ON = text(
    f"SELECT lease_id::text, job_id::text FROM {_MEMBERS} WHERE state = 'GRANTED' AND part ->> 0 = :node ORDER BY lease_id"  # noqa: S608 - a constant
)
# As the scheduler calls them: `scheduler.state.pools_and_nodes`.
_POOLS = text(
    "SELECT DISTINCT CASE WHEN pool <> '' THEN pool WHEN spot THEN accelerator_kind || '-spot' ELSE accelerator_kind END"
    " FROM workers"
)
_STORE = text(
    """
    INSERT INTO workers (name, incarnation, accelerator_kind, accelerators, pool, spot, cpu_millis, memory_mib, labels)
    SELECT * FROM jsonb_to_recordset(:offers) AS offered (
        name text, incarnation uuid, accelerator_kind text, accelerators int, pool text, spot boolean, cpu_millis int,
        memory_mib int, labels jsonb
    ) ORDER BY name
    ON CONFLICT (name) DO UPDATE SET incarnation = excluded.incarnation, accelerator_kind = excluded.accelerator_kind,
        accelerators = excluded.accelerators, pool = excluded.pool, spot = excluded.spot, cpu_millis = excluded.cpu_millis,
        memory_mib = excluded.memory_mib, labels = excluded.labels, heartbeat_at = now()
    """
).bindparams(bindparam("offers", type_=JSONB))


def alive(worker_lost_seconds: float) -> ColumnElement[bool]:
    """That a worker's last heartbeat is recent."""
    return workers.c.heartbeat_at > func.now() - text("make_interval(secs => :lost)").bindparams(lost=worker_lost_seconds)


def workers_query(worker_lost_seconds: float) -> Select[Any]:
    """Workers, whether they live, and what is held on them: `leases_held`, `accelerators_leased`, `cpu_millis_held` and
    `memory_mib_held`."""
    held = _HELD.subquery("held")
    return select(
        workers,
        alive(worker_lost_seconds).label("alive"),
        func.coalesce(held.c.leases, 0).label("leases_held"),
        func.coalesce(held.c.accelerators, 0).label("accelerators_leased"),
        func.coalesce(held.c.cpu_millis, 0).label("cpu_millis_held"),
        func.coalesce(held.c.memory_mib, 0).label("memory_mib_held"),
    ).select_from(workers.outerjoin(held, held.c.node == workers.c.name))


async def register(connection: AsyncConnection, offers: Sequence[Mapping[str, Any]], worker_lost_seconds: float) -> bool:
    """Stores what workers offer, as of now; returns whether anything changed, or was only another heartbeat.

    Args:
        connection: a connection in a transaction.
        offers: as `offers.offer_of` makes them, each name once.
        worker_lost_seconds: how long a worker outlives its heartbeat; one that returns after that is news.
    """
    names = [offer["name"] for offer in offers]
    query = select(workers, alive(worker_lost_seconds).label("alive")).where(_among(names)).order_by(workers.c.name)
    rows = (await connection.execute(query.with_for_update())).mappings().all()
    known = {row["name"]: row for row in rows if row["alive"]}
    news = [offer for offer in offers if not _same(offer, known.get(offer["name"]))]
    changed = {offer["name"] for offer in news}
    if same := [name for name in names if name not in changed]:
        await connection.execute(update(workers).where(_among(same)).values(heartbeat_at=func.now()))
    if news:
        await connection.execute(_STORE, {"offers": [dict(offer) for offer in news]})
        await notify(connection, CHANNEL_SCHEDULER)
    return bool(news)


async def cordoned_among(connection: AsyncConnection, names: Sequence[str]) -> list[str]:
    """Those of these workers that take nothing new, by name."""
    query = select(workers.c.name).where(_among(names), workers.c.cordoned | workers.c.draining).order_by(workers.c.name)
    return list((await connection.execute(query)).scalars())


async def pools_known(connection: AsyncConnection) -> frozenset[str]:
    """The pools that nodes are in, living or silent. A node that names none is in that of its kind."""
    return frozenset((await connection.execute(_POOLS)).scalars())


async def lock_worker(connection: AsyncConnection, name: str) -> None:
    """Locks a worker against every other change of it.

    Raises:
        RefusedError: there is none of that name.
    """
    found = await connection.execute(select(workers.c.name).where(workers.c.name == name).with_for_update())
    if found.first() is None:
        raise worker_not_found(name)


async def find_worker(connection: AsyncConnection, name: str, worker_lost_seconds: float) -> RowMapping:
    """A row of `workers_query`.

    Raises:
        RefusedError: there is none of that name.
    """
    query = workers_query(worker_lost_seconds).where(workers.c.name == name)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise worker_not_found(name)
    return row


async def set_service(
    connection: AsyncConnection, name: str, *, cordoned: bool, draining: bool | None, drain_reason: str = ""
) -> None:
    """Says whether a worker that the caller holds locked takes new work; wakes the scheduler. None leaves it as it is."""
    values: dict[str, Any] = {"cordoned": cordoned}
    if draining is not None:
        values |= {"draining": draining, "drain_reason": drain_reason}
    await connection.execute(update(workers).where(workers.c.name == name).values(**values))
    await notify(connection, CHANNEL_SCHEDULER)


async def leases_on(connection: AsyncConnection, name: str) -> list[tuple[str, str]]:
    """Ids of the leases that a worker holds, and of their jobs."""
    return [(row.lease_id, row.job_id) for row in await connection.execute(_LEASES_ON, {"node": name})]


async def begin_to_yield(connection: AsyncConnection, lease_ids: Sequence[str]) -> None:
    """Notes since when leases are asked to yield, where it is not noted. The caller holds their jobs locked."""
    asked = update(leases).where(leases.c.lease_id.in_(lease_ids), leases.c.preempted_at.is_(None))
    await connection.execute(asked.values(preempted_at=func.now()))


async def delete_worker(connection: AsyncConnection, name: str) -> None:
    """Forgets a worker.

    Raises:
        RefusedError: there is none of that name, or it holds leases.
    """
    await lock_worker(connection, name)
    if held := await leases_on(connection, name):
        job_ids = sorted({job_id for _, job_id in held})
        named = job_ids[:_JOBS_NAMED]
        others = [f"{len(job_ids) - len(named)} more"] if len(job_ids) > len(named) else []
        leases = "1 lease" if len(held) == 1 else f"{len(held)} leases"
        raise RefusedError(
            Reason.STILL_NEEDED,
            f"worker {name} holds {leases}, of jobs {', '.join([*named, *others])}; drain it (`headway nodes drain {name}`),"
            " wait until it holds none, then delete it",
            {"worker": name, "leases": str(len(held)), "jobs": ",".join(named)},
        )
    await connection.execute(workers.delete().where(workers.c.name == name))
    await notify(connection, CHANNEL_SCHEDULER)


def worker_not_found(name: str) -> RefusedError:
    """The refusal of a name that no worker has."""
    return RefusedError(
        Reason.RESOURCE_NOT_FOUND, f"there is no worker {name}; `headway nodes list` shows those there are", {"name": name}
    )


def _among(names: Sequence[str]) -> ColumnElement[bool]:
    return workers.c.name == func.any(bindparam("names", list(names), type_=ARRAY(Text)))


def _same(offer: Mapping[str, Any], row: RowMapping | None) -> bool:
    return row is not None and all(row[column] == value for column, value in offer.items())
