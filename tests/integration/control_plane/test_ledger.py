"""The ledger in the database: what is reserved, charged and returned, whoever does it at once and whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets.ledgers import hold
from control_plane.budgets.reserving import LeaseToReserve, ShortfallCause, reserve_many
from control_plane.budgets.settling import LeaseUse, settle_many
from control_plane.budgets.verify import verify
from control_plane.db.engine import create_engine, in_transaction
from control_plane.settings import PostgresSettings
from governance import costs
from governance.budgets import AtHardLimit, Scope
from governance.ledger import Entry, EntryKind, LeaseTerms, Ledgers
from governance.periods import PeriodKind, one_off
from governance.values import Amounts, Book, Limits
from tests.integration.control_plane.budget_world import ABOVE, BLUE, ORGANISATION, PRICE, RED, VISION, BudgetWorld, lease

SUBMITTERS = 64


@pytest_asyncio.fixture
async def world(engine: AsyncEngine) -> BudgetWorld:
    world = BudgetWorld(engine)
    await world.prepare()
    return world


@pytest_asyncio.fixture
async def crowd(postgres_dsn: str) -> AsyncIterator[AsyncEngine]:
    """As many connections as there are submitters."""
    engine = create_engine(PostgresSettings(dsn=postgres_dsn, pool_size=SUBMITTERS))  # pyright: ignore[reportArgumentType] - pydantic makes it secret
    yield engine
    await engine.dispose()


async def _at_once(crowd: AsyncEngine, leases: list[LeaseToReserve]) -> list[str]:
    """Each lease is reserved by a connection of its own, all of them open before the first begins; those granted."""
    ready = asyncio.Barrier(len(leases))

    async def submit(asked: LeaseToReserve) -> str | None:
        async with crowd.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.rollback()
            await ready.wait()
            async with connection.begin():
                return None if await reserve_many(connection, [asked], ABOVE) else asked.lease_id

    granted = await asyncio.gather(*(submit(one) for one in leases))
    return [lease_id for lease_id in granted if lease_id is not None]


@pytest.mark.parametrize("room", [0, 1, 23, 64])
async def test_of_64_at_once_exactly_those_are_reserved_that_there_is_room_for(
    world: BudgetWorld, crowd: AsyncEngine, room: int
) -> None:
    # Not a multiple of what one costs: what is left over helps nobody.
    await world.budget(RED, micros=room * 1_000 + 999)
    granted = await _at_once(crowd, [lease() for _ in range(SUBMITTERS)])
    assert len(granted) == room
    balances = await world.balances()
    assert balances["RESERVED"] == Amounts(room * 1_000, room * 1_000)
    assert balances["BUDGET"].micros == 999
    assert (await world.sql("SELECT count(*) AS count FROM reservations"))[0].count == room
    await world.assert_sound()


async def test_the_budget_of_the_organisation_holds_for_projects_that_race_in_two_books(
    world: BudgetWorld, crowd: AsyncEngine
) -> None:
    await world.budget(ORGANISATION, ms=30_000)
    await world.budget(VISION, micros=20_000)
    await world.budget(BLUE, micros=18_000)
    granted = set(await _at_once(crowd, leases := [lease("red" if index % 2 else "blue") for index in range(SUBMITTERS)]))
    assert len(granted) == 30
    by_project = Counter(one.project for one in leases if one.lease_id in granted)
    assert by_project["red"] <= 20
    assert by_project["blue"] <= 18
    await world.assert_sound()


async def test_what_races_with_settlements_and_a_limit_never_overruns(world: BudgetWorld, crowd: AsyncEngine) -> None:
    await world.budget(RED, micros=12_000)
    await world.budget(ORGANISATION, micros=14_000)
    charged = Counter[str]()

    async def live(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  a history, not a secret
        for _ in range(8):
            asked = [lease("red" if seed % 2 else "blue", seconds=chance.randint(1, 5)) for _ in range(chance.randint(1, 3))]
            refused = await in_transaction(crowd, lambda connection, asked=asked: reserve_many(connection, asked, ABOVE))
            names = {shortfall.lease_id for shortfall in refused}
            for one in asked:
                if one.lease_id not in names:
                    use = LeaseUse(one.lease_id, chance.choice([0, 0, 1, one.run_ms]))
                    (charge,) = await in_transaction(crowd, lambda connection, use=use: settle_many(connection, [use]))
                    charged[one.project] += charge.charged.micros

    await asyncio.gather(*(live(seed) for seed in range(16)))
    assert 0 < charged.total() <= 14_000
    assert charged["red"] <= 12_000
    assert (await world.balances(RED))["SPENT"].micros == charged["red"]
    assert (await world.balances(ORGANISATION))["SPENT"].micros == charged.total()
    assert (await world.balances(ORGANISATION))["RESERVED"] == Amounts()
    await world.assert_sound()


async def test_transactions_that_end_and_grant_do_not_lock_each_other_out(world: BudgetWorld, crowd: AsyncEngine) -> None:
    held = {project: [lease(project) for _ in range(16)] for project in ("red", "blue")}
    assert not await world.reserve(*held["red"], *held["blue"])

    async def turn(index: int, first: str, second: str) -> None:
        ends = [LeaseUse(held[first][index].lease_id, 500)]
        async with crowd.begin() as connection:  # no second try: a deadlock fails the test
            await hold(connection, [ends[0].lease_id], {second: ABOVE[second]})
            await settle_many(connection, ends)
            assert not await reserve_many(connection, [lease(second)], ABOVE)

    pairs = [("red", "blue"), ("blue", "red")]
    await asyncio.gather(*(turn(index, *pair) for index in range(16) for pair in pairs))
    for scope in (RED, BLUE):
        assert await world.balances(scope) == {
            "EXTERNAL": Amounts(),
            "BUDGET": Amounts(-24_000, -24_000),
            "RESERVED": Amounts(16_000, 16_000),
            "SPENT": Amounts(8_000, 8_000),
        }
    await world.assert_sound()


async def test_what_was_used_is_charged_to_the_millisecond_and_the_rest_returned(world: BudgetWorld) -> None:
    await world.budget(RED, micros=1_000_000, ms=1_000_000)
    asked = lease(accelerators=4, seconds=60)
    assert await world.reserve(asked) == []
    assert (await world.balances())["RESERVED"] == Amounts(240_000, 240_000)
    (charge,) = await world.settle((asked, 4 * 12_345))
    assert charge.charged == Amounts(49_380, 49_380)
    balances = await world.balances()
    assert balances["RESERVED"] == Amounts()
    assert balances["SPENT"] == Amounts(49_380, 49_380)
    assert balances["BUDGET"] == Amounts(950_620, 950_620)
    assert [(entry.kind, entry.account, entry.amounts.micros) for entry in (await world.entries())[-3:]] == [
        ("SETTLE", "RESERVED", -240_000),
        ("SETTLE", "SPENT", 49_380),
        ("SETTLE", "BUDGET", 190_620),
    ]
    assert await world.settle((asked, 4 * 12_345)) == []  # again: nothing happens
    assert await world.settle((lease(), 1)) == []  # never reserved: nothing to close
    assert (await world.balances())["SPENT"] == Amounts(49_380, 49_380)
    await world.assert_sound()


async def test_a_lease_that_used_nothing_is_released(world: BudgetWorld) -> None:
    asked = lease()
    await world.reserve(asked)
    (charge,) = await world.settle((asked, 0))
    assert charge.charged == Amounts()
    assert [(entry.kind, entry.account) for entry in (await world.entries())[-2:]] == [
        ("RELEASE", "RESERVED"),
        ("RELEASE", "BUDGET"),
    ]
    await world.assert_sound()


async def test_cpus_cost_money_and_are_no_gpu_hours(world: BudgetWorld) -> None:
    await world.budget(RED, ms=1)
    asked = lease(kind="cpu", seconds=3_600)
    assert await world.reserve(asked) == []
    assert (await world.balances())["RESERVED"] == Amounts(36_000, 0)
    (charge,) = await world.settle((asked, 1_800_000))
    assert charge.charged == Amounts(18_000, 0)
    assert [shortfall.book for shortfall in await world.reserve(lease())] == [Book.ACCELERATOR_TIME]
    await world.assert_sound()


@pytest.mark.parametrize(("limit", "charged", "uncharged"), [(20_000, 15_000, 0), (12_000, 10_000, 5_000), (None, 15_000, 0)])
async def test_what_was_held_beyond_its_reservation_is_charged_where_there_is_room(
    world: BudgetWorld, limit: int | None, charged: int, uncharged: int
) -> None:
    if limit is not None:
        await world.budget(RED, micros=limit)
    asked = lease(seconds=10)
    await world.reserve(asked)
    (charge,) = await world.settle((asked, 15_000))
    assert (charge.charged, charge.uncharged_ms) == (Amounts(charged, charged), uncharged)
    await world.assert_sound()


async def test_first_come_first_served_and_a_large_one_takes_no_room_from_others(world: BudgetWorld) -> None:
    await world.budget(RED, micros=10_000)
    await world.budget(ORGANISATION, micros=12_000)
    asked = [
        lease(seconds=11),  # too large by itself
        lease(seconds=6),
        lease(seconds=5),  # not after the one before it
        lease("blue", seconds=7),  # not after red's 6, in the organisation's
        lease(seconds=4),
        lease("blue", seconds=2),
        lease("blue", seconds=1),  # nothing is left
    ]
    refused = await world.reserve(*asked)
    assert {shortfall.lease_id: shortfall.scope for shortfall in refused} == {
        asked[0].lease_id: RED,
        asked[2].lease_id: RED,
        asked[3].lease_id: ORGANISATION,
        asked[6].lease_id: ORGANISATION,
    }
    assert {(shortfall.cause, shortfall.book) for shortfall in refused} == {(ShortfallCause.NO_ROOM, Book.MONEY)}
    largest = next(shortfall for shortfall in refused if shortfall.lease_id == asked[0].lease_id)
    assert (largest.asked, largest.left) == (11_000, 10_000)
    await world.assert_sound()


@pytest.mark.parametrize("seed", range(6))
async def test_the_database_keeps_the_same_ledger_as_the_rules_in_memory(world: BudgetWorld, seed: int) -> None:
    """The same random history in both: the same refusals, charges, and entries in the same order."""
    chance = random.Random(seed)  # noqa: S311  a history, not a secret
    scopes = [RED, BLUE, VISION, ORGANISATION]
    path = {"red": [RED, VISION, ORGANISATION], "blue": [BLUE, ORGANISATION]}
    model, ids, held = Ledgers(), dict[Scope, int](), list[tuple[LeaseToReserve, LeaseTerms]]()

    async def limit(scope: Scope) -> None:
        hard = Limits(chance.randint(1, 30_000), chance.choice([None, chance.randint(1, 30_000)]))
        at_limit = chance.choice([AtHardLimit.STOP, AtHardLimit.STOP, AtHardLimit.WARN])
        await world.budget(scope, micros=hard.micros, ms=hard.accelerator_ms, at_hard_limit=at_limit)
        rows = await world.sql("SELECT ledger_id FROM ledgers WHERE scope = :scope", scope=scope.name)
        ids[scope] = rows[0].ledger_id
        model.set_limit(ids[scope], hard, enforced=at_limit is AtHardLimit.STOP, reference="")

    for scope in scopes:
        await limit(scope)
    for _ in range(12):
        asked = [lease(chance.choice(["red", "blue"]), seconds=chance.randint(1, 6)) for _ in range(chance.randint(1, 6))]
        terms = [
            LeaseTerms(
                one.lease_id,
                tuple(sorted(ids[scope] for scope in path[one.project])),
                one.run_ms * one.accelerators,
                "h200",
                PRICE,
            )
            for one in asked
        ]
        refused = {shortfall.lease_id for shortfall in await world.reserve(*asked)}
        assert refused == set(model.reserve(terms))
        held += [pair for pair in zip(asked, terms, strict=True) if pair[0].lease_id not in refused]
        chance.shuffle(held)
        ending, held = held[: len(held) // 2], held[len(held) // 2 :]
        uses = [(one, chance.choice([0, one.run_ms // 3, one.run_ms, one.run_ms + 700])) for one, _ in ending]
        charges = {charge.lease_id: charge.charged for charge in await world.settle(*uses)}
        assert charges == model.settle([(one.lease_id, used) for one, used in uses], "")
        if chance.random() < 0.4:
            await limit(chance.choice(scopes))
        await world.assert_sound()

    def lines(entries: list[Entry]) -> list[tuple[object, ...]]:
        return [
            (entry.kind, entry.ledger, entry.account, entry.amounts) for entry in entries if entry.kind is not EntryKind.FUND
        ]

    assert Counter(lines(await world.entries())) == Counter(lines(model.entries))
    for scope, ledger_id in ids.items():
        kept = await world.balances(scope)
        assert {str(account): amounts for account, amounts in model.ledgers[ledger_id].balances.items()} == kept


@pytest.mark.parametrize("after", ["reserve", "settle"])
async def test_a_connection_that_dies_between_statements_leaves_nothing(
    world: BudgetWorld, crowd: AsyncEngine, after: str
) -> None:
    await world.budget(RED, micros=10_000)
    before = lease()
    await world.reserve(before)
    entries, balances = await world.entries(), await world.balances()

    async def die(connection: AsyncConnection) -> None:
        pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        assert await reserve_many(connection, [lease(), lease()], ABOVE) == []
        if after == "settle":
            assert len(await settle_many(connection, [LeaseUse(before.lease_id, 500)])) == 1
        await world.sql("SELECT pg_terminate_backend(:pid)", pid=pid)
        await connection.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError):
        async with crowd.begin() as connection:
            await die(connection)
    assert (await world.entries(), await world.balances()) == (entries, balances)
    # The locks went with it, and what it had taken is there for others.
    assert await world.reserve(*(lease() for _ in range(9))) == []
    await world.assert_sound()


async def test_what_was_entered_cannot_be_changed_by_anybody(world: BudgetWorld) -> None:
    asked = lease()
    await world.reserve(asked)
    await world.settle((asked, 10))
    for table in ("ledger_entries", "reservations", "settlements"):
        for statement in ("UPDATE {} SET micros = 0", "DELETE FROM {}", "TRUNCATE {} CASCADE"):
            with pytest.raises(DBAPIError, match="append-only"):
                await world.sql(statement.format(table))
    # Nor can a balance be set to what is not a sum of zero, or below a limit.
    await world.budget(RED, micros=20_000)
    with pytest.raises(DBAPIError, match="balanced"):
        await world.sql("UPDATE ledgers SET spent_micros = spent_micros + 1")
    with pytest.raises(DBAPIError, match="never_overrun"):
        await world.sql("UPDATE ledgers SET budget_micros = -1, external_micros = external_micros + budget_micros + 1")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE ledgers SET spent_micros = spent_micros + 1, budget_micros = budget_micros - 1", "is kept as"),
        (
            "INSERT INTO ledger_entries (kind, reference, ledger_id, account, micros, accelerator_ms)"
            " SELECT 'FUND', gen_random_uuid(), ledger_id, 'BUDGET', 1, 0 FROM ledgers",
            "a transaction sums to zero",
        ),
        (
            "INSERT INTO ledger_entries (kind, reference, ledger_id, account, micros, accelerator_ms)"
            " SELECT 'RELEASE', reference, ledger_id, account, -micros, -accelerator_ms FROM ledger_entries"
            " WHERE kind = 'RESERVE'",
            "holds no reservation",
        ),
        (
            "INSERT INTO settlements (lease_id, used_ms, uncharged_ms, micros, accelerator_ms)"
            " SELECT lease_id, 1, 0, 1, 1 FROM reservations ON CONFLICT DO NOTHING",
            "is open in its rows or its entries",
        ),
        ("UPDATE leases SET state = 'ENDED'", "has ended, and its reservation is open"),
        (
            "INSERT INTO ledger_entries (kind, reference, ledger_id, account, micros, accelerator_ms)"
            " SELECT 'FUND', reference, ledger_id, account, sign * 10000000, 0 FROM ledgers, gen_random_uuid() AS reference,"
            " (VALUES ('BUDGET', -1), ('EXTERNAL', 1)) AS side (account, sign)",
            "in account BUDGET",
        ),
    ],
)
async def test_the_verifier_finds_what_was_tampered_with(world: BudgetWorld, damage: str, says: str) -> None:
    await world.budget(RED, micros=20_000)
    closed, open_lease = lease(), lease(job_id=await world.job())
    await world.reserve(closed, open_lease)
    await world.hold_lease(open_lease)
    await world.settle((closed, 400))
    await world.assert_sound()
    await world.sql(damage)
    problems = await verify(world.engine)
    assert any(says in problem for problem in problems), problems


async def test_each_month_has_a_ledger_of_its_own(world: BudgetWorld) -> None:
    await world.budget(RED, micros=5_000)
    old = lease(seconds=5)
    await world.reserve(old)
    # What was this month's becomes last month's.
    await world.sql(
        "UPDATE ledgers SET period_end = period_start, period_start = period_start - interval '1 month' WHERE scope = 'red'"
    )
    assert await world.reserve(lease(seconds=5)) == []
    assert [shortfall.left for shortfall in await world.reserve(lease())] == [0]
    assert (await world.state()).standing.left == Limits(0, None)
    # A lease is charged to the period of its grant, whenever it ends.
    await world.settle((old, 4_000))
    rows = await world.sql("SELECT budget_micros, spent_micros FROM ledgers WHERE scope = 'red' ORDER BY period_start")
    assert [tuple(row) for row in rows] == [(1_000, 4_000), (0, 0)]
    await world.assert_sound()


async def test_a_one_off_pays_within_its_span_and_not_before_or_after(world: BudgetWorld) -> None:
    now = datetime.now(UTC)
    day = timedelta(days=1)
    for begins, ends in ((now + day, now + 2 * day), (now - 2 * day, now - day)):
        await world.budget(RED, micros=5_000, period=PeriodKind.ONE_OFF, span=one_off(begins, ends))
        assert [shortfall.cause for shortfall in await world.reserve(lease())] == [ShortfallCause.NOT_RUNNING]
        assert (await world.state()).standing.left == Limits(0, None)
    await world.budget(RED, micros=5_000, period=PeriodKind.ONE_OFF, span=one_off(now - day, now + day))
    assert await world.reserve(lease(seconds=5)) == []
    # Its end is moved: what was used stays used.
    await world.budget(RED, micros=6_000, period=PeriodKind.ONE_OFF, span=one_off(now - day, now + 2 * day))
    assert [shortfall.left for shortfall in await world.reserve(lease(seconds=2))] == [1_000]
    await world.assert_sound()


async def test_without_a_price_nothing_is_granted_that_money_limits(world: BudgetWorld) -> None:
    strange = lease(kind="tpu")
    assert await world.reserve(strange) == []  # nobody's money is at stake, and its time is counted
    assert (await world.balances())["RESERVED"] == Amounts(0, 1_000)
    await world.budget(ORGANISATION, micros=10**9)
    assert [shortfall.cause for shortfall in await world.reserve(lease(kind="tpu"))] == [ShortfallCause.NO_PRICE]


async def test_impossible_leases_are_refused_and_harm_no_other(world: BudgetWorld) -> None:
    bad = [lease(accelerators=0), lease(accelerators=10**7), lease(seconds=0), lease(seconds=10**9)]
    refused = await world.reserve(*bad[:2], good := lease(), *bad[2:])
    assert [shortfall.lease_id for shortfall in refused] == [one.lease_id for one in bad]
    assert {shortfall.cause for shortfall in refused} == {ShortfallCause.IMPOSSIBLE}
    assert [str(row.lease_id) for row in await world.sql("SELECT lease_id FROM reservations")] == [good.lease_id]
    await world.assert_sound()


async def test_sums_that_do_not_fit_64_bits_are_refused(world: BudgetWorld) -> None:
    await world.sql("UPDATE prices SET micros_per_hour = 1000000000 WHERE kind = 'h200'")
    huge = [lease(accelerators=400_000, seconds=31_000_000) for _ in range(3)]
    refused = await world.reserve(*huge)
    assert {shortfall.cause for shortfall in refused} == {ShortfallCause.IMPOSSIBLE}
    large = [lease(accelerators=100_000, seconds=30_000_000) for _ in range(8)]
    refused = await world.reserve(*large)
    assert [shortfall.cause for shortfall in refused] == [ShortfallCause.NO_ROOM] * 4
    await world.assert_sound()


async def test_the_database_rounds_as_the_rules_do(world: BudgetWorld) -> None:
    for price in (1, 7, 3_599_999, 10**9):
        await world.sql("UPDATE prices SET micros_per_hour = :price WHERE kind = 'h200'", price=price)
        for used in (1, 999, 3_599_999, 7_200_001):
            asked = lease(accelerators=3, seconds=3_600)
            await world.reserve(asked)
            assert (await world.balances())["RESERVED"] == costs.reservation(3 * 3_600_000, "h200", price)
            (charge,) = await world.settle((asked, used))
            assert charge.charged == costs.charge(used, "h200", price)
