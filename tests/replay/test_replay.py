"""Recorded histories replay under today's workflow code, and a change that would corrupt running jobs does not."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenarios import scenarios
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

import workers.workflows
from workers.workflows import contracts as c
from workers.workflows.fine_tune import FineTuneWorkflow
from workers.workflows.steps import GATE, PREPARE

HISTORIES = Path(__file__).parent / "histories"


@workflow.defn(name="FineTuneWorkflow", sandboxed=False)
class GateBeforeTraining:
    """The seeded bad change: two phases have changed places."""

    @workflow.run
    async def run(self, job: c.JobInput) -> c.JobOutcome:
        await GATE.run(c.GateInput.model_construct(context=c.PhaseContext(job=job, attempt=0)))
        await PREPARE.run(c.PhaseContext(job=job, attempt=0))
        return c.JobOutcome(state="SUCCEEDED")

    @workflow.signal
    def lease_granted(self, grant: c.LeaseGrant) -> None: ...

    @workflow.signal
    def lease_lost(self, end: c.LeaseEnd) -> None: ...


def workflow_classes() -> Iterator[type]:
    for module_info in pkgutil.walk_packages(workers.workflows.__path__, "workers.workflows."):
        module = importlib.import_module(module_info.name)
        for _, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ == module.__name__ and hasattr(found, "__temporal_workflow_definition"):
                yield found


def history(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(path.stem, path.read_text())


def replayer(*workflows: type) -> Replayer:
    return Replayer(workflows=list(workflows), data_converter=pydantic_data_converter)


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda path: path.stem)
async def test_recorded_history_replays(path: Path) -> None:
    await replayer(FineTuneWorkflow).replay_workflow(history(path))


async def test_a_change_of_order_fails_replay() -> None:
    with pytest.raises(workflow.NondeterminismError):
        await replayer(GateBeforeTraining).replay_workflow(history(HISTORIES / "succeeded.json"))


def test_no_workflow_lacks_a_history() -> None:
    recorded: set[Any] = set()
    for path in HISTORIES.glob("*.json"):
        started = json.loads(path.read_text())["events"][0]["workflowExecutionStartedEventAttributes"]
        recorded.add(started["workflowType"]["name"])
    defined = {vars(found)["__temporal_workflow_definition"].name for found in workflow_classes()}
    assert defined
    assert defined == recorded


def test_every_scenario_has_a_history() -> None:
    assert {path.stem for path in HISTORIES.glob("*.json")} == set(scenarios())
