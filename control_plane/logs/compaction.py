"""Finished logs move from the database to the object store.

A stretch of a log is put there under the hash of its bytes, read back, and only then, in one transaction, recorded as
archived and deleted here. Whatever is cut short leaves the log readable and is done again: an object that was put twice is the
same object.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.datasets.object_store import ObjectStore
from control_plane.db.engine import in_transaction
from control_plane.db.tables import jobs, log_archives, log_chunks
from control_plane.errors import RefusedError
from control_plane.logs import archives, store
from control_plane.logs.archives import Archive
from control_plane.logs.store import LogChunk, LogPosition

_log = structlog.get_logger()

_INTERVAL_SECONDS_MAX = 30.0
_JOBS_PER_ROUND = 50
_CHUNKS_PER_READ = 64

# Jobs with chunks are few beside all jobs: the index is walked from job to job, not over every chunk.
_DUE = text(
    """
    WITH RECURSIVE hot AS (
        (SELECT job_id FROM log_chunks ORDER BY job_id LIMIT 1)
        UNION ALL
        SELECT (SELECT job_id FROM log_chunks WHERE job_id > hot.job_id ORDER BY job_id LIMIT 1)
        FROM hot WHERE hot.job_id IS NOT NULL
    )
    SELECT hot.job_id, jobs.project FROM hot JOIN jobs USING (job_id)
    WHERE jobs.ended_at < now() - make_interval(secs => :seconds)
    ORDER BY jobs.ended_at LIMIT :jobs
    """
)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive chunks of one attempt."""

    attempt: int
    firsts: Sequence[int]
    last_sequence: int
    data: bytes


class LogCompaction:
    """Moves what is due, as often as a tenth of the time that logs stay, and every half minute at least."""

    def __init__(self, engine: AsyncEngine, objects: ObjectStore, hot_seconds: float) -> None:
        self._engine = engine
        self._objects = objects
        self._hot_seconds = hot_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="log compaction")

    async def stop(self) -> None:
        """Ends; what is under way is done again by the next that starts."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                while await compact(self._engine, self._objects, self._hot_seconds):
                    pass
            except (SQLAlchemyError, OSError, TimeoutError, RefusedError) as error:
                # Logs stay where they are, and are read there.
                _log.warning("log_compaction.waits", error=str(error))
            await asyncio.sleep(min(_INTERVAL_SECONDS_MAX, self._hot_seconds / 10))


async def compact(engine: AsyncEngine, objects: ObjectStore, hot_seconds: float) -> int:
    """Moves the logs of at most 50 jobs that have been final for so long; returns how many jobs.

    Raises:
        RefusedError: the object store does not answer, or did not keep what it was given.
    """
    async with engine.connect() as connection:
        due = (await connection.execute(_DUE, {"seconds": hot_seconds, "jobs": _JOBS_PER_ROUND})).all()
    for row in due:
        while await _move_stretch(engine, objects, str(row.job_id), row.project):
            pass
    return len(due)


async def _move_stretch(engine: AsyncEngine, objects: ObjectStore, job_id: str, project: str) -> bool:
    """Moves the first archive's worth of a job's chunks; says whether there were any."""
    stretch = await _first_stretch(engine, job_id)
    if stretch is None:
        return False
    sha256 = hashlib.sha256(stretch.data).hexdigest()
    key = archives.archive_key(project, sha256)
    archive = Archive(stretch.attempt, stretch.firsts[0], stretch.last_sequence, objects.uri(key), sha256, len(stretch.data))
    await objects.put(key, stretch.data)
    await archives.fetch(objects, archive)

    async def record(connection: AsyncConnection) -> None:
        await connection.execute(select(jobs.c.job_id).where(jobs.c.job_id == job_id).with_for_update())
        here = (
            log_chunks.c.job_id == job_id,
            log_chunks.c.attempt == stretch.attempt,
            log_chunks.c.first_sequence.in_(stretch.firsts),
        )
        deleted = (await connection.execute(delete(log_chunks).where(*here))).rowcount
        if deleted == len(stretch.firsts):
            values: dict[str, Any] = {name: getattr(archive, name) for name in Archive.__dataclass_fields__}
            await connection.execute(insert(log_archives).values(job_id=job_id, **values))
        elif deleted:
            raise AssertionError(f"{deleted} of {len(stretch.firsts)} chunks of job {job_id}: a final job's log has changed")

    # With no chunk left, another replica has moved them.
    await in_transaction(engine, record)
    _log.info(
        "log_compaction.moved", job_id=job_id, attempt=stretch.attempt, chunks=len(stretch.firsts), bytes=len(stretch.data)
    )
    return True


async def _first_stretch(engine: AsyncEngine, job_id: str) -> _Stretch | None:
    after = LogPosition()
    contents: list[bytes] = []
    taken: list[LogChunk] = []
    size = 0
    async with engine.connect() as connection:
        while rows := await store.read(connection, job_id, after, _CHUNKS_PER_READ):
            for row in rows:
                content = store.decompressed(row.data)
                if taken and (row.attempt != taken[0].attempt or size + len(content) > archives.ARCHIVE_BYTES):
                    return await _stretch(taken, contents)
                taken.append(row)
                contents.append(content)
                size += len(content)
            after = LogPosition(rows[-1].attempt, rows[-1].last_sequence)
    return await _stretch(taken, contents) if taken else None


async def _stretch(rows: Sequence[LogChunk], contents: Sequence[bytes]) -> _Stretch:
    data = await asyncio.to_thread(archives.pack, contents)
    return _Stretch(rows[0].attempt, [row.first_sequence for row in rows], rows[-1].last_sequence, data)
