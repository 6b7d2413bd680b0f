"""What the leader keeps between rounds is what it would read anew."""

from __future__ import annotations

import asyncio
import random

import pytest
from scheduler_world import World
from structlog.testing import capture_logs

from control_plane.settings import SchedulerSettings
from scheduler.core.types import Limits
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop
from scheduler.record import take_notes
from scheduler.shapes import shape_of, text_of
from scheduler.snapshot import Reading, SnapshotReader

JOB_STATES = ("QUEUED", "STARTING", "RUNNING", "PAUSING", "PAUSED", "CANCELLING", "SUCCEEDED")
HOUR = 3_600_000_000


def reader_of(world: World, recheck_seconds: float = 3600) -> SnapshotReader:
    return SnapshotReader(
        world.engine, Limits(), frozenset({"fine_tune"}), half_life_micros=168 * HOUR, recheck_seconds=recheck_seconds
    )


async def commit(world: World, reader: SnapshotReader, reading: Reading) -> None:
    """As a round does."""
    async with world.engine.begin() as connection:
        await take_notes(connection, reading.change_ids)
    reader.committed(reading)


class Changes:
    """Random changes, of the kinds that happen and of many that do not."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._jobs: list[str] = []
        self._leases: list[str] = []

    async def some(self) -> None:
        """One statement's worth."""
        chance = self._chance
        match chance.randrange(10 if self._leases else 3 if self._jobs else 1):
            case 0:
                self._jobs.append(
                    await self._world.job(
                        project=chance.choice(["red", "blue"]),
                        priority=chance.randrange(1001),
                        state=chance.choice(JOB_STATES[:3]),
                        accelerators=chance.randint(1, 3),
                        job_type=chance.choice(["fine_tune", "fine_tune", "hpo"]),
                    )
                )
            case 1:
                self._leases.append(await self._world.request(chance.choice(self._jobs), kind=chance.choice(["any", "h100"])))
            case 2:
                state = chance.choice(JOB_STATES)
                ended = "now()" if state == "SUCCEEDED" else "NULL"
                await self._update("jobs", self._jobs, f"state = '{state}', ended_at = {ended}")
            case 3:
                await self._update(
                    "leases",
                    self._leases,
                    "state = 'GRANTED', attempt = 1, worker = 'w', granted_kind = 'cpu', pool = 'cpu', granted_at = now(), "
                    'placement = \'[["w", 1, "1"]]\', expires_at = now() + make_interval(secs => random() * 4 - 2)',
                    "REQUESTED",
                )
            case 4:
                await self._update("leases", self._leases, "state = 'ENDED', ended_at = now(), accelerator_ms = 1000")
            case 5:
                await self._update("leases", self._leases, f"priority = {chance.randrange(1001)}")
            case 6:
                await self._update("leases", self._leases, "checkpointed_at = clock_timestamp()")
            case 7:
                await self._update("leases", self._leases, "expires_at = now() + interval '1 hour'", "GRANTED")
            case 8:
                await self._update(
                    "leases", self._leases, "preempted_for = lease_id, preempted_at = coalesce(preempted_at, now())", "GRANTED"
                )
            case _:
                await self._update("leases", self._leases, """claim = '[["w", 1]]'""")

    async def _update(self, table: str, ids: list[str], what: str, state: str = "") -> None:
        some = self._chance.sample(ids, min(len(ids), self._chance.randint(1, 4)))
        key = "job_id" if table == "jobs" else "lease_id"
        only = f"AND state = '{state}'" if state else ""
        statement = f"UPDATE {table} SET {what} WHERE {key} = ANY(CAST(:ids AS uuid[])) {only}"  # noqa: S608 - the test's own
        await self._world.execute(statement, ids=some)


