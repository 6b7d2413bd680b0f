"""A job's log from wherever it is: chunks in the database, archives in the object store, or some of both.

What is read is decoded once and kept for the next reader, within a bound; a reader itself holds nothing but its position.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.datasets.object_store import ObjectStore
from control_plane.logs import archives, store
from control_plane.logs.archives import Archive, Frame
from control_plane.logs.store import LogPosition
from headway.logs.v1 import log_record_pb2

_T = TypeVar("_T")

_CHUNKS_PER_READ = 16
# Enough for several messages; a single chunk may be four times that.
_SEGMENT_BYTES = 256 * 2**10
_SEGMENTS_BYTES_MAX = 16 * 2**20
_ARCHIVES_BYTES_MAX = 32 * 2**20
# Of the process's connections and threads, readers of logs use so many at most.
_READS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive records after a position.

    Attributes:
        records: none if the log ends there for now.
        end: the position after them.
    """

    records: Sequence[log_record_pb2.LogRecord]
    end: LogPosition


class LogReader:
    """Reads segments."""

    def __init__(self, engine: AsyncEngine, objects: ObjectStore) -> None:
        self._engine = engine
        self._objects = objects
        self._reading = asyncio.Semaphore(_READS_AT_ONCE)
        self._segments: _Kept[tuple[str, LogPosition], Segment] = _Kept(_SEGMENTS_BYTES_MAX)
        self._archives: _Kept[str, Sequence[Frame]] = _Kept(_ARCHIVES_BYTES_MAX)

    async def is_final(self, job_id: str) -> bool:
        """Whether the job is final, after which its log can no longer grow."""
        async with self._reading, self._engine.connect() as connection:
            return await store.is_final(connection, job_id)

    async def segment(self, job_id: str, after: LogPosition) -> Segment:
        """What follows a position. What is stored never changes, only where it is.

        Raises:
            RefusedError: it is in the object store, which does not answer or has damaged it.
        """
        kept = self._segments.get((job_id, after))
        if kept is not None:
            return kept
        async with self._reading:
            async with self._engine.connect() as connection:
                # In this order: what moves between the two is seen twice rather than not at all.
                chunks = await store.read(connection, job_id, after, _CHUNKS_PER_READ)
                archive = await archives.find(connection, job_id, after)
            hot = LogPosition(chunks[0].attempt, chunks[0].first_sequence) if chunks else None
            if archive is not None and (hot is None or LogPosition(archive.attempt, archive.first_sequence) < hot):
                contents = [await self._archived(archive, after)]
                attempt = archive.attempt
            else:
                # Of one attempt, as a segment's end is a position in one; the next is read next.
                attempt = chunks[0].attempt if chunks else after.attempt
                contents = _enough([row.data for row in chunks if row.attempt == attempt])
        segment = _segment(contents, attempt, after)
        if segment.records:
            self._segments.put((job_id, after), segment, 2 * sum(map(len, contents)))
        return segment

    async def _archived(self, archive: Archive, after: LogPosition) -> bytes:
        """The frame of an archive that holds what follows a position."""
        frames = self._archives.get(archive.sha256)
        if frames is None:
            data = await archives.fetch(self._objects, archive)
            frames = await asyncio.to_thread(archives.unpack, data)
            self._archives.put(archive.sha256, frames, len(data))
        begin = after.sequence if after.attempt == archive.attempt else 0
        return store.decompressed(next(frame.data for frame in frames if frame.last_sequence > begin))


def _enough(chunks: Sequence[bytes]) -> list[bytes]:
    contents: list[bytes] = []
    size = 0
    for data in chunks:
        contents.append(store.decompressed(data))
        size += len(contents[-1])
        if size >= _SEGMENT_BYTES:
            break
    return contents


def _segment(contents: Sequence[bytes], attempt: int, after: LogPosition) -> Segment:
    records = [record for content in contents for record in store.records_of(content, attempt)]
    # A cursor may point into a chunk.
    fresh = [record for record in records if LogPosition(attempt, record.sequence) > after]
    return Segment(fresh, LogPosition(attempt, fresh[-1].sequence) if fresh else after)


_K = TypeVar("_K")


class _Kept(Generic[_K, _T]):
    """Values used last, up to so many bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._values: OrderedDict[_K, tuple[_T, int]] = OrderedDict()

    def get(self, key: _K) -> _T | None:
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: _K, value: _T, size_bytes: int) -> None:
        if key in self._values:
            self._bytes -= self._values.pop(key)[1]
        self._values[key] = (value, size_bytes)
        self._bytes += size_bytes
        while self._bytes > self._bytes_max:
            self._bytes -= self._values.popitem(last=False)[1][1]
