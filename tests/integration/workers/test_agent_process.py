"""The activity that runs an agent as a process: what becomes of one that cannot even begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from control_plane.settings import WorkerSettings
from tests.integration.workers.conftest import World
from workers.control_plane import ControlPlane
from workers.gpu.activities import LeasedActivities
from workers.gpu.capacity import Accelerators
from workers.gpu.devices import Devices
from workers.scratch import Scratch
from workers.workflows.contracts import AttemptLoss, LossReason, TrainInput


async def test_the_last_words_of_an_agent_that_cannot_begin_are_in_its_loss(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt = await world.attempt()
    monkeypatch.setenv("HEADWAY_SETTINGS", str(tmp_path / "nowhere.json"))
    control_plane = ControlPlane.of(world.settings, "the test")
    scratch = Scratch(tmp_path / "scratch", "gpu", "w")
    activities = LeasedActivities(control_plane, scratch, Devices(Accelerators(kind="cpu", count=1)), WorkerSettings())
    spec = attempt.spec
    argument = TrainInput(context=spec.context, grant=spec.grant, prepared=spec.prepared, run_seconds_left=60.0)
    with pytest.raises(ApplicationError) as lost:
        await ActivityEnvironment().run(activities.train, argument)
    scratch.close()
    await control_plane.close()
    loss = AttemptLoss.model_validate(lost.value.details[0])
    assert loss.reason is LossReason.AGENT_LOST
    assert "exit code 1: " in loss.message
    assert "nowhere.json" in loss.message
    # All of it is where operators look.
    assert "Traceback" in capfd.readouterr().err
