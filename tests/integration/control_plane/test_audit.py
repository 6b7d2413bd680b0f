"""The audit log: who did what, and who was refused what before they hear of it, in a chain that shows what is done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.app import ControlPlane
from control_plane.audit import chain
from control_plane.audit.record import AuditRecord, Entry
from control_plane.audit.trail import AuditTrail
from control_plane.audit.verify import Fault, Head, Link, verify
from control_plane.audit.writer import insert_entries
from control_plane.db.engine import in_transaction
from control_plane.settings import S3Settings
from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.audit.v1 import audit_service_pb2 as pb
from headway.capacity.v1 import capacity_service_pb2 as capacity_pb
from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.quotas.v1 import quota_service_pb2 as quotas_pb
from tests.integration.control_plane.callers import OTHER_PROJECT, PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused, settings_of


def _set_quota(project: str = PROJECT) -> quotas_pb.SetQuotaRequest:
    return quotas_pb.SetQuotaRequest(request_id=new_id(), quota=quotas_pb.Quota(project=project, max_accelerators={"h200": 1}))


async def _records(api: Api, verb: str) -> list[Any]:
    return await api.sql("SELECT * FROM audit_records WHERE method LIKE :method ORDER BY inserted", method=f"%/{verb}")


async def _link_all(engine: AsyncEngine) -> None:
    while await in_transaction(engine, chain.link):
        pass


async def _listed(api: Api, **fields: Any) -> list[pb.AuditRecord]:
    await _link_all(api.engine)
    found: list[pb.AuditRecord] = []
    token = ""
    while True:
        page = await api.audit.ListAuditRecords(pb.ListAuditRecordsRequest(page_token=token, **fields))
        found += page.records
        token = page.next_page_token
        if not token:
            return found


def _links(records: list[pb.AuditRecord]) -> list[Link]:
    return [
        Link(
            record.position,
            AuditRecord(
                record_id=record.record_id,
                created_at=record.time.ToDatetime(),
                principal=record.principal,
                method=record.method,
                project=record.project,
                object=record.object,
                code=record.code,
                reason=record.reason,
                request_id=record.request_id,
                trace_id=record.trace_id,
                peer=record.peer,
                count=record.count,
            ),
            bytes.fromhex(record.leaf),
            bytes.fromhex(record.hash),
        )
        for record in records
    ]


async def _verified(api: Api, expected: Head | None = None) -> Fault | None:
    return verify(_links(await _listed(api)), expected=expected)


async def _head(api: Api) -> Head:
    await _link_all(api.engine)
    answer = await api.audit.GetAuditHead(pb.GetAuditHeadRequest())
    return Head(answer.position, bytes.fromhex(answer.hash))


async def test_what_changes_something_is_on_record_once(api: Api) -> None:
    request = _set_quota()
    for _ in range(3):
        await api.quotas.SetQuota(request)
    await api.quotas.GetQuota(quotas_pb.GetQuotaRequest(project=PROJECT))
    [record] = await _records(api, "SetQuota")
    assert (record.principal, record.project, record.object) == ("service:admin", PROJECT, PROJECT)
    assert (record.code, record.reason, str(record.request_id), record.count) == ("OK", "", request.request_id, 1)
    assert record.method == "headway.quotas.v1.QuotaService/SetQuota"
    assert record.peer == "ipv4:127.0.0.1"
    assert await _records(api, "GetQuota") == []


async def test_what_is_refused_is_on_record_before_its_caller_hears_of_it(api: Api) -> None:
    viewer = await api.acting_as("VIEWER")
    request = _set_quota()
    assert (await refused(viewer.quotas.SetQuota(request))).reason == "PERMISSION_DENIED"
    [record] = await _records(api, "SetQuota")
    assert (record.principal, record.project, record.code, record.reason, record.request_id) == (
        viewer.subject,
        PROJECT,
        "PERMISSION_DENIED",
        "PERMISSION_DENIED",
        request.request_id,
    )
    # What fails for another reason, if it would have changed something; and a read that is denied.
    bad = _set_quota()
    bad.quota.max_accelerators["h200"] = -1
    assert (await refused(api.quotas.SetQuota(bad))).reason == "INVALID_FIELD"
    assert [(row.code, row.reason) for row in await _records(api, "SetQuota")][1:] == [("INVALID_ARGUMENT", "INVALID_FIELD")]
    job_id = (await api.submit(await api.inputs())).job_id
    stranger = await api.acting_as("VIEWER", OTHER_PROJECT)
    await refused(stranger.jobs.GetJob(jobs_pb.GetJobRequest(job_id=job_id)))
    [denied] = await _records(api, "GetJob")
    assert (denied.principal, denied.object, denied.code, denied.reason) == (
        stranger.subject,
        job_id,
        "NOT_FOUND",
        "JOB_NOT_FOUND",
    )
    assert denied.project == "", "whose job it is is nothing that a stranger's record tells their maintainer"
    # A read that went wrong has denied nothing.
    await refused(api.jobs.GetJob(jobs_pb.GetJobRequest(job_id="x")))
    assert len(await _records(api, "GetJob")) == 1


async def test_no_record_holds_what_a_request_said(api: Api) -> None:
    canary = "canary-7f3a"
    spec = await api.inputs()
    await api.submit(spec, name=canary)
    viewer = await api.acting_as("VIEWER")
    await refused(viewer.submit(spec, name=canary))
    await refused(api.submit(spec, name=canary + "\n"))
    found = await api.sql("SELECT * FROM audit_records WHERE audit_records::text LIKE :canary", canary=f"%{canary}%")
    assert found == []
    assert len(await _records(api, "SubmitJob")) == 3


async def test_a_stale_or_foreign_attempt_is_refused_and_on_record(api: Api) -> None:
    job_id, _ = await api.leased()
    others, _ = await api.leased()

    def start(job: str, attempt: int) -> attempts_pb.StartPhaseRequest:
        return attempts_pb.StartPhaseRequest(job_id=job, attempt=attempt, phase=job_pb2.JOB_PHASE_TRAIN)

    first = await api.as_attempt(job_id, 1)
    await first.attempts.StartPhase(start(job_id, 1))
    before = len(await _records(api, "StartPhase"))
    for request in (start(job_id, 2), start(others, 1), start(new_id(), 1)):
        answer = await refused(first.attempts.StartPhase(request))
        assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_ATTEMPT")
    await api.sql("UPDATE jobs SET attempt = 2 WHERE job_id = :job_id", job_id=job_id)
    assert (await refused(first.attempts.StartPhase(start(job_id, 1)))).reason == "STALE_ATTEMPT"
    records = (await _records(api, "StartPhase"))[before:]
    assert [(row.principal, row.project, row.object, row.reason) for row in records] == [
        (f"attempt:{job_id}/1", PROJECT, job_id, "STALE_ATTEMPT")
    ] * 4


async def test_strangers_are_counted_together(postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine) -> None:
    async with (
        ControlPlane(settings_of(postgres_dsn, s3_settings)) as running,
        Api(running.port, engine, s3_settings) as api,
    ):
        stranger = await api.with_token(None, "")
        liar = await api.with_token("hw_" + "0" * 32 + "_" + "A" * 43, "")
        for caller in (stranger, liar):
            for _ in range(25):
                assert (await refused(caller.quotas.SetQuota(_set_quota()))).reason == "UNAUTHENTICATED"
        with pytest.raises(grpc.aio.AioRpcError):
            await stranger.channel.unary_unary("/headway.jobs.v1.JobService/DropEverything")(b"")
        await running.__aexit__(None, None, None)
        rows = await api.sql("SELECT * FROM audit_records WHERE reason = 'UNAUTHENTICATED' ORDER BY count")
    assert [(row.method.rpartition("/")[2], row.principal, row.count, row.peer) for row in rows] == [
        ("unknown", "", 1, "ipv4:127.0.0.1"),
        ("SetQuota", "", 50, "ipv4:127.0.0.1"),
    ]


async def test_heartbeats_are_counted_and_what_they_change_is_told(
    postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine
) -> None:
    worker = capacity_pb.Worker(name="gpu-0", incarnation=new_id(), accelerator_kind="h200", accelerators=8)
    async with (
        ControlPlane(settings_of(postgres_dsn, s3_settings)) as running,
        Api(running.port, engine, s3_settings) as api,
    ):
        for _ in range(4):
            await api.capacity.RegisterWorker(capacity_pb.RegisterWorkerRequest(worker=worker))
        [told] = await _records(api, "RegisterWorker")
        assert (told.object, told.count) == ("gpu-0", 1)
        await running.__aexit__(None, None, None)
        assert [row.count for row in await _records(api, "RegisterWorker")] == [1, 3]


async def test_kinds_of_counted_calls_are_bounded(engine: AsyncEngine) -> None:
    trail = AuditTrail(engine)
    for number in range(3_000):
        trail.count(Entry("some/Method", "UNAUTHENTICATED", "UNAUTHENTICATED", peer=f"ipv4:{number}", request_id=str(number)))
    await trail.flush()
    async with engine.connect() as connection:
        rows = (await connection.execute(text("SELECT count(*), sum(count) FROM audit_records"))).one()
    assert tuple(rows) == (1_001, 3_000)


async def test_without_the_log_nothing_is_changed_and_reads_go_on(api: Api) -> None:
    await api.quotas.SetQuota(_set_quota())
    job_id = (await api.submit(spec := await api.inputs())).job_id
    await api.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = '53100'; END $$"
    )
    await api.sql("CREATE TRIGGER refuse BEFORE INSERT ON audit_records EXECUTE FUNCTION refuse()")
    changed = _set_quota()
    changed.quota.max_accelerators["h200"] = 9
    for call in (api.quotas.SetQuota(changed), api.submit(spec)):
        answer = await refused(call)
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    quota = (await api.quotas.GetQuota(quotas_pb.GetQuotaRequest(project=PROJECT))).quota
    assert dict(quota.max_accelerators) == {"h200": 1}
    assert [job.job_id for job in (await api.jobs.ListJobs(jobs_pb.ListJobsRequest(project=PROJECT))).jobs] == [job_id]
    await api.sql("DROP TRIGGER refuse ON audit_records")
    assert dict((await api.quotas.SetQuota(changed)).quota.max_accelerators) == {"h200": 9}


async def test_the_log_as_listed_verifies_with_its_head(api: Api) -> None:
    viewer = await api.acting_as("VIEWER")
    for _ in range(5):
        await api.quotas.SetQuota(_set_quota())
        await refused(viewer.quotas.SetQuota(_set_quota()))
    early = await _head(api)
    await api.quotas.SetQuota(_set_quota())
    late = await _head(api)
    assert late.position == early.position + 1
    for head in (None, early, late):
        assert await _verified(api, head) is None
    assert [record.position for record in await _listed(api)] == list(range(1, late.position + 1))
    newer = await _listed(api, after_position=early.position)
    assert verify(_links(newer), start=early, expected=late) is None


_OF_POSITION = "(SELECT record_id FROM audit_links WHERE position = 3)"
TAMPERINGS: dict[str, tuple[str, ...]] = {
    "a name is changed": (f"UPDATE audit_records SET principal = 'service:other' WHERE record_id = {_OF_POSITION}",),  # noqa: S608 - ours
    "a refusal becomes a success": ("UPDATE audit_records SET code = 'OK', reason = '' WHERE code <> 'OK'",),
    "a record goes": (f"DELETE FROM audit_records WHERE record_id = {_OF_POSITION}",),  # noqa: S608 - as above
    "a record goes, and the later ones close up": (
        "DELETE FROM audit_links WHERE position = 3",
        "UPDATE audit_links SET position = -position WHERE position > 3",
        "UPDATE audit_links SET position = -position - 1 WHERE position < 0",
    ),
    "two records change places": (
        "UPDATE audit_links SET position = -position WHERE position IN (2, 3)",
        "UPDATE audit_links SET position = 5 + position WHERE position < 0",
    ),
    "the end is cut off": ("DELETE FROM audit_links WHERE position > 6",),
    "a hash is changed": ("UPDATE audit_links SET hash = sha256('x') WHERE position = 5",),
}


@pytest.mark.parametrize("how", TAMPERINGS)
async def test_what_is_done_to_the_log_behind_its_back_shows(api: Api, how: str) -> None:
    viewer = await api.acting_as("VIEWER")
    for _ in range(4):
        await api.quotas.SetQuota(_set_quota())
        await refused(viewer.quotas.SetQuota(_set_quota()))
    head = await _head(api)
    assert await _verified(api, head) is None
    for statement in TAMPERINGS[how]:
        await api.sql(statement)
    assert await _verified(api, head) is not None


async def test_linkers_that_meet_leave_no_hole_and_link_nothing_twice(engine: AsyncEngine) -> None:
    entry = Entry("some/Method", "OK", "")

    async def write(count: int) -> None:
        for _ in range(count):
            await in_transaction(engine, lambda connection: insert_entries(connection, [entry] * 7))

    async def link() -> int:
        return await in_transaction(engine, lambda connection: chain.link(connection, limit=10))

    writing = [asyncio.create_task(write(10)) for _ in range(3)]
    linked = 0
    while not all(task.done() for task in writing) or linked < 210:
        linked += sum(await asyncio.gather(link(), link(), link()))
    async with engine.connect() as connection:
        positions = (await connection.execute(text("SELECT position FROM audit_links ORDER BY position"))).scalars().all()
    assert list(positions) == list(range(1, 211))


async def test_what_commits_late_is_linked_late(engine: AsyncEngine) -> None:
    def entries(name: str) -> list[Entry]:
        return [Entry("some/Method", "OK", "", object=name)]

    async with engine.connect() as slow:
        await insert_entries(slow, entries("slow"))
        for name in ("one", "two"):
            await in_transaction(engine, lambda connection, name=name: insert_entries(connection, entries(name)))
        assert await in_transaction(engine, chain.link) == 2
        await slow.commit()
    assert await in_transaction(engine, chain.link) == 1
    query = "SELECT object FROM audit_records JOIN audit_links USING (record_id) ORDER BY position"
    async with engine.connect() as connection:
        assert (await connection.execute(text(query))).scalars().all() == ["one", "two", "slow"]


async def test_who_sees_what_of_the_log(api: Api) -> None:
    await api.quotas.SetQuota(_set_quota(PROJECT))
    await api.quotas.SetQuota(_set_quota(OTHER_PROJECT))
    maintainer = await api.acting_as("MAINTAINER")
    auditor = await api.acting_as("AUDITOR")
    mine = await _listed(maintainer)
    assert {record.project for record in mine} == {PROJECT}
    assert [record.position for record in mine] == [record.position for record in await _listed(maintainer, project=PROJECT)]
    everything = await _listed(auditor)
    assert {record.project for record in everything} >= {PROJECT, OTHER_PROJECT, ""}
    assert everything[: len(await _listed(api))] == await _listed(api)


async def test_the_log_is_filtered_and_paged(api: Api) -> None:
    viewer = await api.acting_as("VIEWER")
    for _ in range(6):
        await api.quotas.SetQuota(_set_quota())
        await refused(viewer.quotas.SetQuota(_set_quota()))
    everything = await _listed(api)
    middle = everything[len(everything) // 2].time
    cases: list[tuple[dict[str, Any], Callable[[pb.AuditRecord], bool]]] = [
        ({"refused_only": True}, lambda record: record.code != "OK"),
        ({"principal": viewer.subject}, lambda record: record.principal == viewer.subject),
        ({"method": "headway.quotas.v1.QuotaService/SetQuota"}, lambda record: record.method.endswith("/SetQuota")),
        ({"start_time": middle}, lambda record: record.time.ToNanoseconds() >= middle.ToNanoseconds()),
        ({"end_time": middle}, lambda record: record.time.ToNanoseconds() < middle.ToNanoseconds()),
        ({"after_position": 3}, lambda record: record.position > 3),
    ]
    for fields, wanted in cases:
        expected = [record.position for record in everything if wanted(record)]
        assert expected
        for size in (1, 5, 1_000):
            assert [record.position for record in await _listed(api, page_size=size, **fields)] == expected, (fields, size)
            newest_first = await _listed(api, page_size=size, newest_first=True, **fields)
            assert [record.position for record in newest_first] == expected[::-1], (fields, size)


async def test_a_token_of_the_log_is_good_for_its_caller_and_query_only(api: Api) -> None:
    for _ in range(3):
        await api.quotas.SetQuota(_set_quota())
    await _link_all(api.engine)
    token = (await api.audit.ListAuditRecords(pb.ListAuditRecordsRequest(page_size=1))).next_page_token
    auditor = await api.acting_as("AUDITOR")
    for caller, request in (
        (auditor, pb.ListAuditRecordsRequest(page_size=1, page_token=token)),
        (api, pb.ListAuditRecordsRequest(page_size=1, page_token=token, refused_only=True)),
        (api, pb.ListAuditRecordsRequest(page_size=1, page_token=token, newest_first=True)),
        (api, pb.ListAuditRecordsRequest(page_size=1, page_token=token[:-1] + ("A" if token[-1] != "A" else "B"))),
        (api, pb.ListAuditRecordsRequest(page_size=1, page_token="x" * 1_000_000)),
    ):
        answer = await refused(caller.audit.ListAuditRecords(request))
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR")


async def test_absurd_questions_to_the_log_are_refused(api: Api) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"after_position": -1}, "after_position"),
        ({"start_time": Timestamp(seconds=2**62)}, "start_time"),
        ({"end_time": Timestamp(seconds=-(2**62))}, "end_time"),
        ({"principal": "x" * 301}, "principal"),
    ]
    for fields, path in cases:
        answer = await refused(api.audit.ListAuditRecords(pb.ListAuditRecordsRequest(**fields)))
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
