"""Pages of jobs: in an order, filtered, as far as the caller may see.

Every order ends in the job's id, so it is total, and a page begins after a position in it (keyset, never offset). Where a page
is cut from several projects or states, each of them gives its first rows by an index, and the best of those are the page: what
it costs does not grow with the table.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    RowMapping,
    Select,
    Text,
    bindparam,
    column,
    func,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import jobs
from control_plane.db.tables import projects as project_table
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.jobs.filters import Filter, condition, states_asked
from control_plane.jobs.states import JobState
from control_plane.jobs.waiting import WAITING_REASON
from control_plane.rpc.convert import identifier

_PARTS_MAX = 1_000
"""Most parts that a page is merged from; with more, the database sees one list and decides for itself."""
_DEFAULT = "create_time desc"


@dataclass(frozen=True, slots=True)
class Order:
    """An order of jobs: by a column, then by id, both in one direction."""

    column: Column[Any]
    descending: bool
    timed: bool
    everywhere: bool
    """Whether an index gives this order over all projects."""
    by_state: bool
    """Whether an index gives this order for one state of one project."""

    @property
    def types(self) -> tuple[type, ...]:
        """What a position in a page token is made of."""
        return (str if self.timed else int, str)

    def directed(self, *columns: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """Columns in the order's direction."""
        return [one.desc() if self.descending else one.asc() for one in columns]

    def position_of(self, row: RowMapping) -> list[Any]:
        """Where a row stands, for a page token."""
        value = row[self.column.name]
        return [value.isoformat() if self.timed else value, row["job_id"]]

    def parsed(self, position: list[Any]) -> tuple[Any, str]:
        """The values of a position from a page token.

        Raises:
            RefusedError: it does not stand in this order.
        """
        value, job_id = position
        if self.timed:
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise invalid_field("page_token", "was not made by this server for this query") from None
        return value, identifier(job_id, "page_token")


_COLUMNS = {
    "create_time": (jobs.c.created_at, True, True, True),
    "priority": (jobs.c.priority, False, False, False),
}
_DIRECTIONS = {"asc": False, "desc": True}


def order_of(text: str, path: str = "order_by") -> Order:
    """The order that a request names.

    Raises:
        RefusedError: it is none.
    """
    words = (text or _DEFAULT).split(" ") if len(text) <= 100 else []
    if len(words) == 1:
        words.append("asc")
    if len(words) != 2 or words[0] not in _COLUMNS or words[1] not in _DIRECTIONS:
        shown = repr(text if len(text) <= 60 else text[:57] + "...")
        raise invalid_field(path, f"is {shown}; expected {', '.join(_COLUMNS)}, optionally followed by asc or desc")
    ordered, timed, everywhere, by_state = _COLUMNS[words[0]]
    return Order(ordered, _DIRECTIONS[words[1]], timed, everywhere, by_state)


@dataclass(frozen=True, slots=True)
class Query:
    """Which jobs to list.

    Attributes:
        projects: of these; None: of all.
        states: in one of these; empty: in any.
        said: which the filter lets through; None: all.
        order: in which order.
        after: beginning after this position of the order.
        limit: at most so many.
        summary: whether spec, result and violations are left out.
    """

    projects: Collection[str] | None
    states: Collection[JobState]
    said: Filter | None
    order: Order
    after: tuple[Any, str] | None
    limit: int
    summary: bool = False


async def list_jobs(connection: AsyncConnection, query: Query) -> Sequence[RowMapping]:
    """The rows of a page."""
    if query.projects is not None and not query.projects:
        return ()
    projects = None if query.projects is None else sorted(query.projects)
    if projects is None and not (query.order.everywhere and _states(query) is None):
        projects = sorted((await connection.execute(select(project_table.c.project))).scalars())
    return (await connection.execute(_statement(query, projects))).mappings().all()


def _states(query: Query) -> Sequence[str] | None:
    """The states that the page's jobs are in; None if they may be in any."""
    asked = states_asked(query.said)
    if not query.states and asked is None:
        return None
    listed = frozenset(query.states) or frozenset(JobState)
    return sorted(listed if asked is None else listed & asked)


