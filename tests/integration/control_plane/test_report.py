"""The chargeback report over the API: whatever was run is divided without loss, and written out as it is. What a job cost."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.budgets.estimates import record_estimates
from control_plane.budgets.prices import price_list
from headway.quotas.v1 import ledger_pb2, price_pb2
from headway_client.cli.exit_codes import ExitCode
from tests.integration.control_plane.budget_world import PRICE, BudgetWorld, lease
from tests.integration.control_plane.callers import OTHER_PROJECT, PROJECT
from tests.integration.control_plane.conftest import Api, new_id
from tests.integration.control_plane.test_command_line import CommandLine

DIMENSIONS = {
    "project": ledger_pb2.REPORT_DIMENSION_PROJECT,
    "user": ledger_pb2.REPORT_DIMENSION_USER,
    "model": ledger_pb2.REPORT_DIMENSION_MODEL,
    "job_type": ledger_pb2.REPORT_DIMENSION_JOB_TYPE,
    "month": ledger_pb2.REPORT_DIMENSION_MONTH,
}
EVERY: Any = list(DIMENSIONS.values())


class Use(NamedTuple):
    """A lease, and what it used of what it reserved; None: it runs."""

    project: str
    user: str
    model: str
    kind: str
    seconds: int
    used_ms: int | None


def used(seconds: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(0, seconds * 1_000)


# The first users would be formulas in a spreadsheet.
USES = st.integers(1, 100_000).flatmap(
    lambda seconds: st.builds(
        Use,
        st.sampled_from([PROJECT, OTHER_PROJECT]),
        st.sampled_from(["=user", "user:ada", 'user:"b, c"']),
        st.sampled_from(["tuned", "answers"]),
        st.sampled_from(["h200", "cpu"]),
        st.just(seconds),
        used(seconds),
    )
)


def _time(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


async def _report(api: Api, by: Any, form: Any = ledger_pb2.REPORT_FORMAT_UNSPECIFIED) -> ledger_pb2.GetReportResponse:
    now = datetime.now(UTC)
    start, end = _time(now - timedelta(days=1)), _time(now + timedelta(days=1))
    return await api.quotas.GetReport(ledger_pb2.GetReportRequest(start_time=start, end_time=end, by=by, format=form))


async def _run(world: BudgetWorld, use: Use) -> None:
    job_id = await world.job(use.project, submitter=use.user, model=use.model)
    held = lease(use.project, job_id=job_id, kind=use.kind, seconds=use.seconds)
    assert await world.reserve(held) == []
    if use.used_ms is not None:
        await world.settle((held, use.used_ms))


async def _prices(api: Api) -> None:
    for kind, micros in (("h200", PRICE), ("cpu", 36_000)):
        price = price_pb2.Price(accelerator_kind=kind, micros_per_hour=micros)
        await api.quotas.SetPrice(price_pb2.SetPriceRequest(request_id=new_id(), price=price))


def _numbers(row: ledger_pb2.ReportRow) -> Counter[str]:
    return Counter(
        leases=row.leases,
        open=row.open_leases,
        micros=row.charged.micros,
        accelerator_ms=row.charged.accelerator_ms,
        estimated_jobs=row.estimates.jobs,
        estimated_micros_low=row.estimates.estimated_micros_low,
        estimated_micros_high=row.estimates.estimated_micros_high,
        estimated_jobs_micros=row.estimates.charged_micros,
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uses=st.lists(USES, min_size=1, max_size=5), by=st.lists(st.sampled_from(sorted(DIMENSIONS)), min_size=1, unique=True))
async def test_however_it_is_divided_it_is_what_the_ledger_says(api: Api, uses: list[Use], by: list[str]) -> None:
    world = BudgetWorld(api.engine)
    await _prices(api)
    for use in uses:
        await _run(world, use)
    numbers: Any = [DIMENSIONS[name] for name in by]
    report = await _report(api, numbers)
    # The whole is what every ledger of a project spent, and so are the rows together.
    [spent] = await api.sql(
        "SELECT coalesce(sum(entries.micros), 0)::bigint AS micros, coalesce(sum(accelerator_ms), 0)::bigint AS accelerator_ms"
        " FROM ledger_entries AS entries JOIN ledgers USING (ledger_id) WHERE account = 'SPENT' AND ledgers.kind = 'PROJECT'"
    )
    assert (report.total.charged.micros, report.total.charged.accelerator_ms) == (spent.micros, spent.accelerator_ms)
    assert sum(map(_numbers, report.rows), Counter[str]()) == +_numbers(report.total)
    # A coarser report is the finest one with its rows put together.
    finest = await _report(api, EVERY)
    places = [list(DIMENSIONS).index(name) for name in by]
    together: dict[tuple[str, ...], Counter[str]] = {}
    for row in finest.rows:
        together.setdefault(tuple(row.keys[place] for place in places), Counter()).update(_numbers(row))
    assert {tuple(row.keys): _numbers(row) for row in report.rows} == together
    # What is written out is the same.
    as_json = json.loads((await _report(api, numbers, ledger_pb2.REPORT_FORMAT_JSON)).text)
    as_csv = (await _report(api, numbers, ledger_pb2.REPORT_FORMAT_CSV)).text
    *lines, total = csv.DictReader(io.StringIO(as_csv, newline=""))
    assert [[row[name] for name in by] for row in as_json["rows"]] == [list(row.keys) for row in report.rows]
    for line, written, row in zip(lines, as_json["rows"], report.rows, strict=True):
        assert [line[name].removeprefix("'") for name in by] == list(row.keys)
        for name, number in _numbers(row).items():
            assert int(line[name]) == written[name] == number
        assert (line["money"], line["gpu_hours"]) == (written["money"], written["gpu_hours"])
    for name, number in _numbers(report.total).items():
        assert int(total[name]) == as_json["total"][name] == number


async def test_people_see_what_a_job_cost_beside_its_estimate(api: Api, tmp_path: Path) -> None:
    world = BudgetWorld(api.engine)
    await _prices(api)
    admin = CommandLine(api, tmp_path, api.token)

    async def cost_of(job_id: str) -> str:
        code, output, errors = await admin.run("get", job_id)
        assert code == ExitCode.OK, errors
        return next((line for line in output.splitlines() if line.startswith("cost")), "").removeprefix("cost").strip()

    job_id = await world.job(PROJECT)
    assert await cost_of(job_id) == ""
    await api.sql("UPDATE jobs SET admitted_at = now() WHERE job_id = :id", id=job_id)
    first, second = (lease(PROJECT, job_id=job_id, seconds=3_600) for _ in range(2))
    assert await world.reserve(first) == []
    assert await cost_of(job_id) == "0.00 for 0.00 accelerator-hours, at most 3.60 more"
    await world.settle((first, 1_800_000))
    assert await cost_of(job_id) == "1.80 for 0.50 accelerator-hours"
    await world.run(lambda connection: _estimate(connection, job_id))
    [row] = await api.sql("SELECT micros_low, micros_high FROM job_estimates")
    assert row.micros_high < 1_800_000, "expected this job to cost more than it was foretold"
    estimated = f"; estimated {row.micros_low / 1e6:,.2f} to {row.micros_high / 1e6:,.2f}"
    assert (await cost_of(job_id)).startswith(f"1.80 for 0.50 accelerator-hours{estimated}, ")
    assert (await cost_of(job_id)).endswith(" above")
    # As long as a lease runs nobody says how it compares.
    assert await world.reserve(second) == []
    assert await cost_of(job_id) == f"1.80 for 0.50 accelerator-hours, at most 3.60 more{estimated}"


async def _estimate(connection: Any, job_id: str) -> int:
    return await record_estimates(connection, [job_id], await price_list(connection, "EUR"))
