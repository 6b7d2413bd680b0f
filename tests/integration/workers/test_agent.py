"""The agent against a real control plane, log service and object store; its runner plays a script."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from control_plane.jobs.states import FailureKind
from headway.logs.v1 import log_record_pb2
from tests.integration.control_plane.callers import WORKER_TOKEN
from tests.integration.workers.conftest import LEASE_SECONDS, Attempt, World
from tests.waiting import until
from workers.gpu.agent.agent import exit_code
from workers.gpu.agent.spec import AgentExit, AgentResult
from workers.runner.exit_codes import ExitCode
from workers.stored_files import read_file_set
from workers.workflows.contracts import LossReason, StoredFiles


def processes(attempt: Attempt) -> list[Path]:
    """What runs of an attempt's runner now, as folders of /proc."""
    mark = str(attempt.spec.workdir).encode()
    found: list[Path] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark in (entry / "cmdline").read_bytes():
                    found.append(entry)
    return found


def runners(attempt: Attempt) -> list[str]:
    """Command lines of what still runs of an attempt's runner."""
    found: list[str] = []
    for process in processes(attempt):
        with suppress(OSError):  # it may have ended since it was seen
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def progress(records: list[log_record_pb2.LogRecord]) -> list[tuple[int, int]]:
    return [(record.attempt, record.progress.step) for record in records if record.WhichOneof("body") == "progress"]


def assert_lost(result: AgentResult, reason: LossReason) -> str:
    assert result.loss is not None, result
    assert result.loss.reason is reason, result.loss
    return result.loss.message


async def test_a_phase_from_its_inputs_to_its_adapter(world: World) -> None:
    attempt = await world.attempt()
    result = await attempt.run()
    assert exit_code(result) == ExitCode.DONE
    assert result.trained is not None
    assert result.trained.steps == 4
    [adapter] = read_file_set(world.store, result.trained.adapter).files
    assert adapter.name == "adapter_config.json"
    assert [event["step"] for event in await attempt.events("CHECKPOINT_COMMITTED")] == [2, 4]
    assert await attempt.events("RESUMED") == []
    records = await attempt.records()
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert progress(records) == [(1, step) for step in (1, 2, 3, 4)]
    texts = [record.line.text for record in records if record.line.source == "runner"]
    assert texts == [f"step {step}" for step in (1, 2, 3, 4)]
    assert runners(attempt) == []
    # What is committed is removed here, so that a long run does not fill the disk.
    assert list((attempt.spec.workdir / "train/checkpoints").iterdir()) == []


async def test_an_attempt_goes_on_past_damaged_checkpoints(world: World) -> None:
    first = await world.attempt({5: "die"}, steps=6)
    assert_lost(await first.run(), LossReason.RUNNER_CRASHED)
    await damage_checkpoint(world, step=4)
    second = await world.attempt(steps=6)
    result = await second.run()
    assert result.trained is not None
    assert await second.events("RESUMED") == [{"step": 2, "damaged_steps": [4]}]
    steps = [step for attempt, step in progress(await second.records()) if attempt == 2]
    assert steps == [3, 4, 5, 6]


async def test_a_checkpoint_that_the_runner_refuses_is_passed_over(world: World) -> None:
    first = await world.attempt({5: "die"}, steps=6)
    assert_lost(await first.run(), LossReason.RUNNER_CRASHED)
    second = await world.attempt({"from 4": "refuse"}, steps=6)
    assert (await second.run()).trained is not None
    assert await second.events("RESUMED") == [{"step": 4, "damaged_steps": []}, {"step": 2, "damaged_steps": [4]}]
    assert [step for attempt, step in progress(await second.records()) if attempt == 2] == [3, 4, 5, 6]


