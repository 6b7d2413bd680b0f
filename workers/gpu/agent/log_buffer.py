"""Log records that are not acknowledged yet: numbered without a hole, bounded, and sent again from where they were lost."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice

from headway.logs.v1 import log_record_pb2 as pb

TEXT_BYTES_MAX = 16 * 1024
_BATCH_RECORDS_MAX = 1_000
_BATCH_BYTES_MAX = 512 * 1024
_IN_FLIGHT_MAX = 8 * _BATCH_RECORDS_MAX


class LogBuffer:
    """Records in order of sequence. Belongs to one event loop.

    When the log service is away for so long that the buffer is full, lines are dropped and counted before they get a number;
    measurements have twice the room.
    """

    def __init__(self, *, bytes_max: int = 32 * 1024 * 1024) -> None:
        self._bytes_max = bytes_max
        self._records: deque[pb.LogRecord] = deque()
        self._bytes = 0
        self._sequence = 0
        self._sent = 0
        self._dropped = 0
        self._changed = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def add(self, record: pb.LogRecord) -> None:
        """Takes a record and gives it its sequence."""
        if self._dropped and self._bytes < self._bytes_max // 2:
            self._append(_notice(record, f"{self._dropped} lines were dropped while the log service was out of reach"))
            self._dropped = 0
        room = self._bytes_max * (2 if record.WhichOneof("body") == "progress" else 1)
        if self._bytes + record.ByteSize() > room:
            self._dropped += 1
            return
        self._append(record)

    def acknowledge(self, sequence: int) -> None:
        """Forgets every record up to `sequence`: it is durable."""
        while self._records and self._records[0].sequence <= sequence:
            self._bytes -= self._records.popleft().ByteSize()
            self._sent = max(0, self._sent - 1)
        if not self._records:
            self._emptied.set()
        self._changed.set()

    def rewind(self) -> None:
        """Everything that is not acknowledged is to be sent again, on a new stream."""
        self._sent = 0
        self._changed.set()

    def next_batch(self) -> list[pb.LogRecord]:
        """The records to send next, 1 to 1,000 of them; none when all are under way or too many are."""
        batch: list[pb.LogRecord] = []
        size = 0
        if self._sent >= _IN_FLIGHT_MAX:
            return batch
        for record in islice(self._records, self._sent, self._sent + _BATCH_RECORDS_MAX):
            size += record.ByteSize()
            if batch and size > _BATCH_BYTES_MAX:
                break
            batch.append(record)
        self._sent += len(batch)
        return batch

    async def emptied(self) -> None:
        """Waits until everything taken is acknowledged."""
        await self._emptied.wait()

    async def changed(self) -> None:
        """Waits until there is something new to send, or something was acknowledged."""
        await self._changed.wait()
        self._changed.clear()

    def _append(self, record: pb.LogRecord) -> None:
        self._sequence += 1
        record.sequence = self._sequence
        self._bytes += record.ByteSize()
        self._records.append(record)
        self._emptied.clear()
        self._changed.set()


def cut(text: str) -> str:
    """The text, cut to 16 KiB of UTF-8 with words that say so. NUL, which the store cannot hold, becomes U+FFFD."""
    content = text.replace("\x00", "\ufffd").encode(errors="replace")
    if len(content) <= TEXT_BYTES_MAX:
        return content.decode()
    return content[: TEXT_BYTES_MAX - 4].decode(errors="ignore") + f" [cut, {len(content)} bytes in all]"


def _notice(like: pb.LogRecord, text: str) -> pb.LogRecord:
    line = pb.LogLine(level=pb.LOG_LEVEL_WARNING, text=text, source="agent")
    return pb.LogRecord(time=like.time, line=line, trace_id=like.trace_id, span_id=like.span_id)
