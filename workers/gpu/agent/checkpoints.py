"""Checkpoints from the runner's directory to the object store, as they are finished."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import structlog

from headway_client import telemetry
from headway_client.errors import HeadwayError
from workers.control_plane import CommittedCheckpoint, ControlPlane, fenced_off
from workers.gpu.agent.logs import LogForwarder
from workers.gpu.agent.spec import AgentSpec
from workers.manifest import ManifestError, metric_of, verify_checkpoint
from workers.storage import IntegrityError, ObjectStore, StorageError
from workers.stored_files import project_prefix, upload

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
        manifest = await asyncio.to_thread(verify_checkpoint, directory)
        files = await asyncio.to_thread(upload, self._store, directory, project_prefix(self._job.project))
        await self._control_plane.commit_checkpoint(
            self._job.job_id, self._attempt, CommittedCheckpoint(step, files, metric_of(manifest))
        )
        self._logs.line(f"checkpoint {step} is stored", "agent")
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
