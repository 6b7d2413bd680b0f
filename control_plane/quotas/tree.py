"""The quota tree as rows of `queue_nodes`, and the rules that keep it a tree.

Whoever changes the tree holds it locked until the transaction ends: two moves that are each fine could make a circle together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, and_, delete, func, or_, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.budget_tables import budgets
from control_plane.db.events import notify
from control_plane.db.scheduling_tables import queue_nodes
from control_plane.db.tables import CHANNEL_SCHEDULER
from control_plane.errors import Reason, RefusedError, invalid_field

DEPTH_MAX = 8
"""Most teams in a row, from the organisation down."""


class NodeKind(StrEnum):
    """What a node of the tree is."""

    ORGANISATION = "ORGANISATION"
    PROJECT = "PROJECT"
    TEAM = "TEAM"


@dataclass(frozen=True, slots=True)
class TreeNode:
    """Names a node of the tree. Teams and projects have names of their own."""

    kind: NodeKind
    name: str = ""
    """Empty: the organisation's."""

    def __str__(self) -> str:
        return f"{self.kind.lower()} {self.name}" if self.name else f"the {self.kind.lower()}"


async def find(connection: AsyncConnection, node: TreeNode) -> RowMapping | None:
    """The row of a node; None: it has none."""
    return (await connection.execute(select(queue_nodes).where(_is(node)))).mappings().one_or_none()


async def listed(
    connection: AsyncConnection,
    after: tuple[str, str],
    limit: int,
    *,
    projects: Set[str] | None,
    teams: Set[str] | None,
    with_tree: bool,
) -> Sequence[RowMapping]:
    """Rows in order of kind and name.

    Args:
        connection: where to read.
        after: kind and name of the last row of the page before.
        limit: most rows.
        projects: those that may be listed; None: all.
        teams: those that may be listed; None: all.
        with_tree: whether the organisation and teams are listed at all.
    """
    columns = queue_nodes.c
    kinds = [columns.kind == NodeKind.PROJECT if projects is None else _named(NodeKind.PROJECT, projects)]
    if with_tree:
        kinds.append(columns.kind == NodeKind.ORGANISATION)
        kinds.append(columns.kind == NodeKind.TEAM if teams is None else _named(NodeKind.TEAM, teams))
    query = select(queue_nodes).where(or_(*kinds), tuple_(columns.kind, columns.name) > tuple_(*after))
    return (await connection.execute(query.order_by(columns.kind, columns.name).limit(limit))).mappings().all()


async def teams_above(connection: AsyncConnection, projects: Set[str]) -> frozenset[str]:
    """The teams on the ways from these projects to the organisation."""
    parents = await _parents_of_teams(connection)
    query = select(queue_nodes.c.parent).where(_named(NodeKind.PROJECT, projects), queue_nodes.c.parent.is_not(None))
    found: set[str] = set()
    for team in (await connection.execute(query)).scalars():
        found.update(_way_up(team, parents))
    return frozenset(found)


async def set_node(
    connection: AsyncConnection, node: TreeNode, parent: str | None, weight: int, cells: Sequence[Mapping[str, Any]]
) -> RowMapping:
    """Writes all of a node, which is made if it is not there.

    Args:
        connection: a connection in a transaction.
        node: which.
        parent: the team above; None: the organisation.
        weight: thousandths.
        cells: as `queue_nodes.quotas` holds them.

    Raises:
        RefusedError: there is no such team above, it is below the node itself, or the tree would become too deep.
    """
    await _lock(connection)
    if parent is not None:
        await _require_place(connection, node, parent)
    values = {"parent": parent, "weight": weight, "quotas": list(cells)}
    changed = {**values, "updated_at": func.now(), "version": queue_nodes.c.version + 1}
    written = await connection.execute(
        insert(queue_nodes)
        .values(kind=str(node.kind), name=node.name, **values)
        .on_conflict_do_update(index_elements=["kind", "name"], set_=changed)
        .returning(queue_nodes)
    )
    await notify(connection, CHANNEL_SCHEDULER)
    return written.mappings().one()