@pytest.mark.parametrize("seed", range(4))
async def test_applying_what_changed_is_reading_everything_anew(world: World, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's
    changes = Changes(world, chance)
    kept = reader_of(world)
    await kept.read()
    for _ in range(40):
        for _ in range(chance.randint(0, 4)):
            await changes.some()
        reading = await kept.read()
        anew = (await reader_of(world).read()).state
        assert reading.state.differences(anew) == []
        # A round that comes to nothing loses nothing.
        if chance.random() < 0.6:
            await commit(world, kept, reading)
            assert await world.rows("SELECT 1 FROM scheduler_changes") == []


@pytest.mark.parametrize("seed", range(3))
async def test_what_rounds_carried_out_is_known_without_being_read(world: World, leader: Leadership, seed: int) -> None:
    changes = Changes(world, random.Random(seed))  # noqa: S311 - a test's
    await world.worker("w", accelerators=64, kind="h100")
    settings = SchedulerSettings(recheck_seconds=0.000_001, prepare_ahead_per_project=1_000)
    # Each round holds what is known against all there is.
    rounds = RoundLoop(world.engine, leader, settings, asyncio.Event())
    with capture_logs() as logged:
        for _ in range(30):
            await world.request(await world.job(state="RUNNING", project="green"))
            await world.job(project="green")
            for _ in range(2):
                await changes.some()
            await rounds.round()
    written = [line for line in logged if line["event"] == "round.written"]
    assert sum(line["granted"] for line in written) >= 30
    assert sum(line["admitted"] for line in written) >= 30
    assert [line for line in logged if line["event"] == "snapshot.differs"] == []


async def test_grants_and_admissions_leave_no_note(world: World, leader: Leadership) -> None:
    await world.worker("w", accelerators=4)
    await world.job()
    await world.request(await world.job(state="RUNNING"))
    rounds = RoundLoop(world.engine, leader, SchedulerSettings(), asyncio.Event())
    await rounds.round()
    assert {row.state for row in await world.rows("SELECT state FROM leases")} == {"GRANTED"}
    assert await world.rows("SELECT 1 FROM scheduler_changes") == []
    await world.execute("UPDATE jobs SET state = 'CANCELLING'")
    assert len(await world.rows("SELECT 1 FROM scheduler_changes")) == 1, "of everybody else"


async def test_a_change_that_no_note_tells_of_is_found_and_logged(world: World) -> None:
    kept = reader_of(world, recheck_seconds=0.000_001)
    job_id = await world.job()
    await commit(world, kept, await kept.read())
    await world.execute("ALTER TABLE jobs DISABLE TRIGGER ALL")
    await world.execute("UPDATE jobs SET priority = 1")
    with capture_logs() as logged:
        reading = await kept.read()
    assert [(line["event"], line["differences"]) for line in logged] == [("snapshot.differs", [f"queued job {job_id}"])]
    assert reading.state.differences((await reader_of(world).read()).state) == []


async def test_past_use_is_counted_once_and_survives_a_change_of_leader(world: World) -> None:
    lease_id = await world.request(await world.job(state="RUNNING"))
    first = reader_of(world)
    await first.read()
    await world.execute(
        "UPDATE leases SET state = 'ENDED', ended_at = now(), accelerator_ms = 5000 WHERE lease_id = :id", id=lease_id
    )
    for reader in (first, first, reader_of(world)):
        assert (await reader.read()).past_use["red"].accelerator_ms == 5000, "until a round has stored it"


def nodes(reading: Reading) -> dict[str, tuple[str | None, int]]:
    return {node.name: (node.parent, node.past_use) for node in reading.tree}


async def test_the_tree_keeps_teams_and_projects_apart_and_adds_up_past_use(world: World) -> None:
    await world.execute("INSERT INTO queue_nodes (kind, name, parent) VALUES ('TEAM', 'red', NULL), ('PROJECT', 'red', 'red')")
    await world.execute("INSERT INTO past_use VALUES ('red', 7000, now() + interval '1 hour'), ('blue', 2000, now())")
    found = nodes(await reader_of(world).read())
    assert found["organisation:"] == (None, 9)
    assert found["team:red"] == ("organisation:", 7)
    assert found["red"] == ("team:red", 7)
    assert found["blue"][0] == "organisation:"


async def test_shapes_have_the_same_text_in_jobs_leases_and_here(world: World) -> None:
    job_id = await world.job(state="RUNNING", accelerators=2)
    await world.execute(
        """
        UPDATE jobs SET spec = jsonb_set(spec, '{resources}', '{"accelerators": 2, "accelerator_kind": "h100", "members": 4,
            "cpu_millis": 500, "memory_mib": 10, "spot": true, "labels": {"zone": "ä b", "b": "\\"", "long-label": "x"},
            "topology": {"level": "rack", "mode": "balanced"}}')
        """
    )
    await world.execute("UPDATE jobs SET shape = shape_of(jobs)")
    lease_id = await world.request(job_id, accelerators=2, kind="h100")
    await world.execute(
        """
        UPDATE leases SET members = 4, cpu_millis = 500, memory_mib = 10, spot = true,
            labels = jobs.spec #> '{resources,labels}', topology = jobs.spec #> '{resources,topology}'
        FROM jobs WHERE jobs.job_id = leases.job_id
        """
    )
    await world.execute("UPDATE leases SET shape = shape_of(leases)")
    of_job = (await world.row("SELECT shape FROM jobs WHERE job_id = :id", id=job_id)).shape
    of_lease = (await world.row("SELECT shape FROM leases WHERE lease_id = :id", id=lease_id)).shape
    assert of_job == of_lease == text_of(shape_of(of_job))
    shape = shape_of(of_job)
    assert (shape.accelerators, shape.members, shape.spot, shape.member) == (8, 4, True, (2, 500, 10))
    assert shape.labels == (("b", '"'), ("long-label", "x"), ("zone", "ä b"))
    assert shape.topology is not None
    plain = await world.job(accelerators=3)
    text = (await world.row("SELECT shape FROM jobs WHERE job_id = :id", id=plain)).shape
    assert text == text_of(shape_of(text))
    # A search's resources are its trial's, a retraining's those of what it repeats.
    for outer in ("trial", "fine_tune"):
        deeper = await world.job(accelerators=3)
        wrap = "UPDATE jobs SET spec = jsonb_build_object(CAST(:outer AS text), spec) WHERE job_id = :id"
        await world.execute(wrap, outer=outer, id=deeper)
        await world.execute("UPDATE jobs SET shape = shape_of(jobs)")
        assert (await world.row("SELECT shape FROM jobs WHERE job_id = :id", id=deeper)).shape == text