async def test_a_checkpoint_that_its_machine_damages_is_fetched_again(world: World) -> None:
    first = await world.attempt({5: "die"}, steps=6)
    assert_lost(await first.run(), LossReason.RUNNER_CRASHED)
    second = await world.attempt({"from 4": "damage"}, steps=6)
    assert (await second.run()).trained is not None
    assert await second.events("RESUMED") == [{"step": 4, "damaged_steps": []}]
    records = await second.records()
    assert [step for attempt, step in progress(records) if attempt == 2] == [5, 6]
    assert [line for line in records if "damaged on this machine" in line.line.text]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    mount = shutil.which("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4_096))
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_a_full_disk_loses_the_attempt_and_is_named(world: World, full_disk: Path) -> None:
    attempt = await world.attempt()
    attempt.spec = attempt.spec.model_copy(update={"workdir": full_disk})
    message = assert_lost(await attempt.run(), LossReason.PLATFORM_UNAVAILABLE)
    assert "no room below worker.scratch_dir" in message


async def damage_checkpoint(world: World, step: int) -> None:
    """One flipped bit in one file of a committed checkpoint."""
    [row] = await world.api.sql(
        "SELECT manifest_uri, manifest_sha256 FROM checkpoints WHERE job_id = :job_id AND step = :step",
        job_id=world.job_id,
        step=step,
    )
    stored = StoredFiles(manifest_uri=row.manifest_uri, manifest_sha256=row.manifest_sha256)
    [state] = [file for file in read_file_set(world.store, stored).files if file.name == "state.json"]
    content = bytearray(world.store.get_bytes(state.uri))
    content[0] ^= 1
    world.overwrite(state.uri, bytes(content))


async def test_asked_to_stop_it_saves_and_says_preempted(world: World) -> None:
    attempt = await world.attempt({3: "wait"})
    running = asyncio.create_task(attempt.run())
    await attempt.until_step(3)
    attempt.stop.set()
    result = await running
    assert "at step 3" in assert_lost(result, LossReason.PREEMPTED)
    assert exit_code(result) == ExitCode.PREEMPTED
    assert [event["step"] for event in await attempt.events("CHECKPOINT_COMMITTED")] == [2, 3]


async def test_the_training_process_sees_no_credential(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a deployment may pass the worker's token on; what the worker knows, its runner must not.
    monkeypatch.setenv("HEADWAY_WORKER__TOKEN", WORKER_TOKEN)
    attempt = await world.attempt({3: "wait"})
    running = asyncio.create_task(attempt.run())
    await attempt.until_step(3)
    seen = [process.read_bytes() for process in processes(attempt) for process in (process / "environ", process / "cmdline")]
    assert len(seen) >= 2
    seen += [path.read_bytes() for path in attempt.spec.workdir.rglob("*") if path.is_file()]
    attempt.stop.set()
    await running
    for content in seen:
        assert WORKER_TOKEN.encode() not in content
        assert b"hwa_" not in content
        assert b"HEADWAY_WORKER" not in content


async def test_asked_to_stop_before_the_runner_began_it_does_not_begin(world: World) -> None:
    attempt = await world.attempt()
    attempt.stop.set()
    assert_lost(await attempt.run(), LossReason.PREEMPTED)
    assert progress(await attempt.records()) == []


async def test_a_crash_is_told_with_the_last_words(world: World) -> None:
    attempt = await world.attempt({3: "die"})
    result = await attempt.run()
    message = assert_lost(result, LossReason.RUNNER_CRASHED)
    assert "SIGSEGV" in message
    assert "about to fall over" in message
    assert exit_code(result) == AgentExit.RUNNER_CRASHED
    assert [event["step"] for event in await attempt.events("CHECKPOINT_COMMITTED")] == [2]


async def test_a_verdict_of_the_runner_is_passed_on(world: World) -> None:
    result = await (await world.attempt({2: "nan"})).run()
    assert result.failure is not None
    assert result.failure.kind is FailureKind.NUMERIC
    assert exit_code(result) == ExitCode.NUMERIC


async def test_noise_of_the_runner_ends_nothing(world: World) -> None:
    attempt = await world.attempt({1: "noise"})
    assert (await attempt.run()).trained is not None
    lines = [record.line for record in await attempt.records() if record.WhichOneof("body") == "line"]
    assert len([line for line in lines if "event that is none" in line.text]) == 4
    [cut] = [line.text for line in lines if line.source == "stdout"]
    assert len(cut) < 17_000
    assert cut.endswith("[cut, 40000 bytes in all]")


async def test_a_lease_that_ended_kills_the_runner(world: World) -> None:
    attempt = await world.attempt({3: "wait"})
    running = asyncio.create_task(attempt.run())
    await attempt.until_step(3)
    await world.api.sql(
        "UPDATE leases SET state = 'ENDED', ended_at = now(), outcome = 'lost' WHERE lease_id = :lease_id",
        lease_id=attempt.spec.grant.lease_id,
    )
    result = await running
    assert_lost(result, LossReason.LEASE_LOST)
    assert exit_code(result) == AgentExit.LEASE_LOST
    assert runners(attempt) == []


async def test_a_replaced_attempt_changes_nothing_more(world: World) -> None:
    old = await world.attempt({3: "wait"})
    running = asyncio.create_task(old.run())
    await old.until_step(3)
    new = await world.attempt()
    # It is asked to stop and saves step 3, as one does that was frozen meanwhile.
    old.stop.set()
    assert_lost(await running, LossReason.LEASE_LOST)
    assert [event["step"] for event in await old.events("CHECKPOINT_COMMITTED")] == [2]
    assert (await new.run()).trained is not None
    assert max(step for attempt, step in progress(await new.records()) if attempt == 1) == 3


async def test_without_the_control_plane_it_ends_before_its_lease_does(world: World) -> None:
    attempt = await world.attempt({3: "wait"})
    running = asyncio.create_task(attempt.run())
    await attempt.until_step(3)
    stopped = time.monotonic()
    await world.control_plane.stop()
    result = await asyncio.wait_for(running, 30)
    assert "could not be renewed" in assert_lost(result, LossReason.LEASE_LOST)
    assert runners(attempt) == []
    # From the last renewal to the end of trust, and the time to stop the server and to notice.
    assert time.monotonic() - stopped < LEASE_SECONDS + 5


async def test_logs_go_on_without_a_hole_after_the_control_plane_was_away(world: World) -> None:
    await world.control_plane.with_leases_of(60)
    attempt = await world.attempt({3: "wait"})
    running = asyncio.create_task(attempt.run())
    await attempt.until_step(2)
    await world.control_plane.stop()
    attempt.stop.set()
    await until(lambda: not runners(attempt), lambda: runners(attempt))
    await world.control_plane.start()
    assert_lost(await running, LossReason.PREEMPTED)
    records = await attempt.records()
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert progress(records) == [(1, step) for step in (1, 2, 3)]
    assert [event["step"] for event in await attempt.events("CHECKPOINT_COMMITTED")] == [2, 3]
