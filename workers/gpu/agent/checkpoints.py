"""Checkpoints between the runner's directory and the object store: out as they are finished, in when an attempt resumes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from headway_client import telemetry
from headway_client.errors import HeadwayError
from workers.control_plane import CommittedCheckpoint, ControlPlane, fenced_off
from workers.gpu.agent.logs import LogForwarder
from workers.gpu.agent.spec import AgentSpec
from workers.manifest import ManifestError, checkpoint_name, verify_checkpoint
from workers.storage import IntegrityError, ObjectMissingError, ObjectStore, StorageError
from workers.stored_files import download, project_prefix, upload

_RETRY_SECONDS_MAX = 15.0
_log = structlog.get_logger()


class FencedOffError(Exception):
    """The control plane says that this attempt is not current, or holds no lease any more."""


class CheckpointUploader:
    """Uploads and commits checkpoints one after another, beside the training."""

    def __init__(self, spec: AgentSpec, control_plane: ControlPlane, store: ObjectStore, logs: LogForwarder) -> None:
        self._job = spec.context.job
        self._attempt = spec.grant.attempt
        self._control_plane = control_plane
        self._store = store
        self._logs = logs
        self._queue: asyncio.Queue[tuple[int, Path]] = asyncio.Queue()

    def submit(self, step: int, directory: Path) -> None:
        """Takes a complete checkpoint; its directory is removed once it is committed."""
        self._queue.put_nowait((step, directory))

    async def drain(self) -> None:
        """Waits until everything taken is committed."""
        await self._queue.join()

    async def upload(self) -> None:
        """Uploads for ever, patient with servers that are away.

        Raises:
            FencedOffError: the attempt may write no more.
        """
        while True:
            step, directory = await self._queue.get()
            with telemetry.tracer().start_as_current_span("upload checkpoint", attributes={"headway.step": step}):
                await self._persist(step, directory)
            self._queue.task_done()

    async def _persist(self, step: int, directory: Path) -> None:
        wait = 0.5
        while True:
            try:
                await self._try(step, directory)
                return
            except (ManifestError, IntegrityError) as error:
                self._logs.line(f"checkpoint {step} is damaged and not kept: {error}", "agent", "ERROR")
                return
            except HeadwayError as error:
                if fenced_off(error):
                    raise FencedOffError(error.message) from error
                fault: Exception = error
            except StorageError as error:
                fault = error
            self._logs.line(f"checkpoint {step} is not stored yet, trying again: {fault}", "agent", "WARNING")
            await asyncio.sleep(wait)
            wait = min(2 * wait, _RETRY_SECONDS_MAX)

    async def _try(self, step: int, directory: Path) -> None:
        await asyncio.to_thread(verify_checkpoint, directory)
        files = await asyncio.to_thread(upload, self._store, directory, project_prefix(self._job.project))
        await self._control_plane.commit_checkpoint(self._job.job_id, self._attempt, CommittedCheckpoint(step, files))
        self._logs.line(f"checkpoint {step} is stored", "agent")
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where an attempt goes on from."""

    step: int
    directory: Path


async def newest_good(
    spec: AgentSpec, control_plane: ControlPlane, store: ObjectStore, directory: Path, refused: Collection[int] = ()
) -> tuple[ResumePoint | None, list[int]]:
    """Fetches the newest committed checkpoint that is undamaged; also returns the steps of those passed over.

    Args:
        spec: names the job.
        control_plane: knows the checkpoints.
        store: holds them.
        directory: where checkpoints go, each in a folder of its own; what is there already is fetched anew.
        refused: steps whose checkpoints the runner could not use; they count as damaged.

    Raises:
        HeadwayError, StorageError: a server is out of reach, which says nothing about a checkpoint.
    """
    damaged: list[int] = []
    before_step = 0
    job_id, attempt = spec.context.job.job_id, spec.grant.attempt
    while page := await control_plane.list_checkpoints(job_id, attempt, before_step=before_step):
        for checkpoint in page:
            target = directory / checkpoint_name(checkpoint.step)
            try:
                if checkpoint.step in refused:
                    raise ManifestError(target.name, "a checkpoint that the runner can use", "one that it refused")
                await asyncio.to_thread(_fetch, store, checkpoint, target)
            except (ManifestError, IntegrityError, ObjectMissingError) as error:
                _log.warning("a checkpoint is damaged and passed over", step=checkpoint.step, fault=str(error))
                damaged.append(checkpoint.step)
                continue
            return ResumePoint(checkpoint.step, target), damaged
        before_step = page[-1].step
    return None, damaged


def is_intact(checkpoint: ResumePoint) -> bool:
    """Whether a fetched checkpoint is still what was fetched. Reads all of it."""
    try:
        verify_checkpoint(checkpoint.directory)
    except (ManifestError, OSError):
        return False
    return True


def _fetch(store: ObjectStore, checkpoint: CommittedCheckpoint, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    download(store, checkpoint.files, target)
    verify_checkpoint(target)
