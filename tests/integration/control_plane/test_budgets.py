"""Budgets and prices as they are managed, what they tell, and the reports made from the ledger."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.budgets import store
from control_plane.budgets.chargeback import InconsistentLedgerError, chargeback
from control_plane.budgets.estimates import JobCost, job_costs, record_estimates
from control_plane.budgets.ledgers import budget_of
from control_plane.budgets.prices import ensure_prices, list_prices, price_list, prices_in_force, set_price
from control_plane.budgets.standing import leases_to_stop, read_states
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.planning import PriceList
from control_plane.jobs.spec_wire import spec_from_proto
from control_plane.webhooks import outbox
from governance.budgets import AtHardLimit, Budget, Scope, ScopeKind
from governance.chargeback import Chargeback, Dimension
from governance.estimates import Range, Variance
from governance.periods import PeriodKind, one_off
from governance.values import Amounts, Limits
from tests.integration.control_plane.budget_world import BLUE, ORGANISATION, PRICE, RED, SETTER, VISION, BudgetWorld, lease
from tests.unit.specs.spec_cases import SPECS, message

DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def world(engine: AsyncEngine) -> BudgetWorld:
    world = BudgetWorld(engine)
    await world.prepare()
    return world


async def _refusal(awaited: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await awaited
    return caught.value


async def test_a_budget_is_set_read_listed_changed_and_removed(world: BudgetWorld) -> None:
    budget = Budget(
        RED,
        PeriodKind.QUARTER,
        Limits(10_000, 20_000),
        AtHardLimit.DEMOTE,
        soft=Limits(7_000, None),
        alert_percents=(90,),
    )
    row = await world.run(lambda connection: store.set_budget(connection, budget, SETTER, version=0))
    assert (budget_of(row), row["version"], row["setter"]) == (budget, 1, SETTER)
    await world.budget(VISION, ms=5, notified_project="blue")
    await world.budget(
        BLUE,
        micros=5,
        period=PeriodKind.ONE_OFF,
        span=one_off(datetime(2026, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)),
    )
    async with world.engine.connect() as connection:
        assert budget_of(await store.get_budget(connection, RED)) == budget
        everything = await store.list_budgets(connection, None, None, ("", ""), 10)
        assert [(found["kind"], found["scope"]) for found in everything] == [
            ("PROJECT", "blue"),
            ("PROJECT", "red"),
            ("TEAM", "vision"),
        ]
        assert [found["scope"] for found in await store.list_budgets(connection, None, None, ("PROJECT", "blue"), 1)] == ["red"]
        visible = await store.list_budgets(connection, frozenset({"red"}), None, ("", ""), 10)
        assert [found["scope"] for found in visible] == ["red", "vision"]
    stale = await _refusal(world.run(lambda connection: store.set_budget(connection, budget, SETTER, version=7)))
    assert (stale.reason, stale.metadata) == (Reason.ETAG_MISMATCH, {"etag": "1"})
    await world.run(lambda connection: store.remove_budget(connection, RED, version=1))
    async with world.engine.connect() as connection:
        assert (await _refusal(store.get_budget(connection, RED))).reason is Reason.RESOURCE_NOT_FOUND
    gone = await _refusal(world.run(lambda connection: store.remove_budget(connection, RED)))
    assert gone.reason is Reason.RESOURCE_NOT_FOUND


@pytest.mark.parametrize(
    "fields", [{"scope": Scope(ScopeKind.PROJECT, "green")}, {"scope": VISION, "notified_project": "green"}]
)
async def test_a_budget_is_of_a_project_that_there_is(world: BudgetWorld, fields: dict[str, Any]) -> None:
    budget = Budget(period=PeriodKind.MONTH, hard=Limits(1, None), **fields)
    refused = await _refusal(world.run(lambda connection: store.set_budget(connection, budget, SETTER)))
    assert refused.reason is Reason.PROJECT_NOT_FOUND


async def test_a_monthly_budget_counts_what_its_project_used_before_it_was_set(world: BudgetWorld) -> None:
    used = lease(seconds=4)
    await world.reserve(used)
    await world.settle((used, 3_000))
    await world.budget(RED, micros=5_000)
    assert (await world.state()).standing.left == Limits(2_000, None)
    assert len(await world.reserve(lease(seconds=3))) == 1
    await world.run(lambda connection: store.remove_budget(connection, RED))
    assert await world.reserve(lease(seconds=3)) == []
    await world.assert_sound()


@pytest.mark.parametrize("policy", [AtHardLimit.DEMOTE, AtHardLimit.WARN])
async def test_a_budget_that_does_not_stop_lets_everything_through_and_shows_it(
    world: BudgetWorld, policy: AtHardLimit
) -> None:
    await world.budget(RED, micros=2_000, at_hard_limit=policy)
    assert not (await world.state()).standing.demoted
    assert await world.reserve(lease(seconds=3)) == []
    state = await world.state()
    assert state.standing.left == Limits()
    assert state.standing.demoted == (policy is AtHardLimit.DEMOTE)
    assert (await world.balances())["BUDGET"].micros == -1_000
    await world.assert_sound()


async def test_a_limit_lowered_below_what_is_committed_sinks_as_leases_end(world: BudgetWorld) -> None:
    await world.budget(RED, micros=10_000)
    old, new, newest = [lease(seconds=3, job_id=await world.job()) for _ in range(3)]
    now = datetime.now(UTC)
    for age, held in ((3, old), (2, new), (1, newest)):
        await world.reserve(held)
        await world.hold_lease(held, granted_at=now - timedelta(hours=age))
    await world.budget(RED, micros=4_000)
    balances = await world.balances()
    assert (balances["EXTERNAL"].micros, balances["BUDGET"].micros) == (-9_000, 0)
    assert (await world.state()).standing.left == Limits(0, None)
    assert len(await world.reserve(lease())) == 1

    async def stopping() -> list[str]:
        async with world.engine.connect() as connection:
            return [found.lease_id for found in await leases_to_stop(connection)]

    # The two newest free 6,000 of the 5,000 that are too much.
    assert await stopping() == [newest.lease_id, new.lease_id]
    await world.settle((newest, 500))
    await world.sql("UPDATE leases SET state = 'ENDED' WHERE lease_id = :lease_id", lease_id=newest.lease_id)
    assert (await world.balances())["EXTERNAL"].micros == -6_500
    assert await stopping() == [new.lease_id]
    await world.settle((new, 0))
    await world.sql("UPDATE leases SET state = 'ENDED' WHERE lease_id = :lease_id", lease_id=new.lease_id)
    balances = await world.balances()
    assert (balances["EXTERNAL"].micros, balances["BUDGET"].micros) == (-4_000, 500)
    assert await stopping() == []
    await world.assert_sound()
    # And up again, at once.
    await world.budget(RED, micros=20_000)
    assert (await world.balances())["BUDGET"].micros == 16_500
    await world.assert_sound()


async def test_a_budget_that_begins_to_stop_takes_what_runs_into_account(world: BudgetWorld) -> None:
    await world.budget(RED, micros=2_000, at_hard_limit=AtHardLimit.WARN)
    held = lease(seconds=5, job_id=await world.job())
    await world.reserve(held)
    await world.hold_lease(held)
    await world.budget(RED, micros=2_000)
    async with world.engine.connect() as connection:
        assert [(found.lease_id, found.scope) for found in await leases_to_stop(connection)] == [(held.lease_id, RED)]
    await world.assert_sound()


async def test_the_scheduler_reads_every_budget_at_once(world: BudgetWorld) -> None:
    await world.budget(ORGANISATION, micros=100_000, ms=50_000)
    await world.budget(RED, ms=5_000, at_hard_limit=AtHardLimit.DEMOTE)
    await world.reserve(lease(seconds=5), lease("blue", seconds=2))
    async with world.engine.connect() as connection:
        states = {state.budget.scope: state for state in await read_states(connection)}
    assert states.keys() == {ORGANISATION, RED}
    assert states[ORGANISATION].standing.left == Limits(93_000, 43_000)
    assert states[ORGANISATION].reserved == Amounts(7_000, 7_000)
    assert states[RED].standing.demoted


async def _deliveries(world: BudgetWorld) -> list[dict[str, Any]]:
    rows = await world.sql("SELECT body FROM webhook_deliveries ORDER BY created_at, body")
    return [json.loads(row.body) for row in rows]


async def _endpoint(world: BudgetWorld, project: str, *, budget_alerts: bool = True) -> None:
    await world.sql(
        "INSERT INTO webhooks (webhook_id, project, url, states, creator, budget_alerts)"
        " VALUES (gen_random_uuid(), :project, 'https://example.org', '{}', 'user:ada', :budget_alerts)",
        project=project,
        budget_alerts=budget_alerts,
    )


async def test_each_level_is_told_once_in_a_period_to_those_who_asked(world: BudgetWorld) -> None:
    await _endpoint(world, "red")
    await _endpoint(world, "red", budget_alerts=False)
    await _endpoint(world, "blue")
    await world.budget(RED, micros=10_000, soft=Limits(6_000, None), alert_percents=(50, 80, 100))
    held = [lease(seconds=5), lease(seconds=4), lease(seconds=1)]
    told: list[list[object]] = []
    for one in held:
        await world.reserve(one)
        told.append([message["data"]["level_percent"] for message in (await _deliveries(world))])
    # 5,000, then 9,000 past the soft limit, which has no percentage, then all of it.
    assert [sorted(map(str, levels)) for levels in told] == [["50"], ["50", "80", "None"], ["100", "50", "80", "None"]]
    # They return what they had, others take it: nothing is told again.
    await world.settle(*((one, 0) for one in held))
    await world.reserve(lease(seconds=10))
    messages = await _deliveries(world)
    assert len(messages) == 4
    assert {message["type"] for message in messages} == {"budget.level_reached", "budget.soft_limit_reached"}
    (full,) = [message["data"] for message in messages if message["data"]["level_percent"] == 100]
    assert (full["scope_kind"], full["scope"], full["book"]) == ("PROJECT", "red", "MONEY")
    assert (full["spent"], full["reserved"], full["hard_limit"], full["at_hard_limit"]) == (0, 10_000, 10_000, "STOP")
    # As any message, they are claimed and sent.
    claimed = await world.run(lambda connection: outbox.claim(connection, most=9, each=9, busy=(), claim_seconds=60))
    assert len(claimed) == 4


async def test_a_level_that_is_reached_already_is_told_when_the_budget_is_set(world: BudgetWorld) -> None:
    await _endpoint(world, "blue")
    await world.budget(ORGANISATION, ms=10_000, alert_percents=(90,), notified_project="blue")
    await world.reserve(lease(seconds=6))
    assert await _deliveries(world) == []
    await world.budget(ORGANISATION, ms=10_000, alert_percents=(50, 90), notified_project="blue")
    (message,) = await _deliveries(world)
    assert (message["data"]["scope_kind"], message["data"]["level_percent"], message["data"]["book"]) == (
        "ORGANISATION",
        50,
        "ACCELERATOR_TIME",
    )


async def test_an_alert_is_written_with_what_reached_it_or_not_at_all(world: BudgetWorld) -> None:
    await world.budget(RED, micros=1_000)
    assert len(await world.reserve(lease(seconds=2))) == 1
    assert await world.sql("SELECT * FROM budget_alerts") == []
    await world.reserve(lease())
    assert {row.level for row in await world.sql("SELECT * FROM budget_alerts")} == {"50", "80", "100"}


async def test_prices_take_over_at_their_time_and_the_past_stays(world: BudgetWorld) -> None:
    now = datetime.now(UTC)
    await world.run(lambda connection: set_price(connection, "h200", False, 2 * PRICE, SETTER, now + DAY))
    await world.run(lambda connection: set_price(connection, "h200", False, 3 * PRICE, SETTER, now + DAY))  # not yet in force
    before = lease()
    await world.reserve(before)
    # A day goes by.
    await world.sql("UPDATE prices SET valid_from = valid_from - interval '1 day' WHERE kind = 'h200'")
    after = lease()
    await world.reserve(after)
    charges = {charge.lease_id: charge.charged.micros for charge in await world.settle((before, 1_000), (after, 1_000))}
    assert charges == {before.lease_id: 1_000, after.lease_id: 3_000}
    async with world.engine.connect() as connection:
        rows = await list_prices(connection, None, 10)
        assert [(row["kind"], row["micros_per_hour"]) for row in rows] == [
            ("cpu", 36_000),
            ("h200", PRICE),
            ("h200", 3 * PRICE),
        ]
        first = rows[0]
        rest = await list_prices(connection, (first["kind"], first["spot"], first["valid_from"]), 1)
        assert [row["micros_per_hour"] for row in rest] == [PRICE]


async def test_spot_capacity_has_a_price_of_its_own(world: BudgetWorld) -> None:
    spot = lease(spot=True)
    await world.reserve(spot)
    assert (await world.settle((spot, 1_000)))[0].charged.micros == 1_000  # what the kind costs, as long as it has none
    await world.run(lambda connection: set_price(connection, "h200", True, PRICE // 4, SETTER))
    spot, ordinary = lease(spot=True), lease()
    await world.reserve(spot, ordinary)
    charges = {charge.lease_id: charge.charged.micros for charge in await world.settle((spot, 1_000), (ordinary, 1_000))}
    assert charges == {spot.lease_id: 250, ordinary.lease_id: 1_000}
    async with world.engine.connect() as connection:
        assert await price_list(connection, "EUR") == PriceList("EUR", {"cpu": 36_000, "h200": PRICE})


@pytest.mark.parametrize(
    ("kind", "micros", "days", "field"),
    [
        ("h200", -1, None, "price.micros_per_hour"),
        ("h200", 10**9 + 1, None, "price.micros_per_hour"),
        ("h200", float("nan"), None, "price.micros_per_hour"),
        ("any", 1, None, "price.accelerator_kind"),
        ("H200\n", 1, None, "price.accelerator_kind"),
        ("h200", 1, -1, "price.start_time"),
    ],
)
async def test_a_bad_price_is_refused_by_field(
    world: BudgetWorld, kind: str, micros: Any, days: int | None, field: str
) -> None:
    valid_from = None if days is None else datetime.now(UTC) + days * DAY
    refused = await _refusal(world.run(lambda connection: set_price(connection, kind, False, micros, SETTER, valid_from)))
    assert [violation.path for violation in refused.violations] == [field]


async def test_settings_give_prices_to_kinds_that_never_had_one(world: BudgetWorld) -> None:
    for _ in range(2):
        await world.run(lambda connection: ensure_prices(connection, {"h200": 1, "b300": 7_000_000}, "service:control-plane"))
    async with world.engine.connect() as connection:
        assert {price.kind: price.micros_per_hour for price in await prices_in_force(connection)} == {
            "cpu": 36_000,
            "h200": PRICE,
            "b300": 7_000_000,
        }


async def test_what_was_foretold_is_stored_once_and_held_against_what_came(world: BudgetWorld) -> None:
    job_id, unknown = await world.job(), await world.job()
    prices = PriceList("EUR", {"h200": PRICE})
    for listed in (prices, None):  # the first that is recorded stays
        await world.run(lambda connection, listed=listed: record_estimates(connection, [job_id], listed))
    held = [lease(job_id=job_id, accelerators=2, seconds=10) for _ in range(2)]
    await world.reserve(*held)

    async def cost() -> JobCost:
        async with world.engine.connect() as connection:
            by_id = {found.job_id: found for found in await job_costs(connection, [job_id, unknown, str(uuid.uuid4())])}
        assert by_id.keys() == {job_id, unknown}
        assert by_id[unknown].micros is by_id[unknown].held_ms is None
        return by_id[job_id]

    before = await cost()
    # Two leases of two accelerators, a second at least and ten at most each.
    assert (before.held_ms, before.micros) == (Range(4_000, 40_000), Range(4_000, 40_000))
    assert (before.charged_micros, before.reserved_micros, before.open_reservations) == (0, 40_000, 2)
    await world.settle((held[0], 15_000), (held[1], 30_000))
    after = await cost()
    assert (after.used_ms, after.charged_micros, after.open_reservations) == (45_000, 45_000, 0)
    assert after.held_variance == after.money_variance == Variance(5_000, 113)


@pytest_asyncio.fixture
async def used(world: BudgetWorld) -> BudgetWorld:
    """Leases of several jobs that ended, and one that runs."""
    for project, submitter, model, seconds in (
        ("red", "user:ada", "one", 7),
        ("red", "user:ada", "two", 5),
        ("red", "user:bob", "one", 3),
        ("blue", "user:ada", "one", 2),
    ):
        ended = lease(project, job_id=await world.job(project, submitter=submitter, model=model), seconds=seconds)
        cpu = lease(project, job_id=ended.job_id, kind="cpu", seconds=3_600)
        await world.reserve(ended, cpu)
        await world.settle((ended, seconds * 1_000 - 1), (cpu, 3_600_000))
    await world.reserve(lease("red", job_id=await world.job(submitter="user:eve"), seconds=100))
    return world


async def _report(world: BudgetWorld, *by: Dimension, projects: Sequence[str] | None = None) -> Chargeback:
    now = datetime.now(UTC)
    async with world.engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        return await chargeback(
            connection,
            start=now - DAY,
            end=now + DAY,
            by=by,
            projects=None if projects is None else frozenset(projects),
            currency="EUR",
        )


async def test_the_report_sums_to_the_ledger_however_it_is_divided(used: BudgetWorld) -> None:
    # The ledgers, and neither the entries nor the settlements that the report is made from.
    rows = await used.sql(
        "SELECT sum(spent_micros)::bigint AS micros, sum(spent_ms)::bigint AS ms FROM ledgers WHERE kind = 'PROJECT'"
    )
    spent = Amounts(rows[0].micros, rows[0].ms)
    assert spent == Amounts(4 * 36_000 + 16_996, 16_996)
    for by in ((Dimension.PROJECT,), (Dimension.USER, Dimension.MODEL), tuple(Dimension)):
        report = await _report(used, *by)
        assert report.charged == spent
        assert sum(row.open_reservations for row in report.rows) == 1
        assert sum(row.leases for row in report.rows) == 9
    by_user = await _report(used, Dimension.PROJECT, Dimension.USER)
    assert [(row.keys, row.charged.accelerator_ms) for row in by_user.rows] == [
        (("blue", "user:ada"), 1_999),
        (("red", "user:ada"), 11_998),
        (("red", "user:bob"), 2_999),
        (("red", "user:eve"), 0),
    ]
    month = f"{datetime.now(UTC):%Y-%m}"
    assert [row.keys for row in (await _report(used, Dimension.MONTH, Dimension.JOB_TYPE)).rows] == [(month, "fine_tune")]


async def test_the_report_s_model_is_what_a_job_is_about(world: BudgetWorld) -> None:
    specs = [spec_from_proto(message(name)) for name in SPECS]
    held = [lease(job_id=await world.job(spec=spec)) for spec in specs]
    await world.reserve(*held)
    await world.settle(*((one, 1_000) for one in held))
    report = await _report(world, Dimension.JOB_TYPE, Dimension.MODEL)
    counted = Counter((spec.type, spec.subject) for spec in specs)
    assert len(counted) > 5
    assert {row.keys: row.leases for row in report.rows} == counted


async def test_nobody_sees_another_project_s_costs(used: BudgetWorld) -> None:
    report = await _report(used, Dimension.PROJECT, projects=["blue"])
    assert [row.keys for row in report.rows] == [("blue",)]
    assert (await _report(used, Dimension.PROJECT, projects=[])).rows == ()


async def test_a_report_that_is_not_the_ledger_s_is_not_given(used: BudgetWorld) -> None:
    await used.sql("ALTER TABLE ledger_entries DISABLE TRIGGER append_only")
    await used.sql("UPDATE ledger_entries SET micros = micros + 1 WHERE account = 'SPENT'")
    with pytest.raises(InconsistentLedgerError):
        await _report(used, Dimension.PROJECT)


@pytest.mark.parametrize("by", [(), (Dimension.USER, Dimension.USER)])
async def test_a_report_is_divided_by_something_once(world: BudgetWorld, by: tuple[Dimension, ...]) -> None:
    refused = await _refusal(_report(world, *by))
    assert [violation.path for violation in refused.violations] == ["by"]
