"""QuotaService: the quota tree as it was set, usage as settled by the leases; budgets, prices and ledgers from other hands."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets.budget_servicer import BudgetCalls
from control_plane.budgets.ledger_servicer import LedgerCalls
from control_plane.budgets.price_servicer import PriceCalls
from control_plane.call import current_call
from control_plane.capacity.repository import pools_known
from control_plane.db.mutations import once
from control_plane.db.tables import leases
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.spec import ProjectName, canonical_sha256
from control_plane.projects.repository import require_open
from control_plane.quotas import tree, wire
from control_plane.quotas.tree import NodeKind, TreeNode
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, validated_value
from control_plane.rpc.pages import Cursors
from headway.quotas.v1 import quota_service_pb2 as pb

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# A machine without GPU offers this kind; its use is never counted as GPU-hours.
KIND_CPU = "cpu"


class QuotaServicer(BudgetCalls, PriceCalls, LedgerCalls):
    """What the organisation, its teams and its projects have of each pool, may spend, and used."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, currency: str) -> None:
        BudgetCalls.__init__(self, engine, cursors)
        PriceCalls.__init__(self, engine, cursors, currency)
        LedgerCalls.__init__(self, engine, cursors, currency)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: _Context) -> pb.GetQuotaResponse:  # noqa: N802 - gRPC's name
        """The quota of one node."""
        del context
        node = wire.node_of(request)
        visible = current_call().principal.visible_projects()
        async with self._engine.connect() as connection:
            hidden = node.kind is NodeKind.TEAM and not (
                visible is None or node.name in await tree.teams_above(connection, visible)
            )
            row = None if hidden else await tree.find(connection, node)
            pools = await pools_known(connection)
        if row is None:
            raise _no_quota(node)
        return pb.GetQuotaResponse(quota=wire.quota_message(row, pools))

    async def SetQuota(self, request: pb.SetQuotaRequest, context: _Context) -> pb.SetQuotaResponse:  # noqa: N802 - gRPC's name
        """Sets the quota of one node, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        node = wire.node_of(request.quota, "quota")
        values: dict[str, Any] = {
            "parent": wire.parent_of(request.quota, node),
            "weight": wire.weight_of(request.quota),
            "cells": wire.cells_of(request.quota),
        }
        current_call().object = str(node) if node.kind is not NodeKind.PROJECT else node.name

        async def set_quota(connection: AsyncConnection) -> pb.SetQuotaResponse:
            if node.kind is NodeKind.PROJECT:
                await require_open(connection, node.name)
            row = await tree.set_node(connection, node, **values)
            return pb.SetQuotaResponse(quota=wire.quota_message(row, await pools_known(connection)))

        sha256 = canonical_sha256({"method": "SetQuota", "kind": str(node.kind), "name": node.name, **values})
        return await once(self._engine, _project_of(node), request_id, sha256, pb.SetQuotaResponse, set_quota)

    async def ListQuotas(self, request: pb.ListQuotasRequest, context: _Context) -> pb.ListQuotasResponse:  # noqa: N802 - gRPC's name
        """The quotas set, by kind of node and name, as far as the caller may see."""
        del context
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListQuotas", request.tree]
        after = self._cursors.decode(request.page_token, query, (str, str), "page_token") or ["", ""]
        visible = current_call().principal.visible_projects()
        async with self._engine.connect() as connection:
            teams = await tree.teams_above(connection, visible) if request.tree and visible is not None else None
            rows = await tree.listed(
                connection, (after[0], after[1]), size + 1, projects=visible, teams=teams, with_tree=request.tree
            )
            pools = await pools_known(connection)
        page = rows[:size]
        token = self._cursors.encode(query, [page[-1]["kind"], page[-1]["name"]]) if len(rows) > size else ""
        return pb.ListQuotasResponse(quotas=[wire.quota_message(row, pools) for row in page], next_page_token=token)

    async def DeleteQuota(self, request: pb.DeleteQuotaRequest, context: _Context) -> pb.DeleteQuotaResponse:  # noqa: N802 - gRPC's name
        """Takes a node out of the tree, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        node = wire.node_of(request)
        current_call().object = str(node) if node.kind is not NodeKind.PROJECT else node.name

        async def delete(connection: AsyncConnection) -> pb.DeleteQuotaResponse:
            if not await tree.delete_node(connection, node):
                raise _no_quota(node)
            return pb.DeleteQuotaResponse()

        sha256 = canonical_sha256({"method": "DeleteQuota", "kind": str(node.kind), "name": node.name})
        return await once(self._engine, _project_of(node), request_id, sha256, pb.DeleteQuotaResponse, delete)

    async def GetUsage(self, request: pb.GetUsageRequest, context: _Context) -> pb.GetUsageResponse:  # noqa: N802 - gRPC's name
        """What a project holds and used, by kind of accelerator."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        of_all_members = leases.c.accelerators * leases.c.members
        held = func.coalesce(func.sum(case((leases.c.state == "GRANTED", of_all_members), else_=0)), 0)
        query = (
            select(leases.c.granted_kind, held.label("held"), func.sum(leases.c.accelerator_ms).label("used_ms"))
            .where(leases.c.project == project, leases.c.granted_kind.is_not(None))
            .group_by(leases.c.granted_kind)
            .order_by(leases.c.granted_kind)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return pb.GetUsageResponse(
            usage=[
                pb.Usage(
                    accelerator_kind=row.granted_kind,
                    accelerators_held=int(row.held),
                    accelerator_seconds=int(row.used_ms) / 1_000,
                    gpu_hours=0.0 if row.granted_kind == KIND_CPU else int(row.used_ms) / 3_600_000,
                )
                for row in rows
            ]
        )


def _project_of(node: TreeNode) -> str:
    """Whose effect a change of the node is; empty: the organisation's."""
    return node.name if node.kind is NodeKind.PROJECT else ""


def _no_quota(node: TreeNode) -> RefusedError:
    match node.kind:
        case NodeKind.PROJECT:
            said = (
                f"project {node.name} has no quota: it may use whatever is free; set one with SetQuota, or "
                f"`headway quota set {node.name} KIND=NUMBER`"
            )
        case NodeKind.TEAM:
            said = f"there is no team {node.name}; make it with SetQuota, or `headway quota set --team {node.name}`"
        case NodeKind.ORGANISATION:
            said = "the organisation has no quota: all there is belongs to it; set one with SetQuota"
    return RefusedError(Reason.RESOURCE_NOT_FOUND, said, {"name": node.name})
