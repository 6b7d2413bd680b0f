"""The small parts of the workers that need nothing running."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from control_plane.settings import TelemetrySettings
from workers.cpu.model_card import model_card
from workers.gpu.devices import Accelerators, Devices, detect, kind_of
from workers.lineage import code_version, environment_lock_sha256
from workers.programs import describe_exit, runner_environment
from workers.scratch import Scratch
from workers.stored_files import FileSet, StoredFile
from workers.workflows import contracts as c

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", "a\\b", "a\0b"])
def test_a_manifest_cannot_name_files_elsewhere(name: str) -> None:
    with pytest.raises(ValidationError):
        StoredFile(name=name, uri="s3://b/k", size=1, sha256="0" * 64)


def test_equal_sets_have_equal_manifests() -> None:
    files = tuple(StoredFile(name=name, uri="s3://b/k", size=1, sha256="0" * 64) for name in ("a", "b"))
    assert FileSet(files=files).to_bytes() == FileSet.model_validate_json(FileSet(files=files).to_bytes()).to_bytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU (Max-Q)", "geforce-rtx-4090-laptop-gpu-max"),
        ("Quadro  T400 4GB", "quadro-t400-4gb"),
        ("???", "gpu"),
    ],
)
def test_kind_of_accelerator(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA H200\necho NVIDIA H200\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert detect(None) == Accelerators("h200", 2)
    assert detect(1) == Accelerators("h200", 1)
    program.write_text("#!/bin/sh\nexit 9\n")  # As with a driver that does not answer.
    assert detect(None) == Accelerators("cpu", 1)


async def test_devices_are_never_shared() -> None:
    devices = Devices(Accelerators("h200", 2))
    async with devices.held(1) as first, devices.held(1) as second:
        assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
        entered = asyncio.Event()

        async def third() -> None:
            async with devices.held(1):
                entered.set()

        waiting = asyncio.create_task(third())
        await asyncio.sleep(0)
        assert not entered.is_set()
    await asyncio.wait_for(waiting, 1)
    assert entered.is_set()


async def test_a_machine_without_gpu_shows_none() -> None:
    async with Devices(Accelerators("cpu", 1)).held(1) as shown:
        assert shown == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("code", "text"), [(1, "exit code 1"), (139, "signal SIGSEGV"), (143, "signal SIGTERM"), (255, "exit code 255")]
)
def test_exit_codes_for_people(code: int, text: str) -> None:
    assert describe_exit(code) == text


def test_a_runner_gets_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HEADWAY_SETTINGS", "HEADWAY_S3__SECRET_ACCESS_KEY", "LD_PRELOAD"):
        monkeypatch.setenv(name, "canary")
    settings = TelemetrySettings(otlp_traces_url="http://127.0.0.1:1/v1/traces", otlp_headers={"k": "v"})
    environment = runner_environment(settings, EXTRA="1")
    assert "canary" not in environment.values()
    assert environment["HEADWAY_OTLP_TRACES_URL"] == "http://127.0.0.1:1/v1/traces"
    assert environment["HEADWAY_OTLP_HEADERS"] == '{"k": "v"}'
    assert environment["EXTRA"] == "1"
    assert "PATH" in environment


def test_a_new_start_removes_what_dead_ones_left_and_nothing_else(tmp_path: Path) -> None:
    living = Scratch(tmp_path, "gpu", "w")
    dead = tmp_path / "gpu/w/dead"
    (dead / "train-1").mkdir(parents=True)
    (dead / "lock").touch()
    other = tmp_path / "gpu/other/dead"
    other.mkdir(parents=True)
    new = Scratch(tmp_path, "gpu", "w")
    assert not dead.exists()
    assert other.exists()
    assert {path.name for path in (tmp_path / "gpu/w").iterdir()} == {living.incarnation, new.incarnation}
    with new.workdir("train") as folder:
        (folder / "file").touch()
    assert not folder.exists()
    for scratch in (living, new):
        scratch.close()
    assert list((tmp_path / "gpu/w").iterdir()) == []


def test_the_agent_imports_neither_temporal_nor_torch() -> None:
    check = "import sys, workers.gpu.agent.__main__; print([n for n in ('temporalio', 'torch', 'mlflow') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_lineage_of_this_checkout() -> None:
    assert environment_lock_sha256() == hashlib.sha256((ROOT / "requirements/all.lock").read_bytes()).hexdigest()
    assert code_version()


def test_a_sample_cannot_write_markup_into_the_model_card() -> None:
    files = c.StoredFiles(manifest_uri="s3://b/m", manifest_sha256="0" * 64)
    prepared = c.PreparedData(dataset=files, base_model=files, train_rows=8, eval_rows=2, train_tokens=80, eval_tokens=20)
    trained = c.TrainedModel(adapter=files, final_loss=2.0, steps=4, tokens_per_second=9.0)
    sample = c.Sample(prompt="# Title\n<script>", before="*a*\n\n## b", after="[x](javascript:1)")
    losses = {"base_loss": 4.0, "base_loss_se": 0.1, "tuned_loss": 3.0, "tuned_loss_se": 0.1, "gain": 1.0, "gain_se": 0.2}
    scores = c.Scores(**losses, rows=2, samples=(sample,), records=files)
    spec = {"base_model": "base", "dataset": {"name": "faq", "sha256": "1" * 64}, "output_model": "answers"}
    job = c.JobInput.model_validate(
        {
            "job_id": "j",
            "project": "demo",
            "spec": spec,
            "spec_sha256": "2" * 64,
            "dataset_uri": "",
            "base_model_uri": "",
            "base_model_sha256": "3" * 64,
            "trace_id": "",
        }
    )
    context = c.PhaseContext(job=job, attempt=2)
    card = model_card(c.PackageInput(context=context, prepared=prepared, trained=trained, scores=scores))
    assert "| gain, paired | 1.0000 | 0.2000 |" in card
    assert "**\\# Title \\<script\\>**" in card
    assert "- before: \\*a\\* \\#\\# b" in card
    assert "- after: \\[x\\](javascript:1)" in card
    assert "1" * 64 in card
