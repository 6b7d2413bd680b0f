"""Where a training goes on from: the newest checkpoint that the store has whole and that the runner can use."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from headway_client import telemetry
from workers.control_plane import CommittedCheckpoint, ControlPlane
from workers.gpu.agent.spec import AgentSpec
from workers.manifest import ManifestError, checkpoint_name, verify_checkpoint
from workers.storage import IntegrityError, ObjectMissingError, ObjectStore
from workers.stored_files import download, is_below, project_prefix

_FETCHES_MAX = 3
"""How often checkpoints are fetched when this machine damages them, before they are avoided."""
_log = structlog.get_logger()


Tell = Callable[[str, str], None]
"""Writes a line of the attempt's log: its text and its level."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A checkpoint that is here, verified."""

    step: int
    directory: Path


class Resumption:
    """Finds where an attempt goes on from, and finds it anew when the runner cannot use what was found."""

    def __init__(self, spec: AgentSpec, control_plane: ControlPlane, store: ObjectStore, tell: Tell) -> None:
        self._spec = spec
        self._control_plane = control_plane
        self._store = store
        self._tell = tell
        self._refused: set[int] = set()
        self._fetches_left = _FETCHES_MAX

    async def point(self) -> ResumePoint | None:
        """Fetches the checkpoint to go on from, and records which it is and which were passed over. None: the beginning.

        Raises:
            HeadwayError, StorageError: a server is out of reach, which says nothing about a checkpoint.
        """
        job_id, attempt = self._spec.context.job.job_id, self._spec.grant.attempt
        with telemetry.tracer().start_as_current_span("find checkpoint") as span:
            resume, damaged = await newest_good(
                self._spec, self._control_plane, self._store, self._spec.workdir / "resume", self._refused
            )
            step = 0 if resume is None else resume.step
            span.set_attribute("headway.step", step)
        if attempt > 1 or damaged:
            await self._control_plane.record_resume(job_id, attempt, step, damaged)
            passed_over = f", past damaged ones at {damaged}" if damaged else ""
            self._tell(f"attempt {attempt} goes on from step {step}{passed_over}", "INFO")
        return resume

    async def refuse(self, resume: ResumePoint) -> None:
        """The runner could not use a checkpoint: one that this machine damaged is fetched again, any other is avoided."""
        self._fetches_left -= 1
        if self._fetches_left > 0 and not await asyncio.to_thread(_is_intact, resume):
            said = "was damaged on this machine after it was fetched; it is fetched again"
        else:
            self._refused.add(resume.step)
            said = "cannot be used; the one before it is tried"
        self._tell(f"checkpoint {resume.step} {said}", "WARNING")


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
                if not is_below(store, checkpoint.files, project_prefix(spec.context.job.project)):
                    raise ObjectMissingError(checkpoint.files.manifest_uri)
                await asyncio.to_thread(_fetch, store, checkpoint, target)
            except (ManifestError, IntegrityError, ObjectMissingError) as error:
                _log.warning("a checkpoint is damaged and passed over", step=checkpoint.step, fault=str(error))
                damaged.append(checkpoint.step)
                continue
            return ResumePoint(checkpoint.step, target), damaged
        before_step = page[-1].step
    return None, damaged


def _is_intact(checkpoint: ResumePoint) -> bool:
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
