"""Requests about what there is to share and what it costs, as both clients send them: quotas, prices, reports, simulations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from headway.attempts.v1 import attempt_service_pb2 as attempts
from headway.quotas.v1 import ledger_pb2, price_pb2
from headway.quotas.v1 import quota_service_pb2 as quotas
from headway.scheduler.v1 import scheduler_service_pb2 as scheduler
from headway_client.arguments import build
from headway_client.requests import new_id, timestamp


def set_quota(
    project: str,
    max_accelerators: Mapping[str, int] | None,
    *,
    team: str,
    organisation: bool,
    parent: str,
    weight: int | None,
    cells: Iterable[quotas.QuotaCell],
    request_id: str | None,
) -> quotas.SetQuotaRequest:
    """For QuotaService.SetQuota."""
    quota = build(
        quotas.Quota,
        project=project,
        max_accelerators=max_accelerators,
        team=team,
        organisation=organisation,
        parent=parent,
        weight=weight,
        cells=cells,
    )
    return build(quotas.SetQuotaRequest, request_id=new_id(request_id), quota=quota)


def set_price(
    accelerator_kind: str, micros_per_hour: int, spot: bool, start_time: datetime | None, request_id: str | None
) -> price_pb2.SetPriceRequest:
    """For QuotaService.SetPrice."""
    price = build(
        price_pb2.Price,
        accelerator_kind=accelerator_kind,
        micros_per_hour=micros_per_hour,
        spot=spot,
        start_time=timestamp("start_time", start_time),
    )
    return build(price_pb2.SetPriceRequest, request_id=new_id(request_id), price=price)


def delete_price(
    accelerator_kind: str, start_time: datetime, spot: bool, request_id: str | None
) -> price_pb2.DeletePriceRequest:
    """For QuotaService.DeletePrice."""
    return build(
        price_pb2.DeletePriceRequest,
        request_id=new_id(request_id),
        accelerator_kind=accelerator_kind,
        spot=spot,
        start_time=timestamp("start_time", start_time),
    )


def get_report(
    start_time: datetime,
    end_time: datetime,
    project: str,
    by: Iterable[ledger_pb2.ReportDimension.ValueType],
    written: ledger_pb2.ReportFormat.ValueType,
) -> ledger_pb2.GetReportRequest:
    """For QuotaService.GetReport."""
    return build(
        ledger_pb2.GetReportRequest,
        project=project,
        start_time=timestamp("start_time", start_time),
        end_time=timestamp("end_time", end_time),
        by=by,
        format=written,
    )


def simulate_submission(
    project: str, shape: attempts.Shape, priority: int | None, max_run_seconds: int, count: int
) -> scheduler.SimulateRequest:
    """For SchedulerService.Simulate."""
    submission = build(
        scheduler.Submission,
        project=project,
        shape=shape,
        priority=priority,
        max_run_seconds=max_run_seconds,
        count=count,
    )
    return build(scheduler.SimulateRequest, submission=submission)
