"""Finished logs in the object store.

An archive is the log of one attempt, or a stretch of it: zstd frames one after the other (RFC 8878), each a serialised
AppendLogsRequest. Messages that are concatenated merge, so that what `zstd -d` makes of an archive is one AppendLogsRequest
with all records. The key names the content: who writes the same stretch again writes the same object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import zstandard
from sqlalchemy import or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.datasets.object_store import ObjectStore
from control_plane.db.tables import log_archives
from control_plane.errors import Reason, RefusedError
from control_plane.logs.store import CHUNK_BYTES_MAX, LogPosition
from headway.logs.v1 import log_service_pb2 as pb

# Of serialised records. What is read at once is a frame; what is fetched at once is an archive.
FRAME_BYTES = 256 * 2**10
ARCHIVE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Archive:
    """A row of `log_archives`."""

    attempt: int
    first_sequence: int
    last_sequence: int
    uri: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Consecutive records of an archive.

    Attributes:
        last_sequence: of its last record.
        data: compressed.
    """

    last_sequence: int
    data: bytes


def archive_key(project: str, sha256: str) -> str:
    """The key of an archive."""
    return f"projects/{project}/logs/{sha256}"


def pack(contents: Sequence[bytes]) -> bytes:
    """An archive of serialised AppendLogsRequests in order."""
    compressor = zstandard.ZstdCompressor()
    frames: list[bytes] = []
    gathered: list[bytes] = []
    size = 0
    for content in contents:
        if gathered and size + len(content) > FRAME_BYTES:
            frames.append(compressor.compress(b"".join(gathered)))
            gathered, size = [], 0
        gathered.append(content)
        size += len(content)
    frames.append(compressor.compress(b"".join(gathered)))
    return b"".join(frames)


def unpack(data: bytes) -> list[Frame]:
    """The frames of an archive whose hash is right."""
    frames: list[Frame] = []
    while data:
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        content = decompressor.decompress(data)
        if len(content) > CHUNK_BYTES_MAX:
            raise ValueError(f"a frame of {len(content)} bytes; expected at most {CHUNK_BYTES_MAX}")
        rest = decompressor.unused_data
        frames.append(Frame(pb.AppendLogsRequest.FromString(content).records[-1].sequence, data[: len(data) - len(rest)]))
        data = rest
    return frames


async def find(connection: AsyncConnection, job_id: str, after: LogPosition) -> Archive | None:
    """The first archive with records after a position."""
    columns = [log_archives.c[name] for name in Archive.__dataclass_fields__]
    query = (
        select(*columns)
        .where(
            log_archives.c.job_id == job_id,
            or_(
                log_archives.c.attempt > after.attempt,
                tuple_(log_archives.c.attempt, log_archives.c.last_sequence) > tuple_(after.attempt, after.sequence),
            ),
        )
        .order_by(log_archives.c.attempt, log_archives.c.first_sequence)
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Archive(*row)


async def fetch(store: ObjectStore, archive: Archive) -> bytes:
    """The bytes of an archive, which are those that were put there.

    Raises:
        RefusedError: the store does not answer, has lost the object, or holds another.
    """
    data = await store.get(store.key(archive.uri, "uri"), archive.size_bytes)
    if data is None or hashlib.sha256(data).hexdigest() != archive.sha256:
        said = "is gone" if data is None else "does not have the hash on record"
        raise RefusedError(
            Reason.OBJECT_MISSING,
            f"this part of the log cannot be read: its archive {archive.uri} {said}; restore the object from a backup",
            {"uri": archive.uri},
        )
    return data
