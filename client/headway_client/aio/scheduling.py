"""Quotas, capacity, and what the scheduler makes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from headway.attempts.v1 import attempt_service_pb2 as attempts
from headway.capacity.v1 import capacity_service_pb2 as capacity
from headway.capacity.v1.capacity_service_pb2_grpc import CapacityServiceStub
from headway.quotas.v1 import quota_service_pb2 as quotas
from headway.quotas.v1.quota_service_pb2_grpc import QuotaServiceStub
from headway.scheduler.v1 import scheduler_service_pb2 as scheduler
from headway.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from headway_client import requests, scheduling_requests
from headway_client.aio.calls import Calls
from headway_client.arguments import build

if TYPE_CHECKING:
    from headway.capacity.v1.capacity_service_pb2_grpc import CapacityServiceAsyncStub
    from headway.quotas.v1.quota_service_pb2_grpc import QuotaServiceAsyncStub
    from headway.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub


class SchedulingCalls(Calls):
    """The services that say how much there is, who has how much of it, and why what waits does."""

    @cached_property
    def _quotas(self) -> QuotaServiceAsyncStub:
        return QuotaServiceStub(self._channel)

    @cached_property
    def _capacity(self) -> CapacityServiceAsyncStub:
        return CapacityServiceStub(self._channel)

    @cached_property
    def _scheduler(self) -> SchedulerServiceAsyncStub:
        return SchedulerServiceStub(self._channel)

    # Quotas. A node of the tree is a project, a team, or the organisation: one of the three is named.

    async def get_quota(self, project: str = "", *, team: str = "", organisation: bool = False) -> quotas.Quota:
        """The quota of a node of the tree."""
        request = build(quotas.GetQuotaRequest, project=project, team=team, organisation=organisation)
        return (await self._unary(self._quotas.GetQuota, request)).quota

    async def set_quota(
        self,
        project: str = "",
        max_accelerators: Mapping[str, int] | None = None,
        *,
        team: str = "",
        organisation: bool = False,
        parent: str = "",
        weight: int | None = None,
        cells: Iterable[quotas.QuotaCell] = (),
        request_id: str | None = None,
    ) -> quotas.Quota:
        """Sets all of the quota of a node of the tree; `max_accelerators` is, by pool, the most that it may hold at once."""
        request = scheduling_requests.set_quota(
            project,
            max_accelerators,
            team=team,
            organisation=organisation,
            parent=parent,
            weight=weight,
            cells=cells,
            request_id=request_id,
        )
        return (await self._unary(self._quotas.SetQuota, request)).quota

    async def list_quotas(self, *, tree: bool = False) -> AsyncIterator[quotas.Quota]:
        """The quotas set, by project; with `tree` those of the organisation and of teams too."""
        async for page in self._pages(self._quotas.ListQuotas, build(quotas.ListQuotasRequest, tree=tree)):
            for item in page.quotas:
                yield item

    async def delete_quota(
        self, project: str = "", *, team: str = "", organisation: bool = False, request_id: str | None = None
    ) -> None:
        """Takes a node out of the tree."""
        request = build(
            quotas.DeleteQuotaRequest,
            request_id=requests.new_id(request_id),
            project=project,
            team=team,
            organisation=organisation,
        )
        await self._unary(self._quotas.DeleteQuota, request)

    async def get_usage(self, project: str) -> list[quotas.Usage]:
        """What a project holds and used, by kind of accelerator."""
        return list((await self._unary(self._quotas.GetUsage, build(quotas.GetUsageRequest, project=project))).usage)

    # Nodes

    async def list_workers(self) -> AsyncIterator[capacity.Worker]:
        """The workers known, by name."""
        async for page in self._pages(self._capacity.ListWorkers, capacity.ListWorkersRequest()):
            for item in page.workers:
                yield item

    async def delete_worker(self, name: str, *, request_id: str | None = None) -> None:
        """Forgets a worker that holds nothing."""
        request = build(capacity.DeleteWorkerRequest, request_id=requests.new_id(request_id), name=name)
        await self._unary(self._capacity.DeleteWorker, request)

    async def cordon_node(self, node: str, *, request_id: str | None = None) -> capacity.Worker:
        """Takes a node out of service for new work."""
        request = build(scheduler.CordonNodeRequest, request_id=requests.new_id(request_id), node=node)
        return (await self._unary(self._scheduler.CordonNode, request)).node

    async def uncordon_node(self, node: str, *, request_id: str | None = None) -> capacity.Worker:
        """Puts a node back into service."""
        request = build(scheduler.UncordonNodeRequest, request_id=requests.new_id(request_id), node=node)
        return (await self._unary(self._scheduler.UncordonNode, request)).node

    async def drain_node(self, node: str, *, reason: str = "", request_id: str | None = None) -> scheduler.DrainNodeResponse:
        """Takes a node out of service and asks what runs on it to checkpoint and leave."""
        request = build(scheduler.DrainNodeRequest, request_id=requests.new_id(request_id), node=node, reason=reason)
        return await self._unary(self._scheduler.DrainNode, request)

    # Why, and what if

    async def explain_job(self, job_id: str, *, history_size: int = 0, eta: bool = False) -> scheduler.ExplainJobResponse:
        """Why a job waits; with `eta` also when it may start, which can take seconds."""
        request = build(scheduler.ExplainJobRequest, job_id=job_id, history_size=history_size, eta=eta)
        return await self._unary(self._scheduler.ExplainJob, request)

    async def explain_queue(self, project: str) -> scheduler.ExplainQueueResponse:
        """What of a project waits and why, what it holds and what it has."""
        return await self._unary(self._scheduler.ExplainQueue, build(scheduler.ExplainQueueRequest, project=project))

    async def get_snapshot(self, *, page_size: int = 0) -> AsyncIterator[scheduler.GetSnapshotResponse]:
        """What rounds decide on, page by page; pools and the quota tree are on the first."""
        async for item in self._pages(self._scheduler.GetSnapshot, build(scheduler.GetSnapshotRequest, page_size=page_size)):
            yield item

    async def simulate_submission(
        self,
        project: str,
        shape: attempts.Shape,
        *,
        priority: int | None = None,
        max_run_seconds: int = 0,
        count: int = 0,
    ) -> scheduler.SimulateResponse:
        """What would become of jobs that are submitted now. Nothing is submitted."""
        request = scheduling_requests.simulate_submission(project, shape, priority, max_run_seconds, count)
        return await self._unary(self._scheduler.Simulate, request)

    async def simulate_quota(self, quota: quotas.Quota) -> scheduler.SimulateResponse:
        """What a quota would change. Nothing is set."""
        return await self._unary(self._scheduler.Simulate, build(scheduler.SimulateRequest, quota=quota))

    async def simulate_lost_node(self, node: str) -> scheduler.SimulateResponse:
        """What the loss of a node would change. Nothing is lost."""
        return await self._unary(self._scheduler.Simulate, build(scheduler.SimulateRequest, lost_node=node))