async def delete_node(connection: AsyncConnection, node: TreeNode) -> bool:
    """Takes a node out of the tree; returns whether it was there.

    Raises:
        RefusedError: it is a team that has children, or a budget, which would limit nothing from then on.
    """
    await _lock(connection)
    if node.kind is NodeKind.TEAM:
        below = select(func.count()).select_from(queue_nodes).where(queue_nodes.c.parent == node.name)
        children: int = (await connection.execute(below)).scalar_one()
        if children:
            raise RefusedError(
                Reason.STILL_NEEDED,
                f"team {node.name} has {children} children; give them another parent or delete them, then delete the team",
                {"team": node.name, "children": str(children)},
            )
        # Locked first: who gives it a budget meanwhile is waited for, and seen.
        await connection.execute(select(queue_nodes.c.name).where(_is(node)).with_for_update())
        budget = select(budgets.c.scope).where(budgets.c.kind == str(NodeKind.TEAM), budgets.c.scope == node.name)
        if (await connection.execute(budget)).first() is not None:
            raise RefusedError(
                Reason.STILL_NEEDED,
                f"team {node.name} has a budget, which would limit nothing any more; delete the budget (DeleteBudget), then"
                " delete the team",
                {"team": node.name, "budget": node.name},
            )
    deleted = await connection.execute(delete(queue_nodes).where(_is(node)))
    await notify(connection, CHANNEL_SCHEDULER)
    return deleted.rowcount == 1


async def is_team(connection: AsyncConnection, name: str) -> bool:
    """Whether there is such a team; if so, it is not deleted before the transaction ends."""
    query = select(queue_nodes.c.name).where(_is(TreeNode(NodeKind.TEAM, name))).with_for_update(read=True, key_share=True)
    return (await connection.execute(query)).first() is not None


async def _lock(connection: AsyncConnection) -> None:
    # Readers go on; another change of the tree waits.
    await connection.execute(text("LOCK TABLE queue_nodes IN SHARE ROW EXCLUSIVE MODE"))


async def _require_place(connection: AsyncConnection, node: TreeNode, parent: str) -> None:
    parents = await _parents_of_teams(connection)
    if parent not in parents:
        raise invalid_field("quota.parent", f"is {parent!r}, which is no team; expected a team that SetQuota made, or none")
    above = _way_up(parent, parents)
    if node.kind is not NodeKind.TEAM:
        return
    if node.name in above:
        raise invalid_field(
            "quota.parent", f"is {parent!r}, which is team {node.name} itself or below it; expected a team that is not"
        )
    depth = len(above) + _height(node.name, parents)
    if depth > DEPTH_MAX:
        raise invalid_field("quota.parent", f"would make {depth} teams in a row; expected at most {DEPTH_MAX}")


async def _parents_of_teams(connection: AsyncConnection) -> dict[str, str | None]:
    query = select(queue_nodes.c.name, queue_nodes.c.parent).where(queue_nodes.c.kind == NodeKind.TEAM)
    return {row.name: row.parent for row in await connection.execute(query)}


def _way_up(team: str, parents: Mapping[str, str | None]) -> list[str]:
    """The team and all above it."""
    way: list[str] = []
    step: str | None = team
    while step is not None:
        way.append(step)
        step = parents.get(step)
    return way


def _height(team: str, parents: Mapping[str, str | None]) -> int:
    """Teams in a row from this one down: itself, if none is below it."""
    return max([1, *(way.index(team) + 1 for other in parents if team in (way := _way_up(other, parents)))])


def _is(node: TreeNode) -> Any:
    return and_(queue_nodes.c.kind == str(node.kind), queue_nodes.c.name == node.name)


def _named(kind: NodeKind, names: Set[str]) -> Any:
    return and_(queue_nodes.c.kind == str(kind), queue_nodes.c.name.in_(sorted(names)))
