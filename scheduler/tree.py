"""The quota tree as the core wants it, from what the database holds, and the names of its nodes.

A queue is a project, and has its name. Names of teams and the root have a prefix that no project's can have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from governance.budgets import Scope, ScopeKind
from scheduler.core.types import Budget, Cell, QueueNode, Quota, Resource

ROOT = "organisation:"
_TEAM = "team:"

_RESOURCES: Mapping[str, Resource] = {resource.name.lower(): resource for resource in Resource}


def scopes_above(project: str, nodes: Mapping[str, QueueNode]) -> list[Scope]:
    """The teams and the organisation on the way from a project to the root: whose budgets its leases are charged to as well."""
    node = nodes.get(project)
    above = ROOT if node is None else node.parent
    found: list[Scope] = []
    while above is not None:
        found.append(Scope(ScopeKind.ORGANISATION, "") if above == ROOT else Scope(ScopeKind.TEAM, above.removeprefix(_TEAM)))
        above = nodes[above].parent if above in nodes else None
    return found


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A row of `queue_nodes`."""

    kind: str
    name: str
    parent: str | None
    weight: int
    quotas: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a node's budgets leave it."""

    budget: Budget | None = None
    demoted: bool = False


@dataclass(frozen=True, slots=True)
class Books:
    """What changes with every lease: budgets by name of node, decayed use by project in accelerator-milliseconds."""

    allowances: Mapping[str, Allowance] = field(default_factory=dict[str, Allowance])
    past_use_ms: Mapping[str, int] = field(default_factory=dict[str, int])


def node_name(kind: str, name: str) -> str:
    """The core's name of an organisation, a team or a project.

    Args:
        kind: "ORGANISATION", "TEAM" or "PROJECT".
        name: its own; that of the organisation does not matter.
    """
    match kind:
        case "ORGANISATION":
            return ROOT
        case "TEAM":
            return f"{_TEAM}{name}"
        case _:
            return name


def build(rows: Iterable[QueueRow], books: Books) -> tuple[QueueNode, ...]:
    """The tree, in order of name.

    A project that has no row, and anything that names a team there is not, is a child of the organisation.
    """
    known = {node_name(row.kind, row.name): row for row in rows}
    names = {ROOT, *known, *books.past_use_ms, *books.allowances}
    nodes = {name: _node(name, known.get(name), known, books) for name in names}
    use = dict.fromkeys(nodes, 0)
    for name, amount in books.past_use_ms.items():
        for above in _path(name, nodes):
            use[above] += amount
    return tuple(replace(nodes[name], past_use=use[name] // 1_000) for name in sorted(nodes))


def _node(name: str, row: QueueRow | None, known: Mapping[str, QueueRow], books: Books) -> QueueNode:
    allowance = books.allowances.get(name, Allowance())
    if row is None:
        parent, weight, quotas = None if name == ROOT else ROOT, 1_000, {}
    else:
        parent, weight, quotas = _parent(name, row, known), row.weight, _quotas(row.quotas)
    return QueueNode(name, parent, weight, quotas, budget=allowance.budget, demoted=allowance.demoted)


def _parent(name: str, row: QueueRow, known: Mapping[str, QueueRow]) -> str | None:
    if name == ROOT:
        return None
    above = ROOT if row.parent is None else node_name("TEAM", row.parent)
    if above not in known:
        return ROOT
    # Teams may be in teams; a circle of them hangs from the root.
    seen = {name}
    while above in known and above != ROOT:
        if above in seen:
            return ROOT
        seen.add(above)
        parent = known[above].parent
        above = ROOT if parent is None else node_name("TEAM", parent)
    return node_name("TEAM", row.parent or "") if row.parent is not None else ROOT


def _quotas(cells: Sequence[Mapping[str, Any]]) -> dict[Cell, Quota]:
    return {
        (cell["pool"], _RESOURCES[cell["resource"]]): Quota(
            cell["nominal"], cell.get("borrowing_limit"), cell.get("lending_limit")
        )
        for cell in cells
    }


def _path(name: str, nodes: Mapping[str, QueueNode]) -> Iterable[str]:
    step: str | None = name
    while step is not None:
        yield step
        step = nodes[step].parent
