"""Base models: converted once, found by what they were made of, staged from the store afterwards."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from control_plane.jobs.spec import FineTuneSpec
from control_plane.settings import S3Settings
from workers.cpu.base_models import BaseModels
from workers.file_cache import FileCache
from workers.runner.specs import ImportBaseModelOk, ImportBaseModelSpec
from workers.storage import IntegrityError, ObjectStore
from workers.workflows.contracts import JobInput

SOURCE = b"a model in another form"
SHA256 = hashlib.sha256(SOURCE).hexdigest()


class Machine:
    """One machine's view: a cache of its own, and an importer that counts."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.folder = folder
        self.imports = 0
        self.models = BaseModels(store, FileCache(folder / "cache", store, 2**30))

    async def run_import(self, spec: ImportBaseModelSpec, ok_type: type[ImportBaseModelOk]) -> ImportBaseModelOk:
        self.imports += 1
        assert spec.source_path.read_bytes() == SOURCE
        model = spec.output_dir / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(SOURCE[::-1])
        await asyncio.sleep(0)
        return ok_type(architecture="llama", parameters=1)

    async def stage(self, job: JobInput, name: str = "work") -> Path:
        workdir = self.folder / name
        workdir.mkdir(parents=True)
        return (await self.models.stage(job, workdir, self.run_import))[1]


@pytest.fixture
def store(s3_settings: S3Settings) -> ObjectStore:
    return ObjectStore(s3_settings)


@pytest.fixture
def job(store: ObjectStore) -> JobInput:
    store.put_bytes("projects/p/blobs/source", SOURCE)
    return job_with(store.uri("projects/p/blobs/source"), SHA256)


def job_with(uri: str, sha256: str) -> JobInput:
    spec = FineTuneSpec.model_validate({"base_model": "base", "dataset": {"name": "faq"}, "output_model": "answers"})
    return JobInput(
        job_id="j",
        project="p",
        spec=spec,
        spec_sha256="",
        dataset_uri="",
        base_model_uri=uri,
        base_model_sha256=sha256,
        trace_id="",
    )


async def test_one_conversion_serves_every_machine(store: ObjectStore, job: JobInput, tmp_path: Path) -> None:
    first, second = Machine(store, tmp_path / "a"), Machine(store, tmp_path / "b")
    place, again = await asyncio.gather(first.stage(job), first.stage(job, "again"))
    assert place == again
    assert (place / "model.safetensors").read_bytes() == SOURCE[::-1]
    assert ((await second.stage(job)) / "model.safetensors").read_bytes() == SOURCE[::-1]
    assert (first.imports, second.imports) == (1, 0)


async def test_two_machines_that_convert_at_once_agree(store: ObjectStore, job: JobInput, tmp_path: Path) -> None:
    machines = [Machine(store, tmp_path / name) for name in ("a", "b")]
    places = await asyncio.gather(*(machine.stage(job) for machine in machines))
    assert places[0].name == places[1].name
    assert all((place / "model.safetensors").exists() for place in places)


async def test_a_missing_source_is_a_verdict(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ApplicationError, match="register it again") as caught:
        await Machine(store, tmp_path).stage(job_with(store.uri("projects/p/blobs/none"), SHA256))
    assert caught.value.type == "INVALID_BASE_MODEL"
    assert caught.value.non_retryable


async def test_a_source_with_other_bytes_is_never_converted(store: ObjectStore, job: JobInput, tmp_path: Path) -> None:
    machine = Machine(store, tmp_path)
    with pytest.raises(IntegrityError):
        await machine.stage(job_with(job.base_model_uri, "0" * 64))
    assert machine.imports == 0
