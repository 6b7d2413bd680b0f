"""SchedulerService: explanations, the state that rounds decide on, and nodes taken out of service.

It reads the database and never asks the scheduler, so it answers while that restarts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.call import current_call
from control_plane.capacity import repository
from control_plane.capacity.offers import worker_message
from control_plane.db.mutations import once
from control_plane.errors import invalid_field
from control_plane.jobs.spec import ProjectName, canonical_sha256
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, validated_value
from control_plane.rpc.pages import Cursors
from control_plane.rpc.text import require_text
from control_plane.scheduling import explain, lines, service, simulate, snapshot
from control_plane.scheduling.cluster import read_cluster
from control_plane.scheduling.foresight import ETA_SECONDS, Foresight, Present
from governance.policies import TypePolicies
from headway.capacity.v1 import capacity_service_pb2
from headway.scheduler.v1 import scheduler_service_pb2 as pb
from headway.scheduler.v1 import scheduler_service_pb2_grpc
from scheduler.simulation.eta import Estimate
from scheduler.simulation.run_times import OBSERVED_MIN

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_HISTORY_MAX = 100
_REASON_MAX = 1_000


class SchedulerServicer(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """What the scheduler sees, why what waits does, what would become of a change; and nodes taken out of service."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, foresight: Foresight, policies: TypePolicies) -> None:
        self._engine = engine
        self._cursors = cursors
        self._worker_lost_seconds = foresight.limits.node_lost_micros / 1_000_000
        self._foresight = foresight
        self._policies = policies
        self._limits = foresight.limits

    async def ExplainJob(self, request: pb.ExplainJobRequest, context: _Context) -> pb.ExplainJobResponse:  # noqa: N802 - gRPC's name
        """Why a job waits."""
        del context
        job_id = identifier(request.job_id, "job_id")
        size = request.history_size or 20
        if not 1 <= size <= _HISTORY_MAX:
            raise invalid_field("history_size", f"is {request.history_size}; expected 0 to {_HISTORY_MAX}")
        async with _one_moment(self._engine) as connection:
            response = await explain.explain_job(connection, job_id, size, _sees, self._limits, self._policies)
            found = await lines.find_waiter(connection, job_id) if request.eta else None
        if found is not None and (waiter := found[1]) is not None:
            eta = await self._foresight.judged(
                lambda present: _eta(self._foresight.eta(present, waiter.identity), present.run_times.count)
            )
            response.eta.CopyFrom(eta)
        return response

    async def ExplainQueue(self, request: pb.ExplainQueueRequest, context: _Context) -> pb.ExplainQueueResponse:  # noqa: N802 - gRPC's name
        """What of a project waits and why."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        async with _one_moment(self._engine) as connection:
            return await explain.explain_queue(connection, project, _sees, self._limits, self._foresight.half_life_micros)

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: _Context) -> pb.GetSnapshotResponse:  # noqa: N802 - gRPC's name
        """What rounds decide on, by the page."""
        del context
        size = pages.page_size(request.page_size, default=200, maximum=1_000)
        after = self._cursors.decode(request.page_token, "GetSnapshot", (str, str), "page_token")
        start = snapshot.START if after is None else (after[0], after[1])
        async with _one_moment(self._engine) as connection:
            cluster = await read_cluster(connection, self._limits, self._foresight.half_life_micros)
            response = pb.GetSnapshotResponse()
            if after is None:
                response = snapshot.first_page(cluster, await snapshot.waiting_by_project(connection))
            response.time.CopyFrom(_time(cluster.now))
            following = await snapshot.fill_page(connection, response, start, size, self._worker_lost_seconds)
        if following is not None:
            response.next_page_token = self._cursors.encode("GetSnapshot", list(following))
        return response

    async def Simulate(self, request: pb.SimulateRequest, context: _Context) -> pb.SimulateResponse:  # noqa: N802 - gRPC's name
        """What a change would bring."""
        del context
        change = simulate.change_of(request)
        # The caller is known to this task, and to no thread.
        principal = current_call().principal

        def judge(present: Present) -> pb.SimulateResponse:
            response = simulate.tried(present.snapshot, change, present.now, self._limits, principal.sees)
            response.time.CopyFrom(_time(present.now))
            if isinstance(change, simulate.Submitted) and response.started == 0:
                waiting = replace(present, snapshot=simulate.changed_by(present.snapshot, change, present.now))
                response.eta.CopyFrom(_eta(self._foresight.eta(waiting, simulate.request_id(0)), present.run_times.count))
            return response

        return await self._foresight.judged(judge)

    async def CordonNode(self, request: pb.CordonNodeRequest, context: _Context) -> pb.CordonNodeResponse:  # noqa: N802 - gRPC's name
        """Takes a node out of service for new work, once per request id."""
        del context
        node = _node_named(request.node)

        async def cordon(connection: AsyncConnection) -> pb.CordonNodeResponse:
            await service.cordon(connection, node)
            return pb.CordonNodeResponse(node=await self._node(connection, node))

        return await self._once("CordonNode", request.request_id, node, pb.CordonNodeResponse, cordon)

    async def UncordonNode(self, request: pb.UncordonNodeRequest, context: _Context) -> pb.UncordonNodeResponse:  # noqa: N802 - gRPC's name
        """Puts a node back into service, once per request id."""
        del context
        node = _node_named(request.node)

        async def uncordon(connection: AsyncConnection) -> pb.UncordonNodeResponse:
            await service.uncordon(connection, node)
            return pb.UncordonNodeResponse(node=await self._node(connection, node))

        return await self._once("UncordonNode", request.request_id, node, pb.UncordonNodeResponse, uncordon)

    async def DrainNode(self, request: pb.DrainNodeRequest, context: _Context) -> pb.DrainNodeResponse:  # noqa: N802 - gRPC's name
        """Takes a node out of service and asks what runs on it to leave, once per request id."""
        del context
        node = _node_named(request.node)
        require_text({"reason": (request.reason, _REASON_MAX)})

        async def drain(connection: AsyncConnection) -> pb.DrainNodeResponse:
            drained = await service.drain(connection, node, request.reason)
            return pb.DrainNodeResponse(
                node=await self._node(connection, node), leases_asked=drained.asked, leases_held=drained.held
            )

        return await self._once("DrainNode", request.request_id, node, pb.DrainNodeResponse, drain, reason=request.reason)

    async def _once(
        self,
        method: str,
        asked_id: str,
        node: str,
        response_type: type[Any],
        work: Callable[[AsyncConnection], Awaitable[Any]],
        **content: str,
    ) -> Any:
        request_id = identifier(asked_id, "request_id")
        current_call().object = node
        sha256 = canonical_sha256({"method": method, "node": node, **content})
        return await once(self._engine, "", request_id, sha256, response_type, work)

    async def _node(self, connection: AsyncConnection, node: str) -> capacity_service_pb2.Worker:
        return worker_message(await repository.find_worker(connection, node, self._worker_lost_seconds))


@asynccontextmanager
async def _one_moment(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """A connection on which every query sees the database as of one moment, and none can change it."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with connection.begin():
            yield connection


def _sees(project: str) -> bool:
    return current_call().principal.sees(project)


def _node_named(name: str) -> str:
    # A node's name obeys the rules of a project's.
    return validated_value(ProjectName, name, "node")


def _eta(estimate: Estimate | None, observed: int) -> pb.Eta:
    if estimate is None:
        return pb.Eta(basis=f"not foretold: it started meanwhile, or the simulation takes more than {ETA_SECONDS:.0f} s")
    lengths = (
        f"run times drawn from what {observed:,} ended leases took of what they declared"
        if observed >= OBSERVED_MIN
        else "each job as long as it declared at most"
    )
    basis = f"the work that is there, {lengths}; later submissions and lost nodes are not foreseen"
    return pb.Eta(
        p50_time=None if estimate.p50 is None else _time(estimate.p50),
        p90_time=None if estimate.p90 is None else _time(estimate.p90),
        simulations=estimate.draws,
        basis=basis,
    )


def _time(micros: int) -> Timestamp:
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
