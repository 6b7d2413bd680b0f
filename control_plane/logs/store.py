"""Log records in PostgreSQL: compressed chunks, one row per batch and never one per line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import zstandard
from sqlalchemy import func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.fence import refuse_stale
from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_LOGS, jobs, log_chunks
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.states import FINAL_STATES
from headway.logs.v1 import log_record_pb2, log_service_pb2

_FINAL = [str(state) for state in FINAL_STATES]
# A chunk was at most one request on the wire; what claims to be more is not one of ours.
_CHUNK_BYTES_MAX = 8 * 2**20


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """A place in a job's log: attempts in order, records in order within each."""

    attempt: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one attempt, and the position after them."""

    records: Sequence[log_record_pb2.LogRecord]
    end: LogPosition


async def append(connection: AsyncConnection, job_id: str, attempt: int, records: Sequence[log_record_pb2.LogRecord]) -> int:
    """Stores what is new of consecutive records; returns the last sequence that is stored.

    Raises:
        RefusedError: the attempt is stale, or records before these are missing.
    """
    await refuse_stale(connection, job_id, attempt)
    newest = select(func.coalesce(func.max(log_chunks.c.last_sequence), 0)).where(
        log_chunks.c.job_id == job_id, log_chunks.c.attempt == attempt
    )
    stored = int((await connection.execute(newest)).scalar_one())
    if records[0].sequence > stored + 1:
        raise RefusedError(
            Reason.SEQUENCE_GAP,
            f"records of attempt {attempt} begin at {records[0].sequence}, expected {stored + 1}; send again from there",
            {"expected_sequence": str(stored + 1)},
        )
    fresh = [record for record in records if record.sequence > stored]
    if not fresh:
        return stored
    content = log_service_pb2.AppendLogsRequest(records=fresh).SerializeToString()
    await connection.execute(
        insert(log_chunks).values(
            job_id=job_id,
            attempt=attempt,
            first_sequence=fresh[0].sequence,
            last_sequence=fresh[-1].sequence,
            data=zstandard.compress(content),
        )
    )
    await notify(connection, CHANNEL_LOGS, job_id)
    return fresh[-1].sequence


async def read(connection: AsyncConnection, job_id: str, after: LogPosition, limit: int) -> list[Chunk]:
    """At most `limit` chunks after a position, in order."""
    query = (
        select(log_chunks)
        .where(
            log_chunks.c.job_id == job_id,
            or_(
                log_chunks.c.attempt > after.attempt,
                tuple_(log_chunks.c.attempt, log_chunks.c.last_sequence) > tuple_(after.attempt, after.sequence),
            ),
        )
        .order_by(log_chunks.c.attempt, log_chunks.c.first_sequence)
        .limit(limit)
    )
    return [_chunk(row.attempt, row.last_sequence, row.data, after) for row in (await connection.execute(query)).all()]


def _chunk(attempt: int, last_sequence: int, data: bytes, after: LogPosition) -> Chunk:
    content = zstandard.ZstdDecompressor().decompress(data, max_output_size=_CHUNK_BYTES_MAX)
    records = log_service_pb2.AppendLogsRequest.FromString(content).records
    for record in records:
        record.attempt = attempt
    # A cursor may point into a chunk.
    fresh = [record for record in records if LogPosition(attempt, record.sequence) > after]
    return Chunk(fresh, LogPosition(attempt, last_sequence))


async def is_final(connection: AsyncConnection, job_id: str) -> bool:
    """Whether the job is final, after which its log can no longer grow."""
    query = select(jobs.c.job_id).where(jobs.c.job_id == job_id, jobs.c.state.in_(_FINAL))
    return (await connection.execute(query)).first() is not None
