"""AuditService: the log, for those who oversee."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.audit import chain
from control_plane.call import current_call
from control_plane.db.tables import audit_links, audit_records
from control_plane.errors import invalid_field
from control_plane.identity.principal import Principal, Role
from control_plane.rpc import pages
from control_plane.rpc.convert import timestamp
from control_plane.rpc.pages import Cursors
from control_plane.rpc.text import require_text
from headway.audit.v1 import audit_service_pb2 as pb
from headway.audit.v1 import audit_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Who did what."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors) -> None:
        self._engine = engine
        self._cursors = cursors

    async def ListAuditRecords(  # noqa: N802 - gRPC's name
        self, request: pb.ListAuditRecordsRequest, context: _Context
    ) -> pb.ListAuditRecordsResponse:
        """Records in the order of the chain, or the newest first."""
        del context
        require_text({"principal": (request.principal, 300), "method": (request.method, 300)})
        if request.after_position < 0:
            raise invalid_field("after_position", f"is {request.after_position}; expected 0 or a position")
        start, end = _moment(request, "start_time"), _moment(request, "end_time")
        projects = [request.project] if request.project else _overseen(current_call().principal)
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = [
            *("ListAuditRecords", projects, request.principal, request.method, request.after_position, request.refused_only),
            *(start and start.isoformat(), end and end.isoformat(), request.newest_first),
        ]
        position = self._cursors.decode(request.page_token, query, (int,), "page_token")
        links, records = audit_links.c, audit_records.c
        conditions = [links.position > request.after_position]
        if position is not None:
            conditions.append(links.position < position[0] if request.newest_first else links.position > position[0])
        if projects is not None:
            conditions.append(links.project.in_(projects))
        if request.principal:
            conditions.append(records.principal == request.principal)
        if request.method:
            conditions.append(records.method == request.method)
        if request.refused_only:
            conditions.append(records.code != "OK")
        if start is not None:
            conditions.append(records.created_at >= start)
        if end is not None:
            conditions.append(records.created_at < end)
        statement = (
            select(audit_records, links.position, links.hash)
            .join(audit_links, links.record_id == records.record_id)
            .where(and_(*conditions))
            .order_by(links.position.desc() if request.newest_first else links.position)
            .limit(size + 1)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        page = rows[:size]
        token = self._cursors.encode(query, [page[-1]["position"]]) if len(rows) > size else ""
        return pb.ListAuditRecordsResponse(records=map(_to_proto, page), next_page_token=token)

    async def GetAuditHead(self, request: pb.GetAuditHeadRequest, context: _Context) -> pb.GetAuditHeadResponse:  # noqa: N802 - gRPC's name
        """The chain's newest link."""
        del request, context
        async with self._engine.connect() as connection:
            position, newest = await chain.head(connection)
        return pb.GetAuditHeadResponse(position=position, hash=newest.hex())


def _overseen(principal: Principal) -> list[str] | None:
    """The projects whose records somebody may see; None: all, and those of no project."""
    if principal.sees_every_project:
        return None
    return sorted(project for project, role in principal.project_roles.items() if role is Role.MAINTAINER)


def _moment(request: pb.ListAuditRecordsRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # pyright: ignore[reportArgumentType] - one of the two names
        return None
    value: Timestamp = getattr(request, field)
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid_field(field, "is no time; expected a moment between the years 1 and 9999") from None


def _to_proto(row: Mapping[Any, Any]) -> pb.AuditRecord:
    return pb.AuditRecord(
        position=row["position"],
        principal=row["principal"],
        method=row["method"],
        project=row["project"],
        object=row["object"],
        code=row["code"],
        reason=row["reason"],
        request_id=row["request_id"],
        trace_id=row["trace_id"],
        peer=row["peer"],
        count=row["count"],
        time=timestamp(row["created_at"]),
        leaf=row["leaf"].hex(),
        hash=row["hash"].hex(),
        record_id=row["record_id"],
    )
