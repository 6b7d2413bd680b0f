"""Jobs and workflows that have come apart are put together again; what is in order is left alone."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from scheduler_world import World
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError

from control_plane.settings import SchedulerSettings, TemporalSettings
from scheduler.app import connect_temporal
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop
from scheduler.reconcile import Reconciler
from tests.waiting import until

JOB = "SELECT * FROM jobs WHERE job_id = :id"


@pytest.fixture
def reconciler(world: World, temporal: Client, leader: Leadership) -> Reconciler:
    return Reconciler(world.engine, temporal, leader, period_seconds=30)


async def start(temporal: Client, job_id: str) -> None:
    """A workflow that nobody runs, under the job's id."""
    await temporal.start_workflow("FineTuneWorkflow", id=job_id, task_queue=f"nobody-{uuid.uuid4()}")


async def terminate(temporal: Client, job_id: str) -> None:
    """Ends the job's workflow, and waits until Temporal's list, which lags behind, shows that."""
    await temporal.get_workflow_handle(job_id).terminate()

    async def is_listed_as_closed() -> bool:
        query = f"WorkflowId = '{job_id}' AND ExecutionStatus = 'Terminated'"
        return [execution.id async for execution in temporal.list_workflows(query)] == [job_id]

    await until(is_listed_as_closed, "Temporal's list shows it as terminated")


async def test_a_job_whose_workflow_was_lost_goes_on_as_the_next_attempt(
    world: World, leader: Leadership, reconciler: Reconciler
) -> None:
    await world.worker()
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id)
    await RoundLoop(world.engine, leader, SchedulerSettings(), asyncio.Event()).round()
    await world.execute("UPDATE outbox SET state = 'done'")

    await reconciler.reconcile()
    await reconciler.reconcile()

    job = await world.row(JOB, id=job_id)
    assert (job.state, job.attempt) == ("RUNNING", 2)
    assert (await world.row("SELECT * FROM leases WHERE lease_id = :id", id=lease_id)).outcome == "lost"
    starts = await world.rows("SELECT * FROM outbox WHERE kind = 'start_workflow' AND job_id = :id", id=job_id)
    assert sorted((row.dedupe_key, row.state) for row in starts) == [
        (f"start/{job_id}", "done"),
        (f"start/{job_id}/2", "ready"),
    ]


async def test_a_workflow_that_closed_without_a_word_fails_its_job(
    world: World, temporal: Client, reconciler: Reconciler
) -> None:
    job_id = await world.job(state="RUNNING")
    lease_id = await world.request(job_id)
    await start(temporal, job_id)
    await terminate(temporal, job_id)
    await reconciler.reconcile()
    job = await world.row(JOB, id=job_id)
    assert (job.state, job.failure["kind"]) == ("FAILED", "PLATFORM")
    assert "closed as TERMINATED" in job.failure["message"]
    assert (await world.row("SELECT state FROM leases WHERE lease_id = :id", id=lease_id)).state == "ENDED"


@pytest.mark.parametrize("state", ["PAUSING", "PAUSED"])
async def test_a_paused_job_whose_workflow_was_lost_gets_another_and_stays_paused(
    world: World, reconciler: Reconciler, state: str
) -> None:
    job_id = await world.job(state=state)
    await reconciler.reconcile()
    job = await world.row(JOB, id=job_id)
    assert (job.state, job.attempt) == (state, 1)
    start = await world.row("SELECT * FROM outbox WHERE job_id = :id AND state = 'ready'", id=job_id)
    assert (start.kind, start.dedupe_key) == ("start_workflow", f"start/{job_id}/1")
    lost = await world.row("SELECT detail FROM job_events WHERE type = 'ATTEMPT_LOST' AND job_id = :id", id=job_id)
    assert lost.detail == {"reason": "Temporal lost the job's workflow"}


async def test_a_paused_job_whose_workflow_closed_without_a_word_fails(
    world: World, temporal: Client, reconciler: Reconciler
) -> None:
    job_id = await world.job(state="PAUSED")
    await start(temporal, job_id)
    await terminate(temporal, job_id)
    await reconciler.reconcile()
    assert await world.state(job_id) == "FAILED"


async def test_a_job_paused_before_its_admission_has_no_workflow_to_miss(world: World, reconciler: Reconciler) -> None:
    job_id = await world.job()
    await world.execute("UPDATE jobs SET state = 'PAUSED' WHERE job_id = :id", id=job_id)
    await reconciler.reconcile()
    job = await world.row(JOB, id=job_id)
    assert (job.state, job.attempt) == ("PAUSED", 0)


@pytest.mark.parametrize("known", [True, False], ids=["closed", "lost"])
async def test_a_job_that_was_being_stopped_is_cancelled(
    world: World, temporal: Client, reconciler: Reconciler, known: bool
) -> None:
    job_id = await world.job(state="CANCELLING")
    if known:
        await start(temporal, job_id)
        await terminate(temporal, job_id)
    await reconciler.reconcile()
    job = await world.row(JOB, id=job_id)
    assert (job.state, job.failure) == ("CANCELLED", None)


async def test_what_is_in_order_is_left_alone(world: World, temporal: Client, reconciler: Reconciler) -> None:
    queued = await world.job()
    paused_before_admission = await world.job()
    await world.execute("UPDATE jobs SET state = 'PAUSED' WHERE job_id = :id", id=paused_before_admission)
    running = await world.job(state="RUNNING")
    await start(temporal, running)
    about_to_start = await world.job(state="STARTING")
    await world.execute("UPDATE outbox SET state = 'ready' WHERE job_id = :id", id=about_to_start)
    ended = await world.job(state="RUNNING")
    await world.execute("UPDATE jobs SET state = 'SUCCEEDED', ended_at = now() WHERE job_id = :id", id=ended)
    before = await world.rows("SELECT job_id, state, attempt, version FROM jobs ORDER BY job_id")
    await reconciler.reconcile()
    assert await world.rows("SELECT job_id, state, attempt, version FROM jobs ORDER BY job_id") == before
    assert await world.state(queued) == "QUEUED"

    handle = temporal.get_workflow_handle(running)

    async def is_running() -> bool:
        return (await handle.describe()).status is WorkflowExecutionStatus.RUNNING

    await until(is_running, "it still runs")


async def test_a_missing_namespace_loses_no_job(world: World, temporal_address: str, leader: Leadership) -> None:
    """To Temporal a namespace that is not there looks just like a workflow that is not."""
    elsewhere = await connect_temporal(TemporalSettings(address=temporal_address, namespace="no-such-namespace"))
    job_id = await world.job(state="RUNNING")
    with pytest.raises(RPCError, match="no-such-namespace"):
        await Reconciler(world.engine, elsewhere, leader, period_seconds=30).reconcile()
    assert (await world.row(JOB, id=job_id)).attempt == 0


async def test_a_deposed_leader_repairs_nothing(world: World, leader: Leadership, reconciler: Reconciler) -> None:
    job_id = await world.job(state="RUNNING")
    await world.execute("UPDATE leaders SET epoch = epoch + 1, holder = 'another'")
    await reconciler.reconcile()
    assert (await world.row(JOB, id=job_id)).attempt == 0
    assert leader.epoch is None
