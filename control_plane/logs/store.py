"""Log records in PostgreSQL: compressed chunks, one row per batch and never one per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import zstandard
from sqlalchemy import func, or_, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.fence import refuse_stale
from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_LOGS, jobs, log_chunks
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.states import FINAL_STATES
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as pb

_FINAL = [str(state) for state in FINAL_STATES]
# A chunk was at most one request on the wire; what claims to be more is not one of ours.
CHUNK_BYTES_MAX = 8 * 2**20
# An agent that reconnects may have two streams for a moment.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """A place in a job's log: attempts in order, records in order within each."""

    attempt: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A row of `log_chunks`."""

    attempt: int
    first_sequence: int
    last_sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of batches that were appended together.

    Attributes:
        acknowledged: by batch that was taken, the last sequence that is stored.
        refusal: why the next one was not.
    """

    acknowledged: Sequence[int]
    refusal: RefusedError | None


async def append(connection: AsyncConnection, batches: Sequence[pb.AppendLogsRequest]) -> Appended:
    """Stores what is new of batches of one attempt, each of consecutive records, up to the first that cannot be stored.

    Raises:
        RefusedError: the attempt is stale.
    """
    job_id, attempt = batches[0].job_id, batches[0].attempt
    await refuse_stale(connection, job_id, attempt)
    await connection.execute(_LOCK, {"key": f"logs/{job_id}/{attempt}"})
    newest = select(func.coalesce(func.max(log_chunks.c.last_sequence), 0)).where(
        log_chunks.c.job_id == job_id, log_chunks.c.attempt == attempt
    )
    stored = int((await connection.execute(newest)).scalar_one())
    acknowledged: list[int] = []
    chunks: list[Mapping[str, object]] = []
    refusal: RefusedError | None = None
    for batch in batches:
        if batch.records[0].sequence > stored + 1:
            refusal = _gap(attempt, batch.records[0].sequence, stored + 1)
            break
        fresh = _fresh(batch, stored)
        if fresh is not None:
            first, last = fresh.records[0].sequence, fresh.records[-1].sequence
            data = zstandard.compress(fresh.SerializeToString())
            chunks.append({"job_id": job_id, "attempt": attempt, "first_sequence": first, "last_sequence": last, "data": data})
            stored = last
        acknowledged.append(stored)
    if chunks:
        await connection.execute(insert(log_chunks).values(chunks))
        await notify(connection, CHANNEL_LOGS, job_id)
    return Appended(acknowledged, refusal)


def _fresh(batch: pb.AppendLogsRequest, stored: int) -> pb.AppendLogsRequest | None:
    """The part of a batch that is not stored yet."""
    if batch.records[-1].sequence <= stored:
        return None
    if batch.records[0].sequence > stored:
        return batch
    return pb.AppendLogsRequest(records=[record for record in batch.records if record.sequence > stored])


def _gap(attempt: int, first: int, expected: int) -> RefusedError:
    return RefusedError(
        Reason.SEQUENCE_GAP,
        f"records of attempt {attempt} begin at {first}, expected {expected}; send again from there",
        {"expected_sequence": str(expected)},
    )


async def read(connection: AsyncConnection, job_id: str, after: LogPosition, limit: int) -> Sequence[LogChunk]:
    """At most `limit` chunks after a position, in order."""
    query = (
        select(log_chunks.c.attempt, log_chunks.c.first_sequence, log_chunks.c.last_sequence, log_chunks.c.data)
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
    return [LogChunk(*row) for row in (await connection.execute(query)).all()]


def decompressed(data: bytes) -> bytes:
    """A chunk's serialised AppendLogsRequest."""
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=CHUNK_BYTES_MAX)


def records_of(content: bytes, attempt: int) -> list[log_record_pb2.LogRecord]:
    """The records of a serialised AppendLogsRequest, as readers get them."""
    records = list(pb.AppendLogsRequest.FromString(content).records)
    for record in records:
        record.attempt = attempt
    return records


async def is_final(connection: AsyncConnection, job_id: str) -> bool:
    """Whether the job is final, after which its log can no longer grow."""
    query = select(jobs.c.job_id).where(jobs.c.job_id == job_id, jobs.c.state.in_(_FINAL))
    return (await connection.execute(query)).first() is not None
