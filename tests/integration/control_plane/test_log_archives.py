"""Finished logs move to the object store: readers do not notice, and nothing that is cut short loses a line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from control_plane.app import ControlPlane
from control_plane.datasets.object_store import ObjectStore
from control_plane.errors import RefusedError
from control_plane.logs import archives
from control_plane.logs.compaction import compact
from control_plane.settings import S3Settings
from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.jobs.v1 import job_pb2
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as pb
from tests.integration.control_plane.conftest import Api, refused, settings_of


def _lines(first: int, last: int, width: int = 20) -> list[log_record_pb2.LogRecord]:
    return [
        log_record_pb2.LogRecord(sequence=sequence, line=log_record_pb2.LogLine(text=f"{sequence} {'x' * width}"))
        for sequence in range(first, last + 1)
    ]


async def _append(api: Api, job_id: str, batches: list[list[log_record_pb2.LogRecord]], attempt: int = 1) -> None:
    async def requests() -> AsyncIterator[pb.AppendLogsRequest]:
        for records in batches:
            yield pb.AppendLogsRequest(job_id=job_id, attempt=attempt, records=records)

    async for _ in api.logs.AppendLogs(requests()):
        pass


async def _finish(api: Api, job_id: str, attempt: int) -> None:
    await api.attempts.FinishJob(
        attempts_pb.FinishJobRequest(job_id=job_id, attempt=attempt, state=job_pb2.JOB_STATE_CANCELLED)
    )


async def _two_attempts(api: Api) -> str:
    """A finished job whose two attempts wrote 6 and 4 records."""
    job_id, lease_id = await api.leased()
    await _append(api, job_id, [_lines(1, 2), _lines(3, 3), _lines(4, 6)])
    await api.attempts.ReleaseLease(attempts_pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="lost"))
    await api.leased(job_id, attempt=1)
    await _append(api, job_id, [_lines(1, 4)], attempt=2)
    await _finish(api, job_id, 2)
    return job_id


WHOLE = [(1, number) for number in range(1, 7)] + [(2, number) for number in range(1, 5)]


async def _tail(api: Api, job_id: str, cursor: str = "") -> list[tuple[int, int]]:
    records: list[tuple[int, int]] = []
    request = pb.TailLogsRequest(job_id=job_id, start_cursor=cursor, follow=True)
    async with asyncio.timeout(20):
        async for answer in api.logs.TailLogs(request):
            records += [(record.attempt, record.sequence) for record in answer.records]
    return records


async def _cursors(api: Api, job_id: str) -> list[tuple[int, str]]:
    """For every record, how many come up to it, and the cursor after it: a reader of single-record messages."""
    cursors: list[tuple[int, str]] = []
    count = 0
    async for answer in api.logs.TailLogs(pb.TailLogsRequest(job_id=job_id)):
        count += len(answer.records)
        cursors.append((count, answer.cursor))
    return cursors


async def _counts(api: Api, job_id: str) -> tuple[int, int]:
    (chunks,) = (await api.sql("SELECT count(*) FROM log_chunks WHERE job_id = :job_id", job_id=job_id))[0]
    (archived,) = (await api.sql("SELECT count(*) FROM log_archives WHERE job_id = :job_id", job_id=job_id))[0]
    return chunks, archived


async def test_a_moved_log_reads_as_before_from_every_cursor(
    api: Api, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.logs.servicer._MESSAGE_RECORDS_MAX", 1)
    job_id = await _two_attempts(api)
    cursors = await _cursors(api, job_id)
    assert len(cursors) > len(WHOLE)
    assert await _tail(api, job_id) == WHOLE
    assert await compact(api.engine, ObjectStore(s3_settings), 0) == 1
    assert await _counts(api, job_id) == (0, 2)
    assert await compact(api.engine, ObjectStore(s3_settings), 0) == 0
    async with ControlPlane(settings_of(_dsn(api), s3_settings)) as fresh, Api(fresh.port, api.engine, s3_settings) as anew:
        # A server that never had it in memory.
        assert await _tail(anew, job_id) == WHOLE
        for count, cursor in cursors:
            assert await _tail(anew, job_id, cursor) == WHOLE[count:]


async def test_only_what_is_final_for_long_enough_is_moved(api: Api, s3_settings: S3Settings) -> None:
    finished = await _two_attempts(api)
    running, _ = await api.leased()
    await _append(api, running, [_lines(1, 3)])
    store = ObjectStore(s3_settings)
    assert await compact(api.engine, store, 3_600) == 0
    assert await compact(api.engine, store, 0) == 1
    assert await _counts(api, running) == (1, 0)
    assert await _counts(api, finished) == (0, 2)
    # The running one goes on as if nothing had been.
    await _append(api, running, [_lines(2, 5)])
    await _finish(api, running, 1)
    assert await _tail(api, running) == [(1, number) for number in range(1, 6)]


async def test_long_logs_become_several_archives_of_several_frames(
    api: Api, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FRAME_BYTES", 4_000)
    monkeypatch.setattr(archives, "ARCHIVE_BYTES", 20_000)
    job_id, _ = await api.leased()
    await _append(api, job_id, [_lines(start, start + 9, width=200) for start in range(1, 401, 10)])
    await _finish(api, job_id, 1)
    assert await compact(api.engine, ObjectStore(s3_settings), 0) == 1
    chunks, archived = await _counts(api, job_id)
    assert chunks == 0
    assert archived >= 4
    assert await _tail(api, job_id) == [(1, number) for number in range(1, 401)]


class _Fails(ObjectStore):
    """An object store that does what it should and then breaks off, at a step of the test's choice."""

    def __init__(self, settings: S3Settings, at: str) -> None:
        super().__init__(settings)
        self.at = at

    async def put(self, key: str, data: bytes) -> None:
        await super().put(key, data)
        if self.at == "after put":
            raise ConnectionResetError

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        data = await super().get(key, size_bytes)
        if self.at == "after get":
            raise ConnectionResetError
        return data if self.at != "damaged" or data is None else data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("at", "error"), [("after put", ConnectionResetError), ("after get", ConnectionResetError), ("damaged", RefusedError)]
)
async def test_a_move_that_breaks_off_is_done_again(api: Api, s3_settings: S3Settings, at: str, error: type[Exception]) -> None:
    job_id = await _two_attempts(api)
    with pytest.raises(error):
        await compact(api.engine, _Fails(s3_settings, at), 0)
    assert await _counts(api, job_id) == (4, 0)
    assert await _tail(api, job_id) == WHOLE
    assert await compact(api.engine, ObjectStore(s3_settings), 0) == 1
    assert await _counts(api, job_id) == (0, 2)


