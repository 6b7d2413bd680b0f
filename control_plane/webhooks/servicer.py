"""WebhookService: endpoints that hear of a project's jobs that end, and of budgets."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, TypeAlias

import grpc
from sqlalchemy import RowMapping, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.call import current_call
from control_plane.db.mutations import once
from control_plane.db.tables import webhook_deliveries, webhooks
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.jobs.spec import ProjectName, ResourceName, canonical_sha256
from control_plane.jobs.states import FINAL_STATES
from control_plane.projects.repository import lock_open
from control_plane.rpc.convert import identifier, timestamp, validated_value
from control_plane.rpc.pages import Cursors, page_size
from control_plane.settings import WebhookSettings
from control_plane.webhooks.endpoints import check_host, endpoint
from control_plane.webhooks.signing import Signer
from headway.jobs.v1 import job_pb2
from headway.webhooks.v1 import webhook_service_pb2 as pb
from headway.webhooks.v1 import webhook_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_PER_PROJECT_MAX = 100
_STATES = {job_pb2.JobState.Value(f"JOB_STATE_{state}"): str(state) for state in sorted(FINAL_STATES)}
_NUMBERS = {name: number for number, name in _STATES.items()}


class WebhookServicer(webhook_service_pb2_grpc.WebhookServiceServicer):
    """Endpoints and what was sent to them."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, settings: WebhookSettings, signer: Signer) -> None:
        self._engine = engine
        self._cursors = cursors
        self._settings = settings
        self._signer = signer

    async def CreateWebhook(self, request: pb.CreateWebhookRequest, context: _Context) -> pb.CreateWebhookResponse:  # noqa: N802 - gRPC's name
        """Adds an endpoint, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        asked = request.webhook
        project = validated_value(ProjectName, asked.project, "webhook.project")
        job_set = asked.job_set and validated_value(ResourceName, asked.job_set, "webhook.job_set")
        states = _states(asked)
        found = endpoint(asked.url, self._settings, "webhook.url")
        # Before the transaction, which waits for nobody.
        await check_host(found, self._settings, "webhook.url")
        values: dict[str, Any] = {"project": project, "url": found.url, "states": states, "job_set": job_set}
        if asked.budget_alerts:
            values["budget_alerts"] = True
        call = current_call()

        async def create(connection: AsyncConnection) -> pb.CreateWebhookResponse:
            await lock_open(connection, project)
            await _refuse_too_many(connection, project)
            creator = call.principal.subject
            made = insert(webhooks).values(webhook_id=str(uuid.uuid4()), creator=creator, **values).returning(webhooks)
            row = (await connection.execute(made)).mappings().one()
            call.object = row["webhook_id"]
            return pb.CreateWebhookResponse(webhook=_webhook(row))

        sha256 = canonical_sha256({"method": "CreateWebhook", **values})
        response = await once(self._engine, project, request_id, sha256, pb.CreateWebhookResponse, create)
        # Made anew for whoever repeats the request, which only its maker can.
        response.secret = self._signer.secret(response.webhook.webhook_id)
        return response

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: _Context) -> pb.ListWebhooksResponse:  # noqa: N802 - gRPC's name
        """A project's endpoints, newest first."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        size = page_size(request.page_size, default=50, maximum=1_000)
        query = select(webhooks).where(webhooks.c.project == project, webhooks.c.deleted_at.is_(None))
        key = ["ListWebhooks", project]
        after = _position(self._cursors, request.page_token, key)
        if after is not None:
            query = query.where(tuple_(webhooks.c.created_at, webhooks.c.webhook_id) < after)
        query = query.order_by(webhooks.c.created_at.desc(), webhooks.c.webhook_id.desc()).limit(size + 1)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        token = self._next_page(key, rows[size - 1], "webhook_id") if len(rows) > size else ""
        return pb.ListWebhooksResponse(webhooks=map(_webhook, rows[:size]), next_page_token=token)

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: _Context) -> pb.DeleteWebhookResponse:  # noqa: N802 - gRPC's name
        """Removes an endpoint, once per request id; what it has not got yet is dropped."""
        del context
        request_id = identifier(request.request_id, "request_id")
        webhook_id = identifier(request.webhook_id, "webhook_id")
        call = current_call()
        call.object = webhook_id

        async def remove(connection: AsyncConnection) -> pb.DeleteWebhookResponse:
            gone = (
                update(webhooks)
                .where(webhooks.c.webhook_id == webhook_id, webhooks.c.deleted_at.is_(None))
                .values(deleted_at=func.now())
            )
            if (await connection.execute(gone)).rowcount == 0:
                raise _not_found(webhook_id)
            dropped = delete(webhook_deliveries).where(
                webhook_deliveries.c.webhook_id == webhook_id, webhook_deliveries.c.state == "PENDING"
            )
            await connection.execute(dropped)
            return pb.DeleteWebhookResponse()

        sha256 = canonical_sha256({"method": "DeleteWebhook", "webhook_id": webhook_id})
        return await once(self._engine, call.project, request_id, sha256, pb.DeleteWebhookResponse, remove)

    async def ListWebhookDeliveries(  # noqa: N802 - gRPC's name
        self, request: pb.ListWebhookDeliveriesRequest, context: _Context
    ) -> pb.ListWebhookDeliveriesResponse:
        """What was sent to an endpoint, newest first; of one that was removed, too."""
        del context
        webhook_id = identifier(request.webhook_id, "webhook_id")
        size = page_size(request.page_size, default=50, maximum=1_000)
        table = webhook_deliveries
        query = select(table).where(table.c.webhook_id == webhook_id)
        key = ["ListWebhookDeliveries", webhook_id]
        after = _position(self._cursors, request.page_token, key)
        if after is not None:
            query = query.where(tuple_(table.c.created_at, table.c.delivery_id) < after)
        query = query.order_by(table.c.created_at.desc(), table.c.delivery_id.desc()).limit(size + 1)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        token = self._next_page(key, rows[size - 1], "delivery_id") if len(rows) > size else ""
        return pb.ListWebhookDeliveriesResponse(deliveries=map(_delivery, rows[:size]), next_page_token=token)

    def _next_page(self, query: list[str], last: RowMapping, key: str) -> str:
        return self._cursors.encode(query, [last["created_at"].isoformat(), last[key]])


