from __future__ import annotations

import asyncio

from headway.logs.v1 import log_record_pb2 as pb
from workers.gpu.agent.log_buffer import TEXT_BYTES_MAX, LogBuffer, cut


def line(text: str = "text") -> pb.LogRecord:
    return pb.LogRecord(line=pb.LogLine(text=text, source="runner"))


def sequences(batch: list[pb.LogRecord]) -> list[int]:
    return [record.sequence for record in batch]


def filled(count: int) -> LogBuffer:
    buffer = LogBuffer()
    for _ in range(count):
        buffer.add(line())
    return buffer


async def test_batches_follow_each_other_and_end() -> None:
    buffer = filled(2_500)
    batches = [buffer.next_batch() for _ in range(4)]
    assert [len(batch) for batch in batches] == [1_000, 1_000, 500, 0]
    assert [record.sequence for batch in batches for record in batch] == list(range(1, 2_501))


async def test_after_a_break_everything_unacknowledged_is_sent_again() -> None:
    buffer = filled(10)
    buffer.next_batch()
    buffer.acknowledge(4)
    buffer.rewind()
    assert sequences(buffer.next_batch()) == [5, 6, 7, 8, 9, 10]


async def test_a_server_that_holds_more_than_was_sent_again() -> None:
    buffer = filled(10)
    buffer.next_batch()
    buffer.rewind()
    buffer.acknowledge(7)
    assert sequences(buffer.next_batch()) == [8, 9, 10]


async def test_batches_are_small_enough_for_a_message() -> None:
    buffer = LogBuffer()
    for _ in range(100):
        buffer.add(line("x" * TEXT_BYTES_MAX))
    batch = buffer.next_batch()
    assert 10 < len(batch) < 40
    assert pb.LogRecord(line=batch[0].line).ByteSize() * len(batch) < 2**20


async def test_what_is_under_way_is_bounded() -> None:
    buffer = filled(20_000)
    sent = 0
    while batch := buffer.next_batch():
        sent += len(batch)
    assert sent == 8_000
    buffer.acknowledge(1_000)
    assert len(buffer.next_batch()) == 1_000


async def test_a_full_buffer_drops_lines_counts_them_and_leaves_no_hole() -> None:
    buffer = LogBuffer(bytes_max=10_000)
    for _ in range(100):
        buffer.add(line("x" * 1_000))
    buffer.add(pb.LogRecord(progress=pb.Progress(step=1)))  # Measurements have twice the room.
    kept = buffer.next_batch()
    assert len(kept) < 12
    assert kept[-1].progress.step == 1
    buffer.acknowledge(kept[-1].sequence)
    buffer.add(line("after"))
    notice, after = buffer.next_batch()
    assert notice.line.text == f"{101 - len(kept)} lines were dropped while the log service was out of reach"
    assert after.line.text == "after"
    assert [notice.sequence, after.sequence] == [kept[-1].sequence + 1, kept[-1].sequence + 2]


async def test_emptied_when_everything_is_acknowledged() -> None:
    buffer = filled(2)
    waiting = asyncio.create_task(buffer.emptied())
    buffer.acknowledge(1)
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer.acknowledge(2)
    await asyncio.wait_for(waiting, 1)


def test_long_text_is_cut_and_says_so() -> None:
    assert cut("short") == "short"
    text = cut("ä" * TEXT_BYTES_MAX)
    assert text.endswith(f"[cut, {2 * TEXT_BYTES_MAX} bytes in all]")
    assert len(text.encode()) <= TEXT_BYTES_MAX + 64
    assert cut("a\0b") == "a\ufffdb"
