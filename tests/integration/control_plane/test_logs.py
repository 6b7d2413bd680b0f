"""Log records: stored before they are acknowledged, each once, in order, and read back from any cursor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.jobs.v1 import job_pb2
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as pb
from tests.integration.control_plane.conftest import Api, new_id, refusal, refused


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
    # A measurement has no level: it comes when none is asked for.
    await _append(api, job_id, [[*(_line(number, level) for number, level in enumerate(levels, 1)), _step(5)]])
    for level, expected in [
        (0, [1, 2, 3, 4, 5]),
        (log_record_pb2.LOG_LEVEL_DEBUG, [1, 2, 3, 4]),
        (log_record_pb2.LOG_LEVEL_INFO, [2, 3, 4]),
        (log_record_pb2.LOG_LEVEL_ERROR, [4]),
    ]:
        request = pb.TailLogsRequest(job_id=job_id, min_level=log_record_pb2.LogLevel.ValueType(level))
        assert [sequence for _, sequence in (await _tail(api, request))[0]] == expected


async def test_lines_are_filtered_by_what_they_say_and_where_they_come_from(api: Api) -> None:
    job_id, lease_id = await api.leased()
    records = [_line(number) for number in range(1, 6)] + [_step(6)]
    records[1].line.source = "stderr"
    records[2].line.text = "100 % done (.*)"
    for number, record in enumerate(records):
        record.time.FromSeconds(1_000 + number)
    await _append(api, job_id, [records])
    await api.attempts.ReleaseLease(attempts_pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="lost"))
    await api.leased(job_id, attempt=1)
    await _append(api, job_id, [[_line(1)]], attempt=2)
    await _finish(api, job_id, 2)
    for fields, expected in (
        ({"attempt": 2}, [(2, 1)]),
        ({"attempt": 1}, [(1, number) for number in range(1, 7)]),
        ({"source": "stderr"}, [(1, 2)]),
        # Text is text: nothing of it is a pattern.
        ({"text": "(.*)"}, [(1, 3)]),
        ({"text": "line 1"}, [(1, 1), (2, 1)]),
        ({"text": "line", "source": "runner", "attempt": 1}, [(1, 1), (1, 4), (1, 5)]),
        ({"since": Timestamp(seconds=1_004)}, [(1, 5), (1, 6)]),
        ({"text": "no such text"}, []),
    ):
        request = pb.TailLogsRequest(job_id=job_id, follow=True, **cast("dict[str, Any]", fields))
        records_seen, cursor, ended = await _tail(api, request)
        assert (records_seen, ended) == (expected, True), fields
        # Whatever was left out has been passed: nothing comes twice.
        request.start_cursor = cursor
        assert await _tail(api, request) == ([], cursor, True)
        # A cursor is one of its filters'.
        other = pb.TailLogsRequest(job_id=job_id, start_cursor=cursor, min_level=log_record_pb2.LOG_LEVEL_ERROR)
        assert (await refused(_tail(api, other))).reason == "INVALID_CURSOR"
    for fields, name in (({"source": "x" * 65}, "source"), ({"text": "x" * 1_001}, "text"), ({"attempt": -1}, "attempt")):
        wrong = pb.TailLogsRequest(job_id=job_id, **cast("dict[str, Any]", fields))
        assert (await refused(_tail(api, wrong))).fields == [name]


async def test_progress_is_filtered_by_metric_and_step(api: Api) -> None:
    job_id, _ = await api.leased()
    steps = [_step(number) for number in range(1, 6)]
    steps[2].progress.metrics["grad_norm"] = 3.0
    await _append(api, job_id, [steps])
    await _finish(api, job_id, 1)

    async def progress(**fields: Any) -> list[tuple[int, dict[str, float]]]:
        request = pb.StreamProgressRequest(job_id=job_id, **fields)
        answers = [answer async for answer in api.logs.StreamProgress(request)]
        return [(record.progress.step, dict(record.progress.metrics)) for answer in answers for record in answer.records]

    assert await progress(metrics=["grad_norm"]) == [(3, {"grad_norm": 3.0})]
    assert await progress(from_step=4) == [(4, {"loss": 0.25}), (5, {"loss": 0.2})]
    # What one reader did not ask for is still there for the next.
    assert (await progress())[2] == (3, {"loss": 1 / 3, "grad_norm": 3.0})
    for fields, name in (
        ({"metrics": [""]}, "metrics[0]"),
        ({"from_step": -1}, "from_step"),
        ({"metrics": ["m"] * 65}, "metrics"),
    ):
        assert (await refused(progress(**cast("dict[str, Any]", fields)))).fields == [name]


async def test_messages_are_small_however_large_the_batches_are(api: Api) -> None:
    job_id, _ = await api.leased()
    lines = [_line(number) for number in range(1, 701)]
    for line in lines[:60]:
        line.line.text = "x" * 15_000
    await _append(api, job_id, [lines])
    await _finish(api, job_id, 1)
    seen: list[int] = []
    async for answer in api.logs.TailLogs(pb.TailLogsRequest(job_id=job_id)):
        assert answer.ByteSize() <= 33 * 1_024
        assert len(answer.records) <= 500
        seen += [record.sequence for record in answer.records]
    assert seen == list(range(1, 701))


async def test_two_streams_of_one_attempt_store_each_record_once(api: Api) -> None:
    """An agent that lost its connection and opened another, while the first still has something under way."""
    job_id, _ = await api.leased()
    lines = [_line(number) for number in range(1, 401)]
    batches = [lines[start : start + 20] for start in range(0, 400, 20)]
    answers = await asyncio.gather(*(_append(api, job_id, batches) for _ in range(4)), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, grpc.aio.AioRpcError):
            assert refusal(answer).reason == "SEQUENCE_GAP"
    assert [400] in [answer[-1:] for answer in answers if not isinstance(answer, BaseException)]
    assert (await _tail(api, pb.TailLogsRequest(job_id=job_id)))[0] == [(1, number) for number in range(1, 401)]


async def test_what_came_before_a_bad_batch_is_stored_and_acknowledged(api: Api) -> None:
    job_id, _ = await api.leased()
    batches = [[_line(1)], [_line(2)], [_line(9)]]

    async def requests() -> AsyncIterator[pb.AppendLogsRequest]:
        for records in batches:
            yield pb.AppendLogsRequest(job_id=job_id, attempt=1, records=records)

    acknowledged: list[int] = []

    async def append() -> None:
        async for answer in api.logs.AppendLogs(requests()):
            acknowledged.append(answer.acknowledged_sequence)

    answer = await refused(append())
    assert (answer.reason, answer.metadata) == ("SEQUENCE_GAP", {"expected_sequence": "3"})
    assert acknowledged == [1, 2]
    assert (await _tail(api, pb.TailLogsRequest(job_id=job_id)))[0] == [(1, 1), (1, 2)]


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
    foreign = _line(2)
    foreign.line.source = "x" * 65
    assert await _append_refused(api, job_id, [foreign]) == ("INVALID_FIELD", "records[0].line.source")
    named = _step(2)
    named.progress.metrics["m" * 129] = 0.0
    assert await _append_refused(api, job_id, [named]) == ("INVALID_FIELD", "records[0].progress.metrics")
    wide = _step(2)
    wide.progress.metrics.update({f"metric_{number}": 0.0 for number in range(65)})
    assert await _append_refused(api, job_id, [wide]) == ("INVALID_FIELD", "records[0].progress.metrics")
    assert (await _append_refused(api, job_id, [_line(1)], attempt=0))[0] == "STALE_ATTEMPT"
    assert (await _append_refused(api, new_id(), [_line(1)]))[0] == "JOB_NOT_FOUND"
    await _finish(api, job_id, 1)
    assert (await _append_refused(api, job_id, [_line(2)]))[0] == "STALE_ATTEMPT"