async def test_two_that_move_at_once_move_once(api: Api, s3_settings: S3Settings) -> None:
    jobs = [await _two_attempts(api) for _ in range(3)]
    store = ObjectStore(s3_settings)
    await asyncio.gather(*(compact(api.engine, store, 0) for _ in range(4)))
    for job_id in jobs:
        assert await _counts(api, job_id) == (0, 2)
        assert await _tail(api, job_id) == WHOLE


async def test_readers_meanwhile_see_it_whole(api: Api, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.logs.servicer._MESSAGE_RECORDS_MAX", 1)
    jobs = [await _two_attempts(api) for _ in range(4)]
    reading = [asyncio.create_task(_tail(api, job_id)) for job_id in jobs for _ in range(5)]
    await compact(api.engine, ObjectStore(s3_settings), 0)
    for seen in await asyncio.gather(*reading):
        assert seen == WHOLE


async def test_without_the_object_store_what_is_here_is_read(api: Api, s3_settings: S3Settings) -> None:
    moved = await _two_attempts(api)
    await compact(api.engine, ObjectStore(s3_settings), 0)
    here = await _two_attempts(api)
    dead = s3_settings.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(RefusedError) as caught:
        await compact(api.engine, ObjectStore(dead), 0)
    assert caught.value.reason == "DEPENDENCY_UNAVAILABLE"
    async with ControlPlane(settings_of(_dsn(api), dead)) as cut_off, Api(cut_off.port, api.engine, dead) as alone:
        assert await _tail(alone, here) == WHOLE
        answer = await refused(_tail(alone, moved))
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert answer.metadata == {"component": "s3"}


@pytest.mark.parametrize("damage", ["flipped", "longer", "gone"])
async def test_a_damaged_archive_is_said_and_not_shown(api: Api, s3_settings: S3Settings, damage: str) -> None:
    job_id = await _two_attempts(api)
    store = ObjectStore(s3_settings)
    await compact(api.engine, store, 0)
    uri, size = (await api.sql("SELECT uri, size_bytes FROM log_archives ORDER BY attempt LIMIT 1"))[0]
    key = store.key(uri, "uri")
    data = await store.get(key, size)
    assert data is not None
    client: Any = vars(store)["_client"]
    if damage == "gone":
        client.delete_object(Bucket=api.bucket, Key=key)
    else:
        await store.put(key, data + b"x" if damage == "longer" else bytes([data[0] ^ 1]) + data[1:])
    answer = await refused(_tail(api, job_id))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OBJECT_MISSING")
    assert answer.metadata == {"uri": uri}


async def test_the_control_plane_moves_by_itself(api: Api, s3_settings: S3Settings) -> None:
    job_id = await _two_attempts(api)
    async with ControlPlane(settings_of(_dsn(api), s3_settings, log_hot_seconds=0.1)):
        async with asyncio.timeout(20):
            while (await _counts(api, job_id))[0]:
                pass
    assert await _tail(api, job_id) == WHOLE


def _dsn(api: Api) -> str:
    return api.engine.url.render_as_string(hide_password=False).replace("postgresql+asyncpg", "postgresql")
