"""CapacityService: workers say what they offer; the scheduler places leases on it."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.audit import writer
from control_plane.call import current_call
from control_plane.db.engine import in_transaction
from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_SCHEDULER, leases, workers
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.identity.principal import CredentialKind
from control_plane.jobs.spec import AcceleratorKind, ProjectName
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, timestamp, validated_value
from control_plane.rpc.pages import Cursors
from headway.capacity.v1 import capacity_service_pb2 as pb
from headway.capacity.v1 import capacity_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


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
        worker = request.worker
        # A worker's name obeys the rules of a project's.
        name = validated_value(ProjectName, worker.name, "worker.name")
        _require_own_name(name)
        incarnation = identifier(worker.incarnation, "worker.incarnation")
        kind = validated_value(AcceleratorKind, worker.accelerator_kind, "worker.accelerator_kind")
        if kind == "any":
            raise invalid_field("worker.accelerator_kind", "is 'any', which only a request may say; expected the kind offered")
        if not 0 <= worker.accelerators <= 1_024:
            raise invalid_field("worker.accelerators", f"is {worker.accelerators}; expected 0 to 1,024")
        values = {"incarnation": incarnation, "accelerator_kind": kind, "accelerators": worker.accelerators}

        call = current_call()
        call.object = name

        async def register(connection: AsyncConnection) -> None:
            before = await connection.execute(
                select(
                    workers.c.incarnation, workers.c.accelerators, workers.c.accelerator_kind, _alive(self._worker_lost_seconds)
                )
                .where(workers.c.name == name)
                .with_for_update()
            )
            row = before.one_or_none()
            await connection.execute(
                insert(workers)
                .values(name=name, **values)
                .on_conflict_do_update(index_elements=["name"], set_={**values, "heartbeat_at": func.now()})
            )
            # A mere heartbeat wakes nobody, and has no record of its own.
            if row is None or tuple(row) != (incarnation, worker.accelerators, kind, True):
                await writer.append(connection, call)
                await notify(connection, CHANNEL_SCHEDULER)

        await in_transaction(self._engine, register)
        return pb.RegisterWorkerResponse(heartbeat_seconds=self._worker_lost_seconds / 3)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: _Context) -> pb.ListWorkersResponse:  # noqa: N802 - gRPC's name
        """The workers known, by name."""
        del context
        size = pages.page_size(request.page_size, default=100, maximum=1_000)
        after = self._cursors.decode(request.page_token, "ListWorkers", (str,), "page_token")
        leased = (
            select(func.coalesce(func.sum(leases.c.accelerators), 0))
            .where(leases.c.worker == workers.c.name, leases.c.state == "GRANTED")
            .scalar_subquery()
        )
        query = (
            select(workers, leased.label("leased"), _alive(self._worker_lost_seconds).label("alive"))
            .where(workers.c.name > ("" if after is None else after[0]))
            .order_by(workers.c.name)
            .limit(size + 1)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        page = rows[:size]
        return pb.ListWorkersResponse(
            workers=[
                pb.Worker(
                    name=row["name"],
                    incarnation=row["incarnation"],
                    accelerator_kind=row["accelerator_kind"],
                    accelerators=row["accelerators"],
                    accelerators_leased=int(row["leased"]),
                    alive=row["alive"],
                    heartbeat_time=timestamp(row["heartbeat_at"]),
                )
                for row in page
            ],
            next_page_token=self._cursors.encode("ListWorkers", [page[-1]["name"]]) if len(rows) > size else "",
        )


def _require_own_name(name: str) -> None:
    """A certificate names one worker, and that is the one it registers. A token is for all workers that were given it."""
    caller = current_call().principal
    if caller.credential is CredentialKind.CERTIFICATE and caller.subject != f"worker:{name}":
        raise RefusedError(
            Reason.PERMISSION_DENIED,
            f"the certificate is that of {caller.subject}; it cannot register worker {name}",
            {"method": "headway.capacity.v1.CapacityService/RegisterWorker", "role_required": "WORKER"},
        )


def _alive(worker_lost_seconds: float) -> Any:
    return workers.c.heartbeat_at > func.now() - text("make_interval(secs => :lost)").bindparams(lost=worker_lost_seconds)