def _statement(query: Query, projects: Sequence[str] | None) -> Select[*tuple[Any, ...]]:
    columns = _SUMMARY if query.summary else _WHOLE
    states = _states(query)
    parts = list(product(projects or (), states if states and query.order.by_state else ("",)))
    if not 1 < len(parts) <= _PARTS_MAX:
        within = [] if projects is None else [_one_of(jobs.c.project, projects)]
        within += [] if states is None else [_one_of(jobs.c.state, states)]
        return _page(select(*columns), within, query)
    part = (
        func.unnest(_texts([project for project, _ in parts]), _texts([state for _, state in parts]))
        .table_valued(column("project", Text), column("state", Text))
        .render_derived(name="part")
    )
    within = [jobs.c.project == part.c.project]
    if states is not None:
        within.append(jobs.c.state == part.c.state if query.order.by_state else _one_of(jobs.c.state, states))
    first = _page(select(query.order.column, jobs.c.job_id), within, query).lateral("first")
    best = (
        select(first.c.job_id)
        .select_from(part.join(first, true()))
        .order_by(*query.order.directed(*first.c))
        .limit(query.limit)
        .subquery()
    )
    rows = select(*columns).join(best, jobs.c.job_id == best.c.job_id)
    return rows.order_by(*query.order.directed(query.order.column, jobs.c.job_id))


def _page(rows: Select[*tuple[Any, ...]], within: Sequence[ColumnElement[bool]], query: Query) -> Select[*tuple[Any, ...]]:
    order = query.order
    rows = rows.where(*within, *_further(query))
    return rows.order_by(*order.directed(order.column, jobs.c.job_id)).limit(query.limit)


def _one_of(which: ColumnElement[str], values: Sequence[str]) -> ColumnElement[bool]:
    return which == values[0] if len(values) == 1 else which.in_(values)


def _texts(values: list[str]) -> ColumnElement[Any]:
    return bindparam(None, values, ARRAY(Text))


def _further(query: Query) -> list[ColumnElement[bool]]:
    """What the filter asks, and that the page begins after its position."""
    further = [] if query.said is None else [condition(query.said)]
    if query.after is not None:
        value, job_id = query.after
        here = tuple_(query.order.column, jobs.c.job_id)
        there = tuple_(bindparam(None, value, query.order.column.type), bindparam(None, job_id, jobs.c.job_id.type))
        further.append(here < there if query.order.descending else here > there)
    return further


_NO_VIOLATIONS = literal_column("""'{"violations": []}'::jsonb""")
_WHOLE: list[Any] = [*jobs.c, WAITING_REASON.label("waiting_reason")]
_SUMMARY: list[Any] = [
    *(kept for kept in jobs.c if kept.name not in {"spec", "result", "failure"}),
    jobs.c.failure.op("||")(_NO_VIOLATIONS).label("failure"),
    WAITING_REASON.label("waiting_reason"),
]


async def job_set(connection: AsyncConnection, project: str, name: str) -> RowMapping | None:
    """How many of a job set's jobs stand where; None if it has none."""
    rows = await _job_sets(connection, project, [name])
    return rows[0] if rows else None


async def list_job_sets(connection: AsyncConnection, project: str, after: str, limit: int) -> Sequence[RowMapping]:
    """The job sets of a project by name, beginning after a name."""
    # From name to name by the index, without looking at the jobs in between.
    names = (
        select(func.min(jobs.c.job_set).label("name"))
        .where(jobs.c.project == project, jobs.c.job_set > after, jobs.c.job_set != "")
        .cte("names", recursive=True)
    )
    following = (
        select(func.min(jobs.c.job_set))
        .where(jobs.c.project == project, jobs.c.job_set > names.c.name, jobs.c.job_set != "")
        .scalar_subquery()
    )
    names = names.union_all(select(following).where(names.c.name.is_not(None)))
    found = (await connection.execute(select(names.c.name).where(names.c.name.is_not(None)).limit(limit))).scalars().all()
    return await _job_sets(connection, project, found) if found else ()


async def _job_sets(connection: AsyncConnection, project: str, names: Sequence[str]) -> Sequence[RowMapping]:
    counted = (
        select(
            jobs.c.job_set.label("name"),
            jobs.c.state,
            func.count().label("jobs"),
            func.min(jobs.c.created_at).label("created_at"),
        )
        .where(jobs.c.project == project, jobs.c.job_set.in_(names), jobs.c.job_set != "")
        .group_by(jobs.c.job_set, jobs.c.state)
        .subquery()
    )
    query = (
        select(
            counted.c.name,
            func.sum(counted.c.jobs).label("job_count"),
            func.jsonb_object_agg(counted.c.state, counted.c.jobs).label("states"),
            func.min(counted.c.created_at).label("created_at"),
        )
        .group_by(counted.c.name)
        .order_by(counted.c.name)
    )
    return (await connection.execute(query)).mappings().all()


def job_set_not_found(project: str, name: str) -> RefusedError:
    """The refusal for a job set without a job."""
    return RefusedError(
        Reason.RESOURCE_NOT_FOUND,
        f"project {project} has no job set {name}; list them with `headway job-set list`",
        {"name": name},
    )
