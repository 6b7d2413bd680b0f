"""What the fine-tuning workflow does in each of its lives, played live on Temporal's time-skipping server."""

from __future__ import annotations

import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from scenarios import Cast, play, scenarios
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from control_plane.jobs.states import FailureKind
from workers.workflows.contracts import JobOutcome
from workers.workflows.leasing import LEASED


@pytest_asyncio.fixture(scope="session")
async def client() -> AsyncIterator[Client]:
    server = await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(Path(sysconfig.get_path("scripts")) / "temporal-test-server"),
        data_converter=pydantic_data_converter,
    )
    async with server as environment:
        yield environment.client


async def run(client: Client, name: str) -> tuple[Cast, JobOutcome]:
    return await play(client, f"live-{name}", scenarios()[name])


def outcomes(cast: Cast) -> list[str]:
    """How each lease ended; every lease asked for must be given back exactly once, in order."""
    assert [lease_id for lease_id, _ in cast.releases] == cast.leases
    return [outcome for _, outcome in cast.releases]


async def test_success(client: Client) -> None:
    cast, outcome = await run(client, "succeeded")
    assert outcome.state == "SUCCEEDED"
    assert outcome.model is not None
    assert outcomes(cast) == ["completed", "completed"]
    assert cast.finished == [("SUCCEEDED", 2)]


@pytest.mark.parametrize(
    ("name", "kind", "released"),
    [
        ("invalid_dataset", FailureKind.INVALID_DATASET, []),
        ("numeric_failure", FailureKind.NUMERIC, ["failed"]),
        ("gate_refused", FailureKind.GATE_REFUSED, ["completed", "completed"]),
        ("lease_refused", FailureKind.USER_ERROR, ["failed"]),
    ],
)
async def test_a_verdict_fails_the_job_without_another_try(
    client: Client, name: str, kind: FailureKind, released: list[str]
) -> None:
    cast, outcome = await run(client, name)
    assert outcome.state == "FAILED"
    assert outcome.failure is not None
    assert outcome.failure.kind is kind
    assert outcomes(cast) == released
    assert cast.finished == [("FAILED", cast.attempt)]


@pytest.mark.parametrize("name", ["runner_crashed", "lease_lost"])
async def test_a_lost_attempt_is_replaced_under_a_new_lease(client: Client, name: str) -> None:
    cast, outcome = await run(client, name)
    assert outcome.state == "SUCCEEDED"
    assert outcomes(cast) == ["lost", "completed", "completed"]
    assert cast.finished == [("SUCCEEDED", 3)]


async def test_a_job_that_kills_every_attempt_is_given_up(client: Client) -> None:
    cast, outcome = await run(client, "attempts_exhausted")
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.ATTEMPTS_EXHAUSTED
    assert "signal 9" in outcome.failure.message
    assert outcomes(cast) == ["lost"] * LEASED.attempts


async def test_preemption_does_not_count_against_the_job(client: Client) -> None:
    cast, outcome = await run(client, "preempted")
    assert outcome.state == "SUCCEEDED"
    assert outcomes(cast) == ["preempted", "preempted", "completed", "completed"]
    assert cast.reasons[:2] == ["PREEMPTED: signal 9"] * 2


async def test_a_lost_attempt_says_why(client: Client) -> None:
    cast, _ = await run(client, "runner_crashed")
    assert cast.reasons == ["RUNNER_CRASHED: signal 9", "", ""]


async def test_a_lease_that_is_asked_back_is_given_back_and_another_asked_for(client: Client) -> None:
    cast, outcome = await run(client, "preempted_on_request")
    assert outcome.state == "SUCCEEDED"
    assert outcomes(cast) == ["preempted", "completed", "completed"]
    assert cast.reasons[0] == "DISPLACED: the lease was asked back: a machine goes to repair"


@pytest.mark.parametrize("name", ["paused_in_training", "paused_in_queue"])
async def test_a_pause_gives_the_lease_back_and_asks_for_none_until_resumed(client: Client, name: str) -> None:
    cast, outcome = await run(client, name)
    assert outcome.state == "SUCCEEDED"
    assert outcomes(cast) == ["paused", "completed", "completed"]
    assert cast.reasons[0] == "PAUSED: the job is to pause: for the demo"
    assert cast.confirmed.empty(), "a pause that ended is not confirmed again, however often it is asked for"


async def test_a_pause_waits_for_a_cpu_phase(client: Client) -> None:
    cast, outcome = await run(client, "paused_in_preparation")
    assert outcome.state == "SUCCEEDED"
    assert cast.phases == ["prepare", "pause 1"]
    assert outcomes(cast) == ["completed", "completed"]


async def test_a_workflow_that_begins_paused_does_nothing_before_it_is_resumed(client: Client) -> None:
    cast, outcome = await run(client, "begun_paused")
    assert outcome.state == "SUCCEEDED"
    assert cast.phases == ["pause 3", "prepare"]


async def test_a_job_whose_last_phase_ends_while_it_is_to_pause_ends(client: Client) -> None:
    cast, outcome = await run(client, "paused_in_the_last_phase")
    assert outcome.state == "SUCCEEDED"
    assert cast.confirmed.empty()


async def test_a_pause_that_is_taken_back_costs_a_lease_and_nothing_else(client: Client) -> None:
    cast, outcome = await run(client, "pause_taken_back")
    assert outcome.state == "SUCCEEDED"
    assert outcomes(cast) == ["paused", "completed", "completed"]
    assert cast.confirmed.empty()


@pytest.mark.parametrize("name", ["granted_while_paused", "granted_while_withdrawn"])
async def test_a_grant_that_overtakes_the_pause_moves_the_attempt_on(client: Client, name: str) -> None:
    cast, outcome = await run(client, name)
    assert outcome.state == "SUCCEEDED"
    assert outcomes(cast) == ["paused", "completed", "completed"]


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("cancelled_in_training", ["cancelled"]),
        ("cancelled_in_queue", ["cancelled"]),
        ("cancelled_while_paused", ["paused"]),
    ],
)
async def test_cancellation_gives_everything_back(client: Client, name: str, released: list[str]) -> None:
    cast, outcome = await run(client, name)
    assert outcome.state == "CANCELLED"
    assert outcomes(cast) == released
    assert [state for state, _ in cast.finished] == ["CANCELLED"]


async def test_a_grant_that_overtakes_the_cancellation_moves_the_attempt_on(client: Client) -> None:
    cast, outcome = await run(client, "granted_while_cancelled")
    assert outcome.state == "CANCELLED"
    assert cast.finished == [("CANCELLED", 1)]
