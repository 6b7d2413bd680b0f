"""QuotaService's calls about what was spent: the ledger's entries, and the chargeback report."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.budgets import entries, wire
from control_plane.budgets.chargeback import chargeback
from control_plane.call import current_call
from control_plane.errors import invalid_field
from control_plane.jobs.spec import ProjectName
from control_plane.quotas.wire import node_of
from control_plane.rpc import pages
from control_plane.rpc.convert import validated_value
from control_plane.rpc.pages import Cursors
from governance.chargeback import to_csv, to_json
from headway.quotas.v1 import ledger_pb2 as pb
from headway.quotas.v1 import quota_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_ROWS_MAX = 5_000
"""Most rows of a report; with the longest names, and written out once more, they fit a message."""
_ENTRY_ID_MAX = 2**63 - 1


class LedgerCalls(quota_service_pb2_grpc.QuotaServiceServicer):
    """Entries and reports."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, currency: str) -> None:
        self._engine = engine
        self._cursors = cursors
        self._currency = currency

    async def ListLedgerEntries(  # noqa: N802 - gRPC's name
        self, request: pb.ListLedgerEntriesRequest, context: _Context
    ) -> pb.ListLedgerEntriesResponse:
        """What moved in the ledgers of one node, newest first."""
        del context
        node = node_of(request)
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListLedgerEntries", str(node.kind), node.name]
        after = self._cursors.decode(request.page_token, query, (int,), "page_token") or [_ENTRY_ID_MAX]
        async with self._engine.connect() as connection:
            rows = await entries.list_entries(connection, wire.scope_of(node), after[0], size + 1)
        token = self._cursors.encode(query, [rows[size - 1]["entry_id"]]) if len(rows) > size else ""
        return pb.ListLedgerEntriesResponse(entries=map(wire.entry_message, rows[:size]), next_page_token=token)

    async def GetReport(self, request: pb.GetReportRequest, context: _Context) -> pb.GetReportResponse:  # noqa: N802 - gRPC's name
        """What leases granted in a stretch of time were charged, as far as the caller may see."""
        del context
        if request.format not in pb.ReportFormat.values():
            raise invalid_field("format", f"is {request.format}; expected a ReportFormat")
        visible = current_call().principal.visible_projects()
        if request.project:
            visible = frozenset({validated_value(ProjectName, request.project, "project")})
        start = wire.required_moment(request, "start_time", "start_time")
        end = wire.required_moment(request, "end_time", "end_time")
        by = wire.dimensions_of(request)
        async with self._engine.connect() as connection:
            # Rows, estimates and ledger are of one moment.
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with connection.begin():
                report = await chargeback(
                    connection, start=start, end=end, by=by, projects=visible, currency=self._currency, rows_max=_ROWS_MAX
                )
        written = {pb.REPORT_FORMAT_CSV: to_csv, pb.REPORT_FORMAT_JSON: to_json}.get(request.format)
        return pb.GetReportResponse(
            rows=map(wire.report_row, report.rows),
            total=wire.report_row(report.sums, with_keys=False),
            currency=report.currency,
            text="" if written is None else written(report),
        )
