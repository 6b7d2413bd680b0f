"""Log records: stored before they are acknowledged, each once, in order, and read back from any cursor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
import pytest

from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.jobs.v1 import job_pb2
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as pb
from tests.integration.control_plane.conftest import Api, new_id, refusal


def _line(sequence: int, level: int = log_record_pb2.LOG_LEVEL_INFO) -> log_record_pb2.LogRecord:
    line = log_record_pb2.LogLine(level=log_record_pb2.LogLevel.ValueType(level), text=f"line {sequence}", source="runner")
    return log_record_pb2.LogRecord(sequence=sequence, line=line)


def _step(sequence: int) -> log_record_pb2.LogRecord:
    progress = log_record_pb2.Progress(step=sequence, total_steps=10, metrics={"loss": 1 / sequence}, phase="train")
    return log_record_pb2.LogRecord(sequence=sequence, progress=progress)


async def _append(api: Api, job_id: str, batches: Iterable[list[log_record_pb2.LogRecord]], attempt: int = 1) -> list[int]:
    async def requests() -> AsyncIterator[pb.AppendLogsRequest]:
        for records in batches:
            yield pb.AppendLogsRequest(job_id=job_id, attempt=attempt, records=records)

    return [answer.acknowledged_sequence async for answer in api.logs.AppendLogs(requests())]


async def _tail(api: Api, request: pb.TailLogsRequest) -> tuple[list[tuple[int, int]], str, bool]:
    records: list[tuple[int, int]] = []
    cursor, ended = "", False
    async for answer in api.logs.TailLogs(request):
        records += [(record.attempt, record.sequence) for record in answer.records]
        cursor, ended = answer.cursor, answer.end_of_stream
    return records, cursor, ended


async def _finish(api: Api, job_id: str, attempt: int) -> None:
    await api.attempts.FinishJob(
        attempts_pb.FinishJobRequest(job_id=job_id, attempt=attempt, state=job_pb2.JOB_STATE_CANCELLED)
    )


async def test_every_batch_is_acknowledged_and_what_is_sent_again_is_skipped(api: Api) -> None:
    job_id, _ = await api.leased()
    lines = [_line(sequence) for sequence in range(1, 11)]
    assert await _append(api, job_id, [lines[:4], lines[4:6]]) == [4, 6]
    # The connection broke before the last acknowledgement: the agent goes on from what it knows.
    assert await _append(api, job_id, [lines[2:6], lines[4:10], lines[:3]]) == [6, 10, 10]
    assert (await _tail(api, pb.TailLogsRequest(job_id=job_id)))[0] == [(1, n) for n in range(1, 11)]


@pytest.mark.parametrize("cut", range(12))
async def test_a_reader_resumes_after_any_cursor_and_over_attempts(api: Api, cut: int) -> None:
    job_id, lease_id = await api.leased()
    await _append(api, job_id, [[_line(1)], [_line(2), _line(3)], [_line(4)]])
    await api.attempts.ReleaseLease(attempts_pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="lost"))
    await api.leased(job_id, attempt=1)
    await _append(api, job_id, [[_line(1), _step(2)], [_line(3)]], attempt=2)
    await _finish(api, job_id, 2)
    whole, _, ended = await _tail(api, pb.TailLogsRequest(job_id=job_id, follow=True))
    assert whole == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3)]
    assert ended
    stitched: list[tuple[int, int]] = []
    cursor = ""
    call = api.logs.TailLogs(pb.TailLogsRequest(job_id=job_id))
    messages = 0
    async for answer in call:
        if messages == cut:
            break
        stitched += [(record.attempt, record.sequence) for record in answer.records]
        cursor = answer.cursor
        messages += 1
    call.cancel()
    stitched += (await _tail(api, pb.TailLogsRequest(job_id=job_id, start_cursor=cursor)))[0]
    assert stitched == whole


async def test_a_follower_gets_what_comes_and_the_end(api: Api) -> None:
    job_id, _ = await api.leased()
    seen: list[int] = []
    some = asyncio.Event()

    async def follow() -> bool:
        ended = False
        async for answer in api.logs.TailLogs(pb.TailLogsRequest(job_id=job_id, follow=True)):
            seen.extend(record.sequence for record in answer.records)
            ended = answer.end_of_stream
            some.set()
        return ended

    following = asyncio.create_task(follow())
    await _append(api, job_id, [[_line(1)]])
    async with asyncio.timeout(10):
        while not seen:
            some.clear()
            await some.wait()
        await _append(api, job_id, [[_line(2)], [_line(3)]])
        await _finish(api, job_id, 1)
        assert await following
    assert seen == [1, 2, 3]


async def test_progress_is_streamed_without_the_lines(api: Api) -> None:
    job_id, _ = await api.leased()
    await _append(api, job_id, [[_line(1), _step(2), _line(3), _step(4)]])
    await _finish(api, job_id, 1)
    steps: list[int] = []
    async for answer in api.logs.StreamProgress(pb.StreamProgressRequest(job_id=job_id)):
        steps += [record.progress.step for record in answer.records]
        assert answer.records == [] or answer.records[0].progress.metrics["loss"] == 0.5
    assert steps == [2, 4]


async def test_lines_are_filtered_by_level(api: Api) -> None:
    job_id, _ = await api.leased()
    levels = [log_record_pb2.LOG_LEVEL_DEBUG, 0, log_record_pb2.LOG_LEVEL_WARNING, log_record_pb2.LOG_LEVEL_ERROR]
    await _append(api, job_id, [[_line(number, level) for number, level in enumerate(levels, 1)]])
    for level, expected in [
        (0, [1, 2, 3, 4]),
        (log_record_pb2.LOG_LEVEL_INFO, [2, 3, 4]),
        (log_record_pb2.LOG_LEVEL_ERROR, [4]),
    ]:
        request = pb.TailLogsRequest(job_id=job_id, min_level=log_record_pb2.LogLevel.ValueType(level))
        assert [sequence for _, sequence in (await _tail(api, request))[0]] == expected


async def _append_refused(api: Api, job_id: str, records: list[log_record_pb2.LogRecord], attempt: int = 1) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _append(api, job_id, [records], attempt)
    answer = refusal(caught.value)
    return answer.reason, answer.metadata.get("expected_sequence", ",".join(answer.fields))


async def test_what_cannot_be_stored_is_refused(api: Api) -> None:
    job_id, _ = await api.leased()
    await _append(api, job_id, [[_line(1)]])
    assert await _append_refused(api, job_id, [_line(3)]) == ("SEQUENCE_GAP", "2")
    assert await _append_refused(api, job_id, [_line(2), _line(4)]) == ("INVALID_FIELD", "records[1].sequence")
    assert await _append_refused(api, job_id, [_line(0)]) == ("INVALID_FIELD", "records[0].sequence")
    assert await _append_refused(api, job_id, []) == ("INVALID_FIELD", "records")
    long = _line(2)
    long.line.text = "x" * 20_000
    assert await _append_refused(api, job_id, [long]) == ("INVALID_FIELD", "records[0].line.text")
    wide = _step(2)
    wide.progress.metrics.update({f"metric_{number}": 0.0 for number in range(65)})
    assert await _append_refused(api, job_id, [wide]) == ("INVALID_FIELD", "records[0].progress.metrics")
    assert (await _append_refused(api, job_id, [_line(1)], attempt=0))[0] == "STALE_ATTEMPT"
    assert (await _append_refused(api, new_id(), [_line(1)]))[0] == "JOB_NOT_FOUND"
    await _finish(api, job_id, 1)
    assert (await _append_refused(api, job_id, [_line(2)]))[0] == "STALE_ATTEMPT"
