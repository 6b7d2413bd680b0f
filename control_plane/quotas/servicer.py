"""QuotaService: quotas as set, usage as settled by the leases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc
from sqlalchemy import case, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.call import current_call
from control_plane.db.events import notify
from control_plane.db.mutations import once
from control_plane.db.tables import CHANNEL_SCHEDULER, leases, quotas
from control_plane.errors import FieldViolation, Reason, RefusedError, invalid_fields
from control_plane.jobs.spec import AcceleratorKind, ProjectName, canonical_sha256
from control_plane.projects.repository import require_open
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, timestamp, validated_value
from control_plane.rpc.pages import Cursors
from headway.quotas.v1 import quota_service_pb2 as pb
from headway.quotas.v1 import quota_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# A machine without GPU offers this kind; its use is never counted as GPU-hours.
KIND_CPU = "cpu"


class QuotaServicer(quota_service_pb2_grpc.QuotaServiceServicer):
    """How much of each kind of accelerator a project may hold at once, and what it used."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors) -> None:
        self._engine = engine
        self._cursors = cursors

    async def GetQuota(self, request: pb.GetQuotaRequest, context: _Context) -> pb.GetQuotaResponse:  # noqa: N802 - gRPC's name
        """One project's quota."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(quotas).where(quotas.c.project == project))).mappings().one_or_none()
        if row is None:
            raise RefusedError(
                Reason.RESOURCE_NOT_FOUND,
                f"project {project} has no quota: it may use whatever is free; set one with SetQuota, or "
                f"`headway quota set {project} KIND=NUMBER`",
                {"name": project},
            )
        return pb.GetQuotaResponse(quota=_to_proto(row))

    async def SetQuota(self, request: pb.SetQuotaRequest, context: _Context) -> pb.SetQuotaResponse:  # noqa: N802 - gRPC's name
        """Sets one project's quota, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        project = validated_value(ProjectName, request.quota.project, "quota.project")
        limits = _limits(request.quota.max_accelerators)
        sha256 = canonical_sha256({"method": "SetQuota", "project": project, "limits": limits})
        current_call().object = project

        async def set_quota(connection: AsyncConnection) -> pb.SetQuotaResponse:
            await require_open(connection, project)
            row = (
                (
                    await connection.execute(
                        insert(quotas)
                        .values(project=project, max_accelerators=limits)
                        .on_conflict_do_update(
                            index_elements=["project"], set_={"max_accelerators": limits, "updated_at": func.now()}
                        )
                        .returning(quotas)
                    )
                )
                .mappings()
                .one()
            )
            await notify(connection, CHANNEL_SCHEDULER)
            return pb.SetQuotaResponse(quota=_to_proto(row))

        return await once(self._engine, project, request_id, sha256, pb.SetQuotaResponse, set_quota)

    async def ListQuotas(self, request: pb.ListQuotasRequest, context: _Context) -> pb.ListQuotasResponse:  # noqa: N802 - gRPC's name
        """The quotas set, by project, of the projects the caller may see."""
        del context
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        after = self._cursors.decode(request.page_token, "ListQuotas", (str,), "page_token")
        query = select(quotas).where(quotas.c.project > ("" if after is None else after[0]))
        visible = current_call().principal.visible_projects()
        if visible is not None:
            query = query.where(quotas.c.project.in_(visible))
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query.order_by(quotas.c.project).limit(size + 1))).mappings().all()
        page = rows[:size]
        token = self._cursors.encode("ListQuotas", [page[-1]["project"]]) if len(rows) > size else ""
        return pb.ListQuotasResponse(quotas=map(_to_proto, page), next_page_token=token)

    async def GetUsage(self, request: pb.GetUsageRequest, context: _Context) -> pb.GetUsageResponse:  # noqa: N802 - gRPC's name
        """What a project holds and used, by kind of accelerator."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        held = func.coalesce(func.sum(case((leases.c.state == "GRANTED", leases.c.accelerators), else_=0)), 0)
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


def _limits(asked: Mapping[str, int]) -> dict[str, int]:
    if len(asked) > 64:
        raise invalid_fields([FieldViolation("quota.max_accelerators", f"names {len(asked)} kinds; expected at most 64")])
    violations = [
        FieldViolation(f"quota.max_accelerators[{kind}]", f"is {count}; expected 0 to 1,000,000")
        for kind, count in sorted(asked.items())
        if not 0 <= count <= 1_000_000
    ]
    if violations:
        raise invalid_fields(violations)
    return {
        validated_value(AcceleratorKind, kind, "quota.max_accelerators key"): count for kind, count in sorted(asked.items())
    }


def _to_proto(row: Mapping[Any, Any]) -> pb.Quota:
    return pb.Quota(project=row["project"], max_accelerators=row["max_accelerators"], update_time=timestamp(row["updated_at"]))
