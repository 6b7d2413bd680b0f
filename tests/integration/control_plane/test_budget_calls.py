"""Budgets, prices, ledger and report over the API: what is kept, what is refused, and who is shown what."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.estimates import record_estimates
from control_plane.budgets.prices import price_list
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.jobs.v1 import plan_pb2
from headway.quotas.v1 import budget_pb2, ledger_pb2, price_pb2
from headway.quotas.v1 import quota_service_pb2 as quotas_pb
from tests.integration.control_plane.budget_world import BudgetWorld, lease
from tests.integration.control_plane.callers import OTHER_PROJECT, PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused

MONEY = budget_pb2.SpendingLimit(micros=100_000_000)
DAY = timedelta(days=1)


def _time(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


def _request(etag: str = "", request_id: str = "", **budget: Any) -> budget_pb2.SetBudgetRequest:
    fields: dict[str, Any] = {"period": budget_pb2.BUDGET_PERIOD_MONTH, "hard_limit": MONEY} | budget
    if not {"project", "team", "organisation"} & fields.keys():
        fields["project"] = PROJECT
    return budget_pb2.SetBudgetRequest(request_id=request_id or new_id(), budget=budget_pb2.Budget(**fields), etag=etag)


async def _get(api: Api, **named: Any) -> budget_pb2.Budget:
    return (await api.quotas.GetBudget(budget_pb2.GetBudgetRequest(**named))).budget


async def _price(api: Api, kind: str, micros: int, **fields: Any) -> price_pb2.Price:
    price = price_pb2.Price(accelerator_kind=kind, micros_per_hour=micros, **fields)
    return (await api.quotas.SetPrice(price_pb2.SetPriceRequest(request_id=new_id(), price=price))).price


async def _report(api: Api, **fields: Any) -> ledger_pb2.GetReportResponse:
    now = datetime.now(UTC)
    asked: dict[str, Any] = {"start_time": _time(now - DAY), "end_time": _time(now + DAY)} | fields
    return await api.quotas.GetReport(ledger_pb2.GetReportRequest(**asked))


async def test_a_budget_of_each_kind_of_node_keeps_all_that_was_set(api: Api) -> None:
    await api.quotas.SetQuota(quotas_pb.SetQuotaRequest(request_id=new_id(), quota=quotas_pb.Quota(team="research")))
    now = datetime.now(UTC).replace(microsecond=0)
    both = budget_pb2.SpendingLimit(micros=10, accelerator_ms=20)
    soft = budget_pb2.SpendingLimit(accelerator_ms=15)
    budgets: list[dict[str, Any]] = [
        {"organisation": True, "alert_project": PROJECT, "alert_percents": [50, 100]},
        {"project": PROJECT, "hard_limit": both, "soft_limit": soft, "at_hard_limit": budget_pb2.AT_HARD_LIMIT_DEMOTE},
        {
            "team": "research",
            "period": budget_pb2.BUDGET_PERIOD_ONE_OFF,
            "start_time": _time(now - DAY),
            "end_time": _time(now + DAY),
            "at_hard_limit": budget_pb2.AT_HARD_LIMIT_WARN,
        },
    ]
    for fields in budgets:
        request = _request(**fields)
        stored = (await api.quotas.SetBudget(request)).budget
        assert not stored.HasField("standing")
        kept = await _get(api, **{name: fields[name] for name in fields if name in ("project", "team", "organisation")})
        assert kept.standing.period_start_time.seconds <= datetime.now(UTC).timestamp() < kept.standing.period_end_time.seconds
        kept.ClearField("standing")
        assert kept == stored
        asked = request.budget
        asked.at_hard_limit = asked.at_hard_limit or budget_pb2.AT_HARD_LIMIT_STOP
        assert (stored.setter, stored.etag) == (api.subject, "1")
        for output in ("setter", "etag", "update_time"):
            stored.ClearField(output)  # pyright: ignore[reportArgumentType] - one of three names
        assert stored == asked
    first = await api.quotas.ListBudgets(budget_pb2.ListBudgetsRequest(page_size=2))
    rest = await api.quotas.ListBudgets(budget_pb2.ListBudgetsRequest(page_size=2, page_token=first.next_page_token))
    assert [budget.organisation or budget.project for budget in first.budgets] == [True, PROJECT]
    assert ([budget.team for budget in rest.budgets], rest.next_page_token) == (["research"], "")


LIMIT = budget_pb2.SpendingLimit
PERIOD = "budget.period"


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        ({"hard_limit": LIMIT(micros=-1)}, "budget.hard_limit.micros"),
        ({"hard_limit": LIMIT(micros=0)}, "budget.hard_limit.micros"),
        ({"hard_limit": LIMIT(accelerator_ms=2**63 - 1)}, "budget.hard_limit.accelerator_ms"),
        ({"hard_limit": LIMIT(accelerator_ms=10**15 + 1)}, "budget.hard_limit.accelerator_ms"),
        ({"hard_limit": LIMIT()}, "budget.hard_limit"),
        ({"soft_limit": LIMIT(micros=100_000_001)}, "budget.soft_limit.micros"),
        ({"soft_limit": LIMIT(accelerator_ms=1)}, "budget.soft_limit.accelerator_ms"),
        ({"period": 0}, PERIOD),
        ({"period": 9}, PERIOD),
        ({"period": budget_pb2.BUDGET_PERIOD_ONE_OFF}, PERIOD),
        ({"start_time": Timestamp(seconds=1), "end_time": Timestamp(seconds=2)}, PERIOD),
        ({"start_time": Timestamp(seconds=1)}, "budget.end_time"),
        ({"start_time": Timestamp(seconds=2), "end_time": Timestamp(seconds=1)}, "budget.end_time"),
        ({"start_time": Timestamp(seconds=2**62)}, "budget.start_time"),
        ({"at_hard_limit": 9}, "budget.at_hard_limit"),
        ({"alert_percents": [50, 0]}, "budget.alert_percents[1]"),
        ({"alert_percents": [50, 50]}, "budget.alert_percents[1]"),
        ({"alert_percents": range(1, 18)}, "budget.alert_percents"),
        ({"alert_project": "No Name"}, "budget.alert_project"),
        ({"alert_project": OTHER_PROJECT}, "budget.alert_project"),
        ({"project": "", "team": "nobody"}, "budget.team"),
        ({"team": "both"}, "budget"),
    ],
)
async def test_what_breaks_a_limit_is_refused_by_its_field(api: Api, budget: dict[str, Any], field: str) -> None:
    answer = await refused(api.quotas.SetBudget(_request(**({"project": PROJECT} | budget))))
    assert (answer.code, answer.reason, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", [field])
    assert (await refused(_get(api, project=PROJECT))).reason == "RESOURCE_NOT_FOUND"


async def test_a_change_made_on_an_old_reading_is_refused_and_a_repeat_is_answered_as_before(api: Api) -> None:
    request = _request(etag="0")
    first = await api.quotas.SetBudget(request)
    assert await api.quotas.SetBudget(request) == first
    answer = await refused(api.quotas.SetBudget(_request(etag="0")))
    assert (answer.code, answer.reason, answer.metadata) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", {"etag": "1"})
    assert (await refused(api.quotas.SetBudget(_request(etag="latest")))).fields == ["etag"]
    other = _request(request_id=request.request_id, hard_limit=LIMIT(micros=1))
    assert (await refused(api.quotas.SetBudget(other))).code is grpc.StatusCode.ALREADY_EXISTS
    delete = budget_pb2.DeleteBudgetRequest(request_id=new_id(), project=PROJECT, etag="1")
    for _ in range(2):
        await api.quotas.DeleteBudget(delete)
    gone = budget_pb2.DeleteBudgetRequest(request_id=new_id(), project=PROJECT)
    assert (await refused(api.quotas.DeleteBudget(gone))).code is grpc.StatusCode.NOT_FOUND
    records = await api.sql(
        "SELECT method, object FROM audit_records WHERE method LIKE '%Budget' AND code = 'OK' ORDER BY method"
    )
    assert [(row.method.rpartition("/")[2], row.object) for row in records] == [
        ("DeleteBudget", f"budget of {PROJECT}"),
        ("SetBudget", f"budget of {PROJECT}"),
    ]


async def test_prices_take_over_at_their_time_and_only_future_ones_go(api: Api) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + DAY
    now = await _price(api, "h200", 3_600_000)
    later = await _price(api, "h200", 7_200_000, start_time=_time(soon))
    spot = await _price(api, "h200", 1, spot=True)
    assert (now.in_force, later.in_force, spot.in_force, now.currency) == (True, False, True, "EUR")
    first = await api.quotas.ListPrices(price_pb2.ListPricesRequest(page_size=2))
    rest = await api.quotas.ListPrices(price_pb2.ListPricesRequest(page_size=2, page_token=first.next_page_token))
    assert [*first.prices, *rest.prices] == [now, later, spot]

    def delete(start: Timestamp) -> price_pb2.DeletePriceRequest:
        return price_pb2.DeletePriceRequest(request_id=new_id(), accelerator_kind="h200", start_time=start)

    await api.quotas.DeletePrice(delete(later.start_time))
    assert (await refused(api.quotas.DeletePrice(delete(later.start_time)))).code is grpc.StatusCode.NOT_FOUND
    in_force = await refused(api.quotas.DeletePrice(delete(now.start_time)))
    assert (in_force.code, in_force.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STILL_NEEDED")
    assert (await refused(api.quotas.DeletePrice(delete(Timestamp(seconds=2**62))))).fields == ["start_time"]


@pytest.mark.parametrize(
    ("price", "field"),
    [
        ({"micros_per_hour": -1}, "price.micros_per_hour"),
        ({"micros_per_hour": 10**9 + 1}, "price.micros_per_hour"),
        ({"accelerator_kind": "any"}, "price.accelerator_kind"),
        ({"accelerator_kind": "H 200"}, "price.accelerator_kind"),
        ({"accelerator_kind": ""}, "price.accelerator_kind"),
        ({"start_time": Timestamp(seconds=1)}, "price.start_time"),
    ],
)
async def test_a_bad_price_is_refused_by_its_field(api: Api, price: dict[str, Any], field: str) -> None:
    fields: dict[str, Any] = {"accelerator_kind": "h200", "micros_per_hour": 1} | price
    asked = price_pb2.Price(**fields)
    answer = await refused(api.quotas.SetPrice(price_pb2.SetPriceRequest(request_id=new_id(), price=asked)))
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_standing_entries_and_report_say_what_a_lease_did(api: Api) -> None:
    world = BudgetWorld(api.engine)
    await _price(api, "h200", 3_600_000)
    await api.quotas.SetBudget(_request(hard_limit=LIMIT(micros=100_000, accelerator_ms=50_000)))
    job_id = await world.job(PROJECT)
    done, running = lease(PROJECT, job_id=job_id, seconds=20), lease(PROJECT, job_id=job_id, seconds=10)
    assert await world.reserve(done, running) == []
    await world.settle((done, 12_345))
    standing = (await _get(api, project=PROJECT)).standing
    assert standing.spent == budget_pb2.Spending(micros=12_345, accelerator_ms=12_345)
    assert standing.reserved == budget_pb2.Spending(micros=10_000, accelerator_ms=10_000)
    assert standing.left == LIMIT(micros=77_655, accelerator_ms=27_655)
    entries: list[ledger_pb2.LedgerEntry] = []
    token = ""
    while True:
        asked = ledger_pb2.ListLedgerEntriesRequest(project=PROJECT, page_size=2, page_token=token)
        page = await api.quotas.ListLedgerEntries(asked)
        entries += page.entries
        token = page.next_page_token
        if not token:
            break
    assert [entry.entry_id for entry in entries] == sorted((entry.entry_id for entry in entries), reverse=True)
    assert sum(entry.amount.micros for entry in entries) == sum(entry.amount.accelerator_ms for entry in entries) == 0
    of_lease = [entry for entry in entries if entry.reference == done.lease_id]
    assert {entry.job_id for entry in of_lease} == {job_id}
    assert {entry.kind for entry in of_lease} == {
        ledger_pb2.LEDGER_ENTRY_KIND_RESERVE,
        ledger_pb2.LEDGER_ENTRY_KIND_SETTLE,
    }
    spent = sum(entry.amount.micros for entry in entries if entry.account == ledger_pb2.LEDGER_ACCOUNT_SPENT)
    by: Any = [ledger_pb2.REPORT_DIMENSION_PROJECT, ledger_pb2.REPORT_DIMENSION_USER, ledger_pb2.REPORT_DIMENSION_JOB_TYPE]
    report = await _report(api, by=by, format=ledger_pb2.REPORT_FORMAT_JSON)
    assert [list(row.keys) for row in report.rows] == [[PROJECT, "user:ada", "fine_tune"]]
    assert (report.total.leases, report.total.open_leases, report.total.charged.micros) == (2, 1, spent)
    assert json.loads(report.text)["total"]["micros"] == spent == 12_345
    written = await _report(api, format=ledger_pb2.REPORT_FORMAT_CSV)
    assert written.text.splitlines()[1].startswith(f"{PROJECT},2,1,12345,")


async def test_a_report_of_bad_times_or_dimensions_is_refused(api: Api) -> None:
    for fields, field in (
        ({"start_time": None}, "start_time"),
        ({"end_time": Timestamp(seconds=1)}, "end_time"),
        ({"by": [9]}, "by[0]"),
        ({"by": [1, 1]}, "by"),
        ({"format": 9}, "format"),
        ({"project": "No Name"}, "project"),
    ):
        answer = await refused(_report(api, **fields))
        assert answer.fields == [field] or answer.code is grpc.StatusCode.NOT_FOUND, (fields, answer)


async def test_nobody_is_shown_budgets_and_costs_of_others(api: Api) -> None:
    world = BudgetWorld(api.engine)
    for team, project in (("vision", PROJECT), ("speech", OTHER_PROJECT)):
        await api.quotas.SetQuota(quotas_pb.SetQuotaRequest(request_id=new_id(), quota=quotas_pb.Quota(team=team)))
        quota = quotas_pb.Quota(project=project, parent=team)
        await api.quotas.SetQuota(quotas_pb.SetQuotaRequest(request_id=new_id(), quota=quota))
        await api.quotas.SetBudget(_request(team=team))
        await api.quotas.SetBudget(_request(project=project))
        assert await world.reserve(lease(project, kind="cpu")) != []
    await _price(api, "h200", 3_600_000)
    for project in (PROJECT, OTHER_PROJECT):
        assert await world.reserve(lease(project)) == []
    viewer = await api.acting_as("VIEWER")
    listed = (await viewer.quotas.ListBudgets(budget_pb2.ListBudgetsRequest())).budgets
    assert [budget.team or budget.project for budget in listed] == [PROJECT, "vision"]
    assert (await _get(viewer, team="vision")).team == "vision"
    assert (await refused(_get(viewer, team="speech"))).code is grpc.StatusCode.NOT_FOUND
    assert [list(row.keys) for row in (await _report(viewer)).rows] == [[PROJECT]]
    assert {row.keys[0] for row in (await _report(api)).rows} == {PROJECT, OTHER_PROJECT}
    hidden = ledger_pb2.ListLedgerEntriesRequest(team="vision")
    assert (await refused(viewer.quotas.ListLedgerEntries(hidden))).reason == "PERMISSION_DENIED"


async def test_a_job_shows_its_estimate_beside_its_cost(api: Api) -> None:
    world = BudgetWorld(api.engine)
    await _price(api, "h200", 3_600_000)
    job_id = await world.job(PROJECT)
    await api.sql("UPDATE jobs SET admitted_at = now() WHERE job_id = :id", id=job_id)
    held = lease(PROJECT, job_id=job_id, seconds=10)
    assert await world.reserve(held) == []

    async def estimate(connection: AsyncConnection) -> int:
        return await record_estimates(connection, [job_id], await price_list(connection, "EUR"))

    assert await world.run(estimate) == 1
    await world.settle((held, 5_000))
    cost = (await api.jobs.GetJob(jobs_pb.GetJobRequest(job_id=job_id))).cost
    assert (cost.held_ms, cost.charged_micros, cost.reserved_micros, cost.open_leases) == (5_000, 5_000, 0, 0)
    assert cost.HasField("estimated_micros")
    nearest = min(max(5_000, cost.estimated_micros.low), cost.estimated_micros.high)
    assert cost.variance_micros == 5_000 - nearest
    report = await _report(api)
    assert (report.total.estimates.jobs, report.total.estimates.charged_micros) == (1, 5_000)
    assert report.total.estimates.variance_micros == cost.variance_micros


async def test_a_dry_run_is_priced_by_the_list(api: Api) -> None:
    spec = await api.inputs()

    async def plan() -> plan_pb2.JobPlan:
        request = jobs_pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec, validate_only=True)
        return (await api.jobs.SubmitJob(request)).plan

    assert not (await plan()).HasField("cost")
    for kind in ("cpu", "any-gpu", "h200"):
        await _price(api, kind, 3_600_000)
    priced = await plan()
    assert priced.cost.micros.high == priced.accelerator_seconds.high * 1_000


async def test_a_team_with_a_budget_is_not_deleted(api: Api) -> None:
    await api.quotas.SetQuota(quotas_pb.SetQuotaRequest(request_id=new_id(), quota=quotas_pb.Quota(team="research")))
    await api.quotas.SetBudget(_request(team="research"))
    delete = quotas_pb.DeleteQuotaRequest(request_id=new_id(), team="research")
    answer = await refused(api.quotas.DeleteQuota(delete))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STILL_NEEDED")
    assert answer.metadata == {"team": "research", "budget": "research"}
    assert (await _get(api, team="research")).hard_limit == MONEY
    await api.quotas.DeleteBudget(budget_pb2.DeleteBudgetRequest(request_id=new_id(), team="research"))
    await api.quotas.DeleteQuota(delete)


async def test_no_budget_outlives_a_team_that_is_deleted_meanwhile(api: Api) -> None:
    for number in range(10):
        team = f"team-{number}"
        await api.quotas.SetQuota(quotas_pb.SetQuotaRequest(request_id=new_id(), quota=quotas_pb.Quota(team=team)))
        both = (
            api.quotas.SetBudget(_request(team=team)),
            api.quotas.DeleteQuota(quotas_pb.DeleteQuotaRequest(request_id=new_id(), team=team)),
        )
        answers = await asyncio.gather(*both, return_exceptions=True)
        assert sorted(isinstance(answer, grpc.aio.AioRpcError) for answer in answers) == [False, True]
