"""CapacityService: workers say what they offer; the scheduler places leases on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.audit import writer
from control_plane.call import current_call
from control_plane.capacity import repository
from control_plane.capacity.offers import offer_of, worker_message
from control_plane.db.engine import in_transaction
from control_plane.db.mutations import once
from control_plane.db.tables import workers
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.identity.principal import CredentialKind
from control_plane.jobs.spec import AcceleratorKind, ProjectName, canonical_sha256
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, validated_value
from control_plane.rpc.pages import Cursors
from headway.capacity.v1 import capacity_service_pb2 as pb
from headway.capacity.v1 import capacity_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_POOL_NODES_MAX = 5_000


class CapacityServicer(capacity_service_pb2_grpc.CapacityServiceServicer):
    """What there is to schedule on."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, worker_lost_seconds: float) -> None:
        self._engine = engine
        self._cursors = cursors
        self._worker_lost_seconds = worker_lost_seconds

    async def RegisterWorker(  # noqa: N802 - gRPC's name
        self, request: pb.RegisterWorkerRequest, context: _Context
    ) -> pb.RegisterWorkerResponse:
        """Registration and heartbeat in one: the row is what the worker says, as of now."""
        del context
        offer = offer_of(request.worker, "worker")
        _require_own_names([offer], "RegisterWorker")
        current_call().object = offer["name"]
        await self._register([offer])
        return pb.RegisterWorkerResponse(heartbeat_seconds=self._worker_lost_seconds / 3)

    async def RegisterNodePool(  # noqa: N802 - gRPC's name
        self, request: pb.RegisterNodePoolRequest, context: _Context
    ) -> pb.RegisterNodePoolResponse:
        """As RegisterWorker, for many nodes of a pool."""
        del context
        pool = validated_value(AcceleratorKind, request.pool, "pool")
        offers = _offers_of_pool(request.nodes, pool)
        _require_own_names(offers, "RegisterNodePool")
        current_call().object = pool
        cordoned = await self._register(offers)
        return pb.RegisterNodePoolResponse(heartbeat_seconds=self._worker_lost_seconds / 3, cordoned=cordoned)

    async def _register(self, offers: Sequence[Mapping[str, Any]]) -> list[str]:
        """Stores offers; returns those of the workers that take nothing new."""
        call = current_call()

        async def register(connection: AsyncConnection) -> list[str]:
            # A mere heartbeat wakes nobody, and has no record of its own.
            if await repository.register(connection, offers, self._worker_lost_seconds):
                await writer.append(connection, call)
            return await repository.cordoned_among(connection, [offer["name"] for offer in offers])

        return await in_transaction(self._engine, register)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: _Context) -> pb.ListWorkersResponse:  # noqa: N802 - gRPC's name
        """The workers known, by name."""
        del context
        size = pages.page_size(request.page_size, default=100, maximum=1_000)
        after = self._cursors.decode(request.page_token, "ListWorkers", (str,), "page_token") or [""]
        query = repository.workers_query(self._worker_lost_seconds).where(workers.c.name > after[0])
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query.order_by(workers.c.name).limit(size + 1))).mappings().all()
        page = rows[:size]
        return pb.ListWorkersResponse(
            workers=map(worker_message, page),
            next_page_token=self._cursors.encode("ListWorkers", [page[-1]["name"]]) if len(rows) > size else "",
        )

    async def DeleteWorker(self, request: pb.DeleteWorkerRequest, context: _Context) -> pb.DeleteWorkerResponse:  # noqa: N802 - gRPC's name
        """Forgets a worker that holds nothing, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        name = validated_value(ProjectName, request.name, "name")
        current_call().object = name

        async def delete(connection: AsyncConnection) -> pb.DeleteWorkerResponse:
            await repository.delete_worker(connection, name)
            return pb.DeleteWorkerResponse()

        sha256 = canonical_sha256({"method": "DeleteWorker", "name": name})
        return await once(self._engine, "", request_id, sha256, pb.DeleteWorkerResponse, delete)


def _offers_of_pool(nodes: Sequence[pb.Worker], pool: str) -> list[dict[str, Any]]:
    if not 1 <= len(nodes) <= _POOL_NODES_MAX:
        raise invalid_field("nodes", f"holds {len(nodes)}; expected 1 to {_POOL_NODES_MAX:,}")
    offers: dict[str, dict[str, Any]] = {}
    first: dict[str, Any] = {}
    for index, node in enumerate(nodes):
        path = f"nodes[{index}]"
        offer = offer_of(node, path)
        if offer["pool"] not in ("", pool):
            raise invalid_field(f"{path}.pool", f"is {offer['pool']!r}; expected {pool!r}, or to be empty")
        offer["pool"] = pool
        first = first or offer
        for name in ("accelerator_kind", "spot"):
            if offer[name] != first[name]:
                raise invalid_field(f"{path}.{name}", f"is {offer[name]!r}; expected {first[name]!r}, as on the first node")
        if offers.setdefault(offer["name"], offer) is not offer:
            raise invalid_field(f"{path}.name", f"is {offer['name']!r}, as on a node before; expected each name once")
    return list(offers.values())


def _require_own_names(offers: Sequence[Mapping[str, Any]], method: str) -> None:
    """A certificate names one worker, and that is the one it registers: else it could pass for another, and have that one's
    leases ended. A token is for all workers that were given it.

    Raises:
        RefusedError: the caller's certificate is that of another.
    """
    caller = current_call().principal
    others = [offer["name"] for offer in offers if caller.subject != f"worker:{offer['name']}"]
    if caller.credential is CredentialKind.CERTIFICATE and others:
        raise RefusedError(
            Reason.PERMISSION_DENIED,
            f"the certificate is that of {caller.subject}; it cannot register worker {others[0]}; call with that worker's own,"
            " or for many with a token of role WORKER",
            {"method": f"headway.capacity.v1.CapacityService/{method}", "role_required": "WORKER"},
        )
