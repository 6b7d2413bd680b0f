"""QuotaService's calls about prices."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets import prices, wire
from control_plane.call import current_call
from control_plane.db.mutations import once
from control_plane.jobs.spec import AcceleratorKind, canonical_sha256
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, validated_value
from control_plane.rpc.pages import Cursors
from headway.quotas.v1 import price_pb2 as pb
from headway.quotas.v1 import quota_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class PriceCalls(quota_service_pb2_grpc.QuotaServiceServicer):
    """Prices: set, listed, taken back before they are in force."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, currency: str) -> None:
        self._engine = engine
        self._cursors = cursors
        self._currency = currency

    async def SetPrice(self, request: pb.SetPriceRequest, context: _Context) -> pb.SetPriceResponse:  # noqa: N802 - gRPC's name
        """Adds a price, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        asked = request.price
        kind = validated_value(AcceleratorKind, asked.accelerator_kind, "price.accelerator_kind")
        valid_from = wire.moment_of(asked, "start_time", "price.start_time")
        call = current_call()
        call.object = f"price of {kind}"

        async def set_price(connection: AsyncConnection) -> pb.SetPriceResponse:
            setter = call.principal.subject
            row = await prices.set_price(connection, kind, asked.spot, asked.micros_per_hour, setter, valid_from)
            in_force = valid_from is None
            return pb.SetPriceResponse(price=wire.price_message(row, self._currency, in_force=in_force))

        values = {"kind": kind, "spot": asked.spot, "micros": asked.micros_per_hour, "from": str(valid_from)}
        sha256 = canonical_sha256({"method": "SetPrice", **values})
        return await once(self._engine, "", request_id, sha256, pb.SetPriceResponse, set_price)

    async def ListPrices(self, request: pb.ListPricesRequest, context: _Context) -> pb.ListPricesResponse:  # noqa: N802 - gRPC's name
        """All prices, past and future ones too."""
        del context
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListPrices"]
        after = self._cursors.decode(request.page_token, query, (str, bool, str), "page_token")
        position = None if after is None else (after[0], after[1], datetime.fromisoformat(after[2]))
        async with self._engine.connect() as connection:
            rows = await prices.list_prices(connection, position, size + 1)
            in_force = {(price.kind, price.spot, price.valid_from) for price in await prices.prices_in_force(connection)}
        page = rows[:size]
        token = ""
        if len(rows) > size:
            last = page[-1]
            token = self._cursors.encode(query, [last["kind"], last["spot"], last["valid_from"].isoformat()])
        found = [
            wire.price_message(row, self._currency, in_force=(row["kind"], row["spot"], row["valid_from"]) in in_force)
            for row in page
        ]
        return pb.ListPricesResponse(prices=found, next_page_token=token)

    async def DeletePrice(self, request: pb.DeletePriceRequest, context: _Context) -> pb.DeletePriceResponse:  # noqa: N802 - gRPC's name
        """Takes back a price that is not in force, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        kind = validated_value(AcceleratorKind, request.accelerator_kind, "accelerator_kind")
        valid_from = wire.required_moment(request, "start_time", "start_time")
        current_call().object = f"price of {kind}"

        async def delete(connection: AsyncConnection) -> pb.DeletePriceResponse:
            await prices.remove_price(connection, kind, request.spot, valid_from)
            return pb.DeletePriceResponse()

        values = {"kind": kind, "spot": request.spot, "from": str(valid_from)}
        sha256 = canonical_sha256({"method": "DeletePrice", **values})
        return await once(self._engine, "", request_id, sha256, pb.DeletePriceResponse, delete)
