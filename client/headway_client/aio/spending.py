"""Budgets, prices, ledgers and the chargeback report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from headway.quotas.v1 import budget_pb2, ledger_pb2, price_pb2
from headway.quotas.v1.quota_service_pb2_grpc import QuotaServiceStub
from headway_client import requests, scheduling_requests
from headway_client.aio.calls import Calls
from headway_client.arguments import build

if TYPE_CHECKING:
    from headway.quotas.v1.quota_service_pb2_grpc import QuotaServiceAsyncStub


class SpendingCalls(Calls):
    """What nodes of the quota tree may spend, and what was spent. Money is in millionths of the currency."""

    @cached_property
    def _spending(self) -> QuotaServiceAsyncStub:
        return QuotaServiceStub(self._channel)

    async def set_budget(
        self, budget: budget_pb2.Budget, *, etag: str = "", request_id: str | None = None
    ) -> budget_pb2.Budget:
        """Sets all of a budget, from now on."""
        request = build(budget_pb2.SetBudgetRequest, request_id=requests.new_id(request_id), budget=budget, etag=etag)
        return (await self._unary(self._spending.SetBudget, request)).budget

    async def get_budget(self, project: str = "", *, team: str = "", organisation: bool = False) -> budget_pb2.Budget:
        """A budget, and where it stands."""
        request = build(budget_pb2.GetBudgetRequest, project=project, team=team, organisation=organisation)
        return (await self._unary(self._spending.GetBudget, request)).budget

    async def list_budgets(self) -> AsyncIterator[budget_pb2.Budget]:
        """The budgets set, and where they stand."""
        async for page in self._pages(self._spending.ListBudgets, budget_pb2.ListBudgetsRequest()):
            for item in page.budgets:
                yield item

    async def delete_budget(
        self, project: str = "", *, team: str = "", organisation: bool = False, etag: str = "", request_id: str | None = None
    ) -> None:
        """Takes a budget: its node is not limited any more."""
        request = build(
            budget_pb2.DeleteBudgetRequest,
            request_id=requests.new_id(request_id),
            project=project,
            team=team,
            organisation=organisation,
            etag=etag,
        )
        await self._unary(self._spending.DeleteBudget, request)

    async def set_price(
        self,
        accelerator_kind: str,
        micros_per_hour: int,
        *,
        spot: bool = False,
        start_time: datetime | None = None,
        request_id: str | None = None,
    ) -> price_pb2.Price:
        """Adds a price of an accelerator-hour, from now on or from a time on."""
        request = scheduling_requests.set_price(accelerator_kind, micros_per_hour, spot, start_time, request_id)
        return (await self._unary(self._spending.SetPrice, request)).price

    async def list_prices(self) -> AsyncIterator[price_pb2.Price]:
        """All prices, past and future ones too."""
        async for page in self._pages(self._spending.ListPrices, price_pb2.ListPricesRequest()):
            for item in page.prices:
                yield item

    async def delete_price(
        self, accelerator_kind: str, start_time: datetime, *, spot: bool = False, request_id: str | None = None
    ) -> None:
        """Takes back a price that has not come into force."""
        await self._unary(
            self._spending.DeletePrice, scheduling_requests.delete_price(accelerator_kind, start_time, spot, request_id)
        )

    async def list_ledger_entries(
        self, project: str = "", *, team: str = "", organisation: bool = False
    ) -> AsyncIterator[ledger_pb2.LedgerEntry]:
        """What moved in the ledgers of a node, newest first."""
        request = build(ledger_pb2.ListLedgerEntriesRequest, project=project, team=team, organisation=organisation)
        async for page in self._pages(self._spending.ListLedgerEntries, request):
            for item in page.entries:
                yield item

    async def get_report(
        self,
        start_time: datetime,
        end_time: datetime,
        *,
        project: str = "",
        by: Iterable[ledger_pb2.ReportDimension.ValueType] = (),
        format: ledger_pb2.ReportFormat.ValueType = ledger_pb2.REPORT_FORMAT_UNSPECIFIED,  # noqa: A002 - the contract's name
    ) -> ledger_pb2.GetReportResponse:
        """What leases granted in a stretch of time were charged."""
        return await self._unary(
            self._spending.GetReport, scheduling_requests.get_report(start_time, end_time, project, by, format)
        )