def _position(cursors: Cursors, token: str, query: list[str]) -> tuple[datetime, str] | None:
    found = cursors.decode(token, query, (str, str), "page_token")
    return None if found is None else (datetime.fromisoformat(found[0]), found[1])


def _states(asked: pb.Webhook) -> list[str]:
    for index, state in enumerate(asked.states):
        if state not in _STATES:
            raise invalid_field(
                f"webhook.states[{index}]", f"is {state}; expected one of {', '.join(_NUMBERS)}: only ends are told"
            )
    return sorted({_STATES[state] for state in asked.states})


async def _refuse_too_many(connection: AsyncConnection, project: str) -> None:
    living = select(func.count()).where(webhooks.c.project == project, webhooks.c.deleted_at.is_(None))
    count = (await connection.execute(living)).scalar_one()
    if count >= _PER_PROJECT_MAX:
        raise RefusedError(
            Reason.EXCEEDS_MAXIMUM,
            f"project {project} has {count} webhooks already; expected at most {_PER_PROJECT_MAX}: remove one",
            {"requested": str(count + 1), "maximum": str(_PER_PROJECT_MAX)},
        )


def _not_found(webhook_id: str) -> RefusedError:
    return RefusedError(Reason.RESOURCE_NOT_FOUND, f"there is no webhook {webhook_id}", {"name": webhook_id})


def _webhook(row: RowMapping) -> pb.Webhook:
    return pb.Webhook(
        webhook_id=row["webhook_id"],
        project=row["project"],
        url=row["url"],
        states=[_NUMBERS[state] for state in row["states"]],
        job_set=row["job_set"],
        budget_alerts=row["budget_alerts"],
        creator=row["creator"],
        create_time=timestamp(row["created_at"]),
    )


def _delivery(row: RowMapping) -> pb.WebhookDelivery:
    pending = row["state"] == "PENDING"
    return pb.WebhookDelivery(
        delivery_id=row["delivery_id"],
        webhook_id=row["webhook_id"],
        job_id=row["job_id"],
        state=pb.DeliveryState.Value(f"DELIVERY_STATE_{row['state']}"),
        tries=row["tries"],
        last_result=row["last_result"],
        create_time=timestamp(row["created_at"]),
        next_try_time=timestamp(row["next_try_at"]) if pending else None,
    )
