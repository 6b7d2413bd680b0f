"""Quotas between the contract's messages and what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

from control_plane.errors import FieldViolation, invalid_field, invalid_fields
from control_plane.jobs.spec import AcceleratorKind, ProjectName
from control_plane.quotas.tree import NodeKind, TreeNode
from control_plane.rpc.convert import timestamp, validated_value
from headway.quotas.v1 import quota_service_pb2 as pb

ACCELERATORS = "accelerators"
RESOURCES: Mapping[int, str] = {
    int(pb.RESOURCE_ACCELERATORS): ACCELERATORS,
    int(pb.RESOURCE_CPU_MILLIS): "cpu_millis",
    int(pb.RESOURCE_MEMORY_MIB): "memory_mib",
}
"""The stored word of each resource on the wire."""

RESOURCE_NUMBERS = {word: pb.Resource.ValueType(number) for number, word in RESOURCES.items()}

_MOST = {ACCELERATORS: 1_000_000, "cpu_millis": 10**12, "memory_mib": 10**12}
_CELLS_MAX = 256
_POOLS_MAX = 64
_WEIGHT_DEFAULT = 1_000
_WEIGHT_MAX = 1_000_000


class _Named(Protocol):
    @property
    def project(self) -> str: ...
    @property
    def team(self) -> str: ...
    @property
    def organisation(self) -> bool: ...


def node_of(message: _Named, path: str = "") -> TreeNode:
    """The node that a request names.

    Raises:
        RefusedError: it does not name exactly one, or by a name that is none.
    """
    prefix = f"{path}." if path else ""
    given = [name for name in ("project", "team", "organisation") if getattr(message, name)]
    if len(given) > 1:
        raise invalid_field(
            path or "request", f"has {' and '.join(given)}; expected exactly one of project, team, organisation"
        )
    if given == ["organisation"]:
        return TreeNode(NodeKind.ORGANISATION)
    if given == ["team"]:
        # A team's name obeys the rules of a project's.
        return TreeNode(NodeKind.TEAM, validated_value(ProjectName, message.team, f"{prefix}team"))
    return TreeNode(NodeKind.PROJECT, validated_value(ProjectName, message.project, f"{prefix}project"))


def weight_of(quota: pb.Quota) -> int:
    """The weight asked for, in thousandths.

    Raises:
        RefusedError: it is none.
    """
    weight = quota.weight if quota.HasField("weight") else _WEIGHT_DEFAULT
    if not 1 <= weight <= _WEIGHT_MAX:
        raise invalid_field("quota.weight", f"is {weight}; expected 1 to {_WEIGHT_MAX:,} thousandths")
    return weight


def parent_of(quota: pb.Quota, node: TreeNode) -> str | None:
    """The team above that is asked for; None: the organisation.

    Raises:
        RefusedError: its name is none, or the node is the root.
    """
    if not quota.parent:
        return None
    if node.kind is NodeKind.ORGANISATION:
        raise invalid_field("quota.parent", f"is {quota.parent[:80]!r}; expected to be empty: the organisation is the root")
    return validated_value(ProjectName, quota.parent, "quota.parent")


def cells_of(quota: pb.Quota) -> list[dict[str, Any]]:
    """The cells asked for, in order of pool and resource, as they are stored.

    Raises:
        RefusedError: with every cell that breaks its limits, or is named twice.
    """
    for path, found, most in (
        ("quota.cells", len(quota.cells), _CELLS_MAX),
        ("quota.max_accelerators", len(quota.max_accelerators), _POOLS_MAX),
    ):
        if found > most:
            raise invalid_field(path, f"names {found} cells; expected at most {most}")
    violations: list[FieldViolation] = []
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for index, asked in enumerate(quota.cells):
        cell = _cell(asked, f"quota.cells[{index}]", violations)
        if cell is not None and cells.setdefault((cell["pool"], cell["resource"]), cell) is not cell:
            violations.append(FieldViolation(f"quota.cells[{index}]", "is named before; expected each pool and resource once"))
    for pool, most in sorted(quota.max_accelerators.items()):
        validated_value(AcceleratorKind, pool, "quota.max_accelerators key")
        path = f"quota.max_accelerators[{pool}]"
        if not 0 <= most <= _MOST[ACCELERATORS]:
            violations.append(FieldViolation(path, f"is {most}; expected 0 to {_MOST[ACCELERATORS]:,}"))
            continue
        cell = _stored(pool, ACCELERATORS, most, 0, None)
        named = cells.setdefault((pool, ACCELERATORS), cell)
        if (named["nominal"], named["borrowing_limit"]) != (most, 0):
            violations.append(FieldViolation(path, f"is {most}, and quota.cells says otherwise; expected to be named in one"))
    if violations:
        raise invalid_fields(violations)
    return [cell for _, cell in sorted(cells.items())]


def _cell(asked: pb.QuotaCell, path: str, violations: list[FieldViolation]) -> dict[str, Any] | None:
    pool = validated_value(AcceleratorKind, asked.pool, f"{path}.pool")
    resource = RESOURCES.get(asked.resource)
    if resource is None:
        violations.append(FieldViolation(f"{path}.resource", f"is {asked.resource}; expected a Resource"))
        return None
    limits = {
        "nominal": asked.nominal,
        "borrowing_limit": asked.borrowing_limit if asked.HasField("borrowing_limit") else None,
        "lending_limit": asked.lending_limit if asked.HasField("lending_limit") else None,
    }
    found = len(violations)
    for name, value in limits.items():
        if value is not None and not 0 <= value <= _MOST[resource]:
            violations.append(FieldViolation(f"{path}.{name}", f"is {value}; expected 0 to {_MOST[resource]:,}"))
    return _stored(pool, resource, **limits) if len(violations) == found else None


def _stored(
    pool: str, resource: str, nominal: int | None, borrowing_limit: int | None, lending_limit: int | None
) -> dict[str, Any]:
    return {
        "pool": pool,
        "resource": resource,
        "nominal": nominal,
        "borrowing_limit": borrowing_limit,
        "lending_limit": lending_limit,
    }


def quota_cell(cell: Mapping[str, Any]) -> pb.QuotaCell:
    """A stored cell as a message."""
    return pb.QuotaCell(
        pool=cell["pool"],
        resource=RESOURCE_NUMBERS[cell["resource"]],
        nominal=cell["nominal"],
        borrowing_limit=cell["borrowing_limit"],
        lending_limit=cell["lending_limit"],
    )


def quota_message(row: Mapping[Any, Any], pools: Set[str]) -> pb.Quota:
    """A row of `queue_nodes` as a message.

    Args:
        row: the row.
        pools: those that nodes are in.
    """
    stored: Sequence[Mapping[str, Any]] = row["quotas"]
    node = TreeNode(NodeKind(row["kind"]), row["name"])
    return pb.Quota(
        **naming(node),
        max_accelerators={
            cell["pool"]: cell["nominal"]
            for cell in stored
            if cell["resource"] == ACCELERATORS and cell["borrowing_limit"] == 0
        },
        update_time=timestamp(row["updated_at"]),
        parent=row["parent"] or "",
        weight=row["weight"],
        cells=map(quota_cell, stored),
        unknown_pools=sorted({cell["pool"] for cell in stored} - pools),
    )


def naming(node: TreeNode) -> dict[str, Any]:
    """The one field of project, team and organisation that names a node."""
    return {"organisation": True} if node.kind is NodeKind.ORGANISATION else {node.kind.lower(): node.name}
