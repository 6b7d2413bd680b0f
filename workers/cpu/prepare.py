"""The PREPARE phase: fetch and verify the data, stage the base model, validate, split and tokenise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from temporalio import activity

from control_plane.jobs.states import FailureKind, JobPhase
from control_plane.settings import TelemetrySettings
from headway_client import telemetry
from workers.activities import heartbeating, translated, verdict_of
from workers.control_plane import ControlPlane
from workers.cpu.base_models import BaseModels
from workers.cpu.programs import run_program
from workers.programs import runner_environment
from workers.runner.specs import ImportBaseModelOk, ImportBaseModelSpec, PrepareOk, PrepareSpec
from workers.scratch import Scratch
from workers.storage import ObjectMissingError, ObjectStore
from workers.stored_files import project_prefix, upload
from workers.workflows.contracts import JobInput, PhaseContext, PreparedData, StoredFiles

_CHILD_GRACE_SECONDS = 5.0
"""Programs of this phase keep nothing, so they are not given long."""


class PrepareActivity:
    """The activity `prepare` with what it needs."""

    def __init__(
        self,
        control_plane: ControlPlane,
        store: ObjectStore,
        base_models: BaseModels,
        scratch: Scratch,
        telemetry_settings: TelemetrySettings,
    ) -> None:
        self._control_plane = control_plane
        self._store = store
        self._base_models = base_models
        self._scratch = scratch
        self._telemetry = telemetry_settings

    @activity.defn
    async def prepare(self, context: PhaseContext) -> PreparedData:
        """Makes the tokenised, split data of a job. Safe to repeat: equal input gives equal files under equal names."""
        with translated(context), self._scratch.workdir("prepare") as workdir:
            async with heartbeating():
                await self._control_plane.start_phase(context, JobPhase.PREPARE)
                prepared, found = await self._prepare(context.job, workdir)
                await self._control_plane.finish_phase(context, JobPhase.PREPARE, _detail(prepared, found))
                return prepared

    async def _prepare(self, job: JobInput, workdir: Path) -> tuple[PreparedData, PrepareOk]:
        dataset_path = workdir / "dataset.jsonl"
        with telemetry.tracer().start_as_current_span("fetch dataset"):
            await asyncio.to_thread(self._fetch_dataset, job, dataset_path)
        base_model, base_model_dir = await self._base_models.stage(job, workdir, self._run_import)
        try:
            return await self._tokenise(job, dataset_path, base_model, base_model_dir, workdir)
        finally:
            self._base_models.release(base_model_dir)

    async def _tokenise(
        self, job: JobInput, dataset_path: Path, base_model: StoredFiles, base_model_dir: Path, workdir: Path
    ) -> tuple[PreparedData, PrepareOk]:
        spec = PrepareSpec(
            dataset_path=dataset_path,
            base_model_dir=base_model_dir,
            output_dir=workdir / "prepare",
            max_tokens=job.spec.training.max_tokens,
            eval_fraction=job.spec.dataset.eval_fraction,
            split_seed=job.spec.dataset.split_seed,
        )
        environment = runner_environment(self._telemetry)
        found = await run_program("prepare", spec, PrepareOk, environment, grace_seconds=_CHILD_GRACE_SECONDS)
        with telemetry.tracer().start_as_current_span("upload prepared data"):
            data = spec.output_dir / "data"
            dataset = await asyncio.to_thread(upload, self._store, data, project_prefix(job.project))
        prepared = PreparedData(
            dataset=dataset,
            base_model=base_model,
            train_rows=found.train_rows,
            eval_rows=found.eval_rows,
            train_tokens=found.train_tokens,
            eval_tokens=found.eval_tokens,
        )
        return prepared, found

    async def _run_import(self, spec: ImportBaseModelSpec, ok_type: type[ImportBaseModelOk]) -> ImportBaseModelOk:
        environment = runner_environment(self._telemetry)
        return await run_program("import_base_model", spec, ok_type, environment, grace_seconds=_CHILD_GRACE_SECONDS)

    def _fetch_dataset(self, job: JobInput, path: Path) -> None:
        try:
            self._store.get_file(job.dataset_uri, path, job.spec.dataset.sha256)
        except ObjectMissingError as error:
            message = f"dataset {job.spec.dataset.name} is registered, but {error}; upload and register it again"
            raise verdict_of(FailureKind.INVALID_DATASET, message) from error


def _detail(prepared: PreparedData, found: PrepareOk) -> dict[str, Any]:
    # With what was stored: it is kept for as long as the job's record names it.
    return found.model_dump() | {"dataset": prepared.dataset.model_dump()}
