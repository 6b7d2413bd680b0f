"""The outbox reaches Temporal, in order, at least once, and harmlessly more often."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scheduler_world import TRACE_ID, Gate, World
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus

from control_plane.settings import TemporalSettings
from scheduler import routing
from scheduler.app import connect_temporal
from scheduler.dispatch import Dispatcher
from scheduler.leader import Leadership
from tests.waiting import until
from workers.workflows.contracts import JobInput

GRANT = {"lease_id": "l1", "attempt": 1, "worker": "w1", "accelerators": 1, "accelerator_kind": "cpu"}


@pytest.fixture(autouse=True)
def queue_without_workers(monkeypatch: pytest.MonkeyPatch) -> str:
    """Nobody runs what these tests start: a workflow's history then holds just what was sent to it."""
    queue = f"nobody-{uuid.uuid4()}"
    nowhere = dataclasses.replace(routing.ROUTES["fine_tune"], task_queue=queue)
    monkeypatch.setattr(routing, "ROUTES", {"fine_tune": nowhere})
    return queue


@pytest.fixture
def dispatcher(world: World, temporal: Client, leader: Leadership) -> Dispatcher:
    return Dispatcher(world.engine, temporal, leader, poll_seconds=2)


@pytest.fixture
async def gate(temporal_address: str) -> AsyncIterator[Gate]:
    gate = Gate(temporal_address)
    await gate.open()
    yield gate
    await gate.shut()


async def admitted(world: World) -> str:
    job_id = await world.job(state="STARTING")
    await world.execute("UPDATE outbox SET state = 'ready' WHERE job_id = :id", id=job_id)
    return job_id


async def drain(dispatcher: Dispatcher) -> None:
    while await dispatcher.drain() == 0:
        pass


async def received(temporal: Client, job_id: str) -> list[str]:
    """What a workflow was told, in order."""
    history = await temporal.get_workflow_handle(job_id).fetch_history()
    told: list[str] = []
    for event in history.events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            told.append("started")
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            told.append(event.workflow_execution_signaled_event_attributes.signal_name)
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
            told.append("cancelled")
    return told


async def outbox(world: World, job_id: str) -> list[Any]:
    return await world.rows("SELECT * FROM outbox WHERE job_id = :id ORDER BY outbox_id", id=job_id)


async def test_dispatches_each_job_in_order_and_once(
    world: World, temporal: Client, dispatcher: Dispatcher, queue_without_workers: str
) -> None:
    jobs = [await admitted(world) for _ in range(20)]
    for job_id in jobs:
        await world.send(job_id, "signal_lease_granted", GRANT)
        await world.send(job_id, "signal_preempt", {"lease_id": "l1", "reason": "repair"})
        await world.send(job_id, "signal_pause", {"pause": 1, "reason": "lunch"})
        await world.send(job_id, "signal_resume", {"pause": 1})
        await world.send(job_id, "signal_lease_lost", {"lease_id": "l1", "reason": "the worker is silent"})
        await world.send(job_id, "cancel_workflow")
    await drain(dispatcher)

    for job_id in jobs:
        assert await received(temporal, job_id) == [
            "started",
            "lease_granted",
            "preempt",
            "pause",
            "resume",
            "lease_lost",
            "cancelled",
        ]
        assert {row.state for row in await outbox(world, job_id)} == {"done"}
    description = await temporal.get_workflow_handle(jobs[0]).describe()
    assert (description.workflow_type, description.task_queue) == ("FineTuneWorkflow", queue_without_workers)


async def test_the_workflow_is_given_the_stored_job_and_its_trace(
    world: World, temporal: Client, dispatcher: Dispatcher
) -> None:
    job_id = await admitted(world)
    await world.execute("UPDATE jobs SET attempt = 3 WHERE job_id = :id", id=job_id)
    await drain(dispatcher)

    history = await temporal.get_workflow_handle(job_id).fetch_history()
    started = history.events[0].workflow_execution_started_event_attributes
    (argument,) = await temporal.data_converter.decode(started.input.payloads, [JobInput])
    assert (argument.job_id, argument.attempt, argument.trace_id) == (job_id, 3, TRACE_ID)
    assert argument.spec.dataset.sha256 == "a" * 64
    (header,) = await temporal.data_converter.decode([started.header.fields["_tracer-data"]])
    assert TRACE_ID in header["traceparent"]


@pytest.mark.parametrize(("state", "pause"), [("STARTING", 0), ("PAUSING", 2), ("PAUSED", 2), ("RUNNING", 0)])
async def test_the_workflow_of_a_paused_job_begins_paused(
    world: World, temporal: Client, dispatcher: Dispatcher, state: str, pause: int
) -> None:
    job_id = await admitted(world)
    await world.execute("UPDATE jobs SET state = :state, pauses = 2 WHERE job_id = :id", state=state, id=job_id)
    await drain(dispatcher)
    history = await temporal.get_workflow_handle(job_id).fetch_history()
    started = history.events[0].workflow_execution_started_event_attributes
    (argument,) = await temporal.data_converter.decode(started.input.payloads, [JobInput])
    assert argument.pause == pause


