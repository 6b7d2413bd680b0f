"""History goes when it is old enough, and what still holds stays."""

from __future__ import annotations

from scheduler_world import World

from control_plane.settings import SchedulerSettings
from scheduler.leader import Leadership
from scheduler.prune import Pruner

SETTINGS = SchedulerSettings(reason_history_days=10, round_records_days=20)
WAITS = '[{"code": "CAPACITY"}]'


async def reasons(world: World, project: str, *rows: tuple[int, str]) -> None:
    """The history of a group: how many days ago each row was written, and its reasons."""
    for days, told in rows:
        await world.execute(
            "INSERT INTO waiting_reasons (kind, project, priority_class, shape, since, reasons)"
            " VALUES ('job', :project, 1, 's', now() - make_interval(days => :days), CAST(:told AS jsonb))",
            project=project,
            days=days,
            told=told,
        )


async def kept(world: World, project: str) -> list[int]:
    """How many days ago the rows that are left were written, oldest first."""
    query = "SELECT extract(day FROM now() - since)::int AS days FROM waiting_reasons WHERE project = :project ORDER BY since"
    return [row.days for row in await world.rows(query, project=project)]


async def rounds(world: World) -> list[int]:
    """How many days ago the rounds were planned that are on record, oldest first."""
    query = "SELECT extract(day FROM now() - planned_at)::int AS days FROM scheduling_rounds ORDER BY planned_at"
    return [row.days for row in await world.rows(query)]


async def recorded(world: World, *days: int) -> None:
    for ago in days:
        await world.execute(
            "INSERT INTO scheduling_rounds (leader_epoch, planned_at, snapshot_sha256, decisions, decision_count)"
            " VALUES (1, now() - make_interval(days => :days), '', '', 1)",
            days=ago,
        )


async def test_what_was_superseded_before_the_time_that_is_kept_goes(world: World, leader: Leadership) -> None:
    await reasons(world, "changing", (40, WAITS), (30, WAITS), (5, WAITS), (1, WAITS))
    await reasons(world, "the-same-for-long", (40, WAITS))
    await reasons(world, "over", (40, WAITS), (30, "[]"))
    await reasons(world, "over-lately", (40, WAITS), (5, "[]"))
    await reasons(world, "back", (40, WAITS), (30, "[]"), (5, WAITS))
    await recorded(world, 40, 21, 19, 1)
    assert await Pruner(world.engine, leader, SETTINGS).prune() >= 1
    # From the row of 30 days ago it is known why things waited 10 days ago.
    assert await kept(world, "changing") == [30, 5, 1]
    assert await kept(world, "the-same-for-long") == [40]
    assert await kept(world, "over") == []
    assert await kept(world, "over-lately") == [40, 5]
    assert await kept(world, "back") == [5]
    assert await rounds(world) == [19, 1]


async def test_much_goes_in_batches_oldest_first(world: World, leader: Leadership) -> None:
    await recorded(world, *range(30, 25, -1), 1)
    await reasons(world, "red", *((days, WAITS) for days in (40, 39, 38, 37)))
    pruner = Pruner(world.engine, leader, SETTINGS, batch=2)
    assert await pruner.prune() < 1, "there is more"
    assert (await rounds(world), await kept(world, "red")) == ([28, 27, 26, 1], [38, 37])
    while await pruner.prune() < 1:
        pass
    assert (await rounds(world), await kept(world, "red")) == ([1], [37])


async def test_only_the_leader_takes_anything(world: World, leader: Leadership) -> None:
    await recorded(world, 40)
    await Pruner(world.engine, Leadership(world.engine, "standby", 60), SETTINGS).prune()
    await world.execute("UPDATE leaders SET expires_at = now() - interval '1 second'")
    successor = Leadership(world.engine, "successor", 60)
    assert await successor.campaign()
    await Pruner(world.engine, leader, SETTINGS).prune()
    assert await rounds(world) == [40], "one that was deposed does not"
    await Pruner(world.engine, successor, SETTINGS).prune()
    assert await rounds(world) == []
