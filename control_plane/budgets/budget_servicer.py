"""QuotaService's calls about budgets: what nodes of the quota tree may spend."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets import store, wire
from control_plane.budgets.standing import read_states
from control_plane.call import current_call
from control_plane.db.mutations import once
from control_plane.errors import invalid_field
from control_plane.jobs.spec import canonical_sha256
from control_plane.quotas import tree
from control_plane.quotas.tree import NodeKind, TreeNode
from control_plane.quotas.wire import node_of
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier
from control_plane.rpc.pages import Cursors
from governance.budgets import Scope, ScopeKind
from headway.quotas.v1 import budget_pb2 as pb
from headway.quotas.v1 import quota_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class BudgetCalls(quota_service_pb2_grpc.QuotaServiceServicer):
    """Budgets: set, looked at, taken."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors) -> None:
        self._engine = engine
        self._cursors = cursors

    async def SetBudget(self, request: pb.SetBudgetRequest, context: _Context) -> pb.SetBudgetResponse:  # noqa: N802 - gRPC's name
        """Sets what one node may spend, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        node = node_of(request.budget, "budget")
        budget, version = wire.budget_from(request.budget, node), wire.version_of(request.etag)
        call = current_call()
        call.object = _object(node)

        async def set_budget(connection: AsyncConnection) -> pb.SetBudgetResponse:
            if node.kind is NodeKind.TEAM and not await tree.is_team(connection, node.name):
                raise invalid_field("budget.team", f"is {node.name!r}, which is no team; expected one that SetQuota made")
            row = await store.set_budget(connection, budget, call.principal.subject, version)
            return pb.SetBudgetResponse(budget=wire.budget_message(row))

        sha256 = canonical_sha256({"method": "SetBudget", "budget": repr(budget), "etag": request.etag})
        return await once(self._engine, _project_of(node), request_id, sha256, pb.SetBudgetResponse, set_budget)

    async def GetBudget(self, request: pb.GetBudgetRequest, context: _Context) -> pb.GetBudgetResponse:  # noqa: N802 - gRPC's name
        """The budget of one node, and where it stands."""
        del context
        node = node_of(request)
        scope = wire.scope_of(node)
        visible = current_call().principal.visible_projects()
        async with self._engine.connect() as connection:
            hidden = node.kind is NodeKind.TEAM and not (
                visible is None or node.name in await tree.teams_above(connection, visible)
            )
            if hidden:
                raise store.no_budget(scope)
            row = await store.get_budget(connection, scope)
            states = await read_states(connection, [scope])
        return pb.GetBudgetResponse(budget=wire.budget_message(row, states[0] if states else None))

    async def ListBudgets(self, request: pb.ListBudgetsRequest, context: _Context) -> pb.ListBudgetsResponse:  # noqa: N802 - gRPC's name
        """The budgets set, by kind of node and name, as far as the caller may see."""
        del context
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListBudgets"]
        after = self._cursors.decode(request.page_token, query, (str, str), "page_token") or ["", ""]
        visible = current_call().principal.visible_projects()
        async with self._engine.connect() as connection:
            teams = None if visible is None else await tree.teams_above(connection, visible)
            rows = await store.list_budgets(connection, visible, teams, (after[0], after[1]), size + 1)
            page = rows[:size]
            scopes = [Scope(ScopeKind(row["kind"]), row["scope"]) for row in page]
            states = {state.budget.scope: state for state in await read_states(connection, scopes)}
        token = self._cursors.encode(query, [page[-1]["kind"], page[-1]["scope"]]) if len(rows) > size else ""
        found = [wire.budget_message(row, states.get(scope)) for row, scope in zip(page, scopes, strict=True)]
        return pb.ListBudgetsResponse(budgets=found, next_page_token=token)

    async def DeleteBudget(self, request: pb.DeleteBudgetRequest, context: _Context) -> pb.DeleteBudgetResponse:  # noqa: N802 - gRPC's name
        """Takes a node's budget, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        node = node_of(request)
        version = wire.version_of(request.etag)
        current_call().object = _object(node)

        async def delete(connection: AsyncConnection) -> pb.DeleteBudgetResponse:
            await store.remove_budget(connection, wire.scope_of(node), version)
            return pb.DeleteBudgetResponse()

        sha256 = canonical_sha256({"method": "DeleteBudget", "kind": str(node.kind), "name": node.name, "etag": request.etag})
        return await once(self._engine, _project_of(node), request_id, sha256, pb.DeleteBudgetResponse, delete)


def _project_of(node: TreeNode) -> str:
    """Whose effect a change of the node's budget is; empty: the organisation's."""
    return node.name if node.kind is NodeKind.PROJECT else ""


def _object(node: TreeNode) -> str:
    return f"budget of {node.name if node.kind is NodeKind.PROJECT else node}"