async def test_a_crash_before_the_record_repeats_harmlessly(world: World, temporal: Client, dispatcher: Dispatcher) -> None:
    job_id = await admitted(world)
    await drain(dispatcher)
    handle = temporal.get_workflow_handle(job_id)
    run_id = (await handle.describe()).run_id

    await world.execute("UPDATE outbox SET state = 'ready', done_at = NULL")
    await drain(dispatcher)
    assert (await handle.describe()).run_id == run_id

    await handle.terminate()
    await world.execute("UPDATE outbox SET state = 'ready', done_at = NULL")
    await drain(dispatcher)
    description = await handle.describe()
    assert (description.run_id, description.status) == (run_id, WorkflowExecutionStatus.TERMINATED)
    assert [row.state for row in await outbox(world, job_id)] == ["done"]


async def test_a_signal_to_a_finished_workflow_is_done(world: World, temporal: Client, dispatcher: Dispatcher) -> None:
    job_id = await admitted(world)
    await drain(dispatcher)
    await temporal.get_workflow_handle(job_id).terminate()
    await world.send(job_id, "signal_lease_granted", GRANT)
    await world.send(job_id, "cancel_workflow")
    await drain(dispatcher)
    assert [row.state for row in await outbox(world, job_id)] == ["done"] * 3


async def test_temporal_may_be_away(world: World, temporal: Client, gate: Gate, leader: Leadership) -> None:
    client = await connect_temporal(TemporalSettings(address=f"127.0.0.1:{gate.port}"))
    dispatcher = Dispatcher(world.engine, client, leader, poll_seconds=2)
    await gate.shut()
    job_id = await admitted(world)
    await world.send(job_id, "signal_lease_granted", GRANT)
    pause = await dispatcher.drain()
    start, signal = await outbox(world, job_id)
    assert (start.state, start.tries) == ("ready", 1)
    assert start.last_error
    assert (signal.state, signal.tries) == ("ready", 0), "it waits for the start"
    assert pause == 0
    assert await dispatcher.drain() > 0, "nothing is due before the next try"

    await gate.open()

    async def all_done() -> bool:
        await dispatcher.drain()
        return {row.state for row in await outbox(world, job_id)} == {"done"}

    await until(all_done, "the outbox drains once Temporal is back", seconds=60)
    assert await received(temporal, job_id) == ["started", "lease_granted"]


async def test_a_job_that_no_workflow_can_run_fails_and_says_so(world: World, dispatcher: Dispatcher) -> None:
    unknown = await world.job(state="STARTING", job_type="astrology")
    broken = await admitted(world)
    await world.execute("UPDATE outbox SET state = 'ready' WHERE job_id = :id", id=unknown)
    await world.execute("UPDATE jobs SET spec = '{}' WHERE job_id = :id", id=broken)
    await drain(dispatcher)
    for job_id, words in ((unknown, "no workflow runs jobs of type 'astrology'"), (broken, "not a valid input")):
        job = await world.row("SELECT * FROM jobs WHERE job_id = :id", id=job_id)
        assert (job.state, job.failure["kind"]) == ("FAILED", "PLATFORM")
        assert words in job.failure["message"]
        assert [row.state for row in await outbox(world, job_id)] == ["done"]


async def test_a_row_that_makes_no_sense_stops_only_its_job(world: World, temporal: Client, dispatcher: Dispatcher) -> None:
    poisoned, sound = await admitted(world), await admitted(world)
    await world.send(poisoned, "signal_lease_granted", {"lease_id": 7})
    await world.send(sound, "signal_lease_granted", GRANT)
    await drain(dispatcher)
    assert await world.state(poisoned) == "FAILED"
    assert await received(temporal, sound) == ["started", "lease_granted"]


async def test_a_standby_dispatches_nothing(world: World, temporal: Client, leader: Leadership) -> None:
    standby = Leadership(world.engine, "standby", 60)
    assert not await standby.campaign()
    job_id = await admitted(world)
    await Dispatcher(world.engine, temporal, standby, poll_seconds=2).drain()
    assert [row.state for row in await outbox(world, job_id)] == ["ready"]
    assert leader.epoch == 1


async def test_who_is_deposed_while_it_dispatches_gives_up_nothing_and_goes_on_as_a_standby(
    world: World, dispatcher: Dispatcher
) -> None:
    job_id = await admitted(world)
    await world.execute("UPDATE jobs SET spec = '{}' WHERE job_id = :id", id=job_id)
    await world.execute("UPDATE leaders SET epoch = epoch + 1, holder = 'another'")
    assert await dispatcher.drain() == 2
    assert [row.state for row in await outbox(world, job_id)] == ["ready"]
    assert await world.state(job_id) == "STARTING"
