"""Tokens over the API: who may make, see and end which, and the credentials of attempts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest_asyncio

from control_plane.settings import S3Settings
from headway.identity.v1 import identity_service_pb2 as pb
from headway.projects.v1 import project_service_pb2 as projects_pb
from tests.integration.control_plane.conftest import new_id, refused
from tests.integration.control_plane.identity_world import (
    WORKER,
    Caller,
    World,
    code_of,
    world,
)
from tests.waiting import until

DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest_asyncio.fixture
async def here(postgres_dsn: str, s3_settings: S3Settings) -> AsyncIterator[World]:
    async with world(postgres_dsn, s3_settings) as running:
        yield running


async def test_a_secret_is_shown_once_and_stored_nowhere(here: World) -> None:
    admin = await here.admin()
    request = pb.CreateTokenRequest(
        request_id=new_id(), project="support", name="ci", role=projects_pb.ROLE_SUBMITTER, lifetime_seconds=3_600
    )
    made = await admin.identity.CreateToken(request)
    assert made.secret.startswith(f"hw_{made.token.token_id.replace('-', '')}_")
    assert (made.token.name, made.token.project, made.token.creator) == ("ci", "support", "service:admin")
    assert made.token.expire_time.seconds - made.token.create_time.seconds == 3_600
    repeated = await admin.identity.CreateToken(request)
    assert (repeated.token, repeated.secret) == (made.token, "")
    assert (await (await here.caller(made.secret)).whoami()).subject == "service:support/ci"
    listed = await admin.identity.ListTokens(pb.ListTokensRequest(project="support"))
    assert [token.token_id for token in listed.tokens] == [made.token.token_id]
    # Nowhere in the database: not the token, not the part that is secret, in no form of a column.
    chance = made.secret.rsplit("_", 1)[1]
    tables = await here.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        for (row,) in await here.sql(f'SELECT t::text FROM "{table}" AS t'):  # noqa: S608 - its own tables
            assert chance not in row
            assert chance.encode().hex() not in row


BEYOND_LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": "CI"}, "name"),
    ({"name": "ci\n"}, "name"),
    ({"name": "с\u0456"}, "name"),  # noqa: RUF001 - Cyrillic look-alikes
    ({"name": "a" * 65}, "name"),
    ({"role": "UNSPECIFIED"}, "role"),
    ({"role": "WORKER"}, "role"),
    ({"role": "ORG_ADMIN"}, "role"),
    ({"project": "", "role": "VIEWER"}, "role"),
    ({"lifetime_seconds": 59}, "lifetime_seconds"),
    ({"lifetime_seconds": 0}, "lifetime_seconds"),
    ({"lifetime_seconds": 31_536_001}, "lifetime_seconds"),
    ({"lifetime_seconds": 2**63 - 1}, "lifetime_seconds"),
    ({"project": "Support"}, "project"),
]


async def test_limits_of_a_token(here: World) -> None:
    admin = await here.admin()
    for fields, at_fault in BEYOND_LIMITS:
        refusal = await refused(admin.create_token(**{"project": "support"} | fields))
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [at_fault]), fields


async def test_nobody_makes_a_token_above_themselves(here: World) -> None:
    maintainer = await here.with_role("MAINTAINER")
    assert (await maintainer.create_token("support", role="MAINTAINER")).secret
    for project, role in (("support", "APPROVER"), ("", "ORG_ADMIN"), ("", "AUDITOR"), ("", "WORKER")):
        refusal = await refused(maintainer.create_token(project, role=role))
        assert (refusal.code, refusal.reason) == (DENIED, "PERMISSION_DENIED"), role
        assert "ORG_ADMIN" in refusal.metadata["role_required"]
    assert (await refused(maintainer.create_token("other"))).reason == "PROJECT_NOT_FOUND"
    for role in ("VIEWER", "SUBMITTER", "APPROVER", "AUDITOR"):
        assert await code_of((await here.with_role(role)).create_token("support")) is DENIED
    admin = await here.admin()
    worker = await here.caller((await admin.create_token(role="WORKER", name="w")).secret)
    assert (await worker.whoami()).subject == "worker:w"


async def test_what_a_service_makes_stands_for_the_person_behind_it(here: World) -> None:
    maintainer = await here.with_role("MAINTAINER")
    first = await maintainer.create_token("support", name="first", role="MAINTAINER")
    second = await (await here.caller(first.secret)).create_token("support", name="second")
    assert (first.token.creator, second.token.creator) == ("service:admin", "service:admin")


async def test_who_ends_which_token(here: World) -> None:
    admin, maintainer = await here.admin(), await here.with_role("MAINTAINER")
    stranger, viewer = await here.with_role("MAINTAINER", "other"), await here.with_role("VIEWER")
    approver = await admin.create_token("support", name="risk", role="APPROVER")
    ordinary = await admin.create_token("support", name="ordinary", role="SUBMITTER")
    organisation = await admin.create_token(name="auditor", role="AUDITOR")
    # Another project's token, the organisation's, and none at all: the same answer.
    answers = [
        await refused(stranger.revoke_token(token_id))
        for token_id in (ordinary.token.token_id, organisation.token.token_id, "00000000-0000-4000-8000-000000000000")
    ]
    assert {(answer.code, answer.reason) for answer in answers} == {(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")}
    assert {answer.message.replace(answer.metadata["name"], "ID") for answer in answers} == {"there is no token ID"}
    assert await code_of(viewer.revoke_token(ordinary.token.token_id)) is DENIED
    assert await code_of(maintainer.revoke_token(approver.token.token_id)) is DENIED
    revoked = await maintainer.revoke_token(ordinary.token.token_id)
    assert revoked.token.HasField("revoke_time")
    again = await admin.revoke_token(ordinary.token.token_id)
    assert again.token.revoke_time == revoked.token.revoke_time
    assert (await admin.revoke_token(approver.token.token_id)).token.HasField("revoke_time")


async def test_whoever_holds_a_token_may_end_it(here: World) -> None:
    admin = await here.admin()
    for role, scope in (("VIEWER", "support"), ("APPROVER", "support"), ("AUDITOR", "")):
        made = await admin.create_token(scope, name="own", role=role)
        holder = await here.caller(made.secret)
        await holder.revoke_token(made.token.token_id)
        await until(lambda holder=holder: _is_out(holder))


async def test_tokens_are_listed_by_page_to_those_who_manage_them(here: World) -> None:
    admin, maintainer = await here.admin(), await here.with_role("MAINTAINER")
    made = [(await maintainer.create_token("support", name=f"n{number}")).token for number in range(5)]
    listed: list[str] = []
    page_token = ""
    while True:
        page = await maintainer.identity.ListTokens(pb.ListTokensRequest(project="support", page_size=2, page_token=page_token))
        listed += [token.token_id for token in page.tokens]
        page_token = page.next_page_token
        if not page_token:
            break
    assert listed[:5] == [token.token_id for token in reversed(made)]
    assert len(listed) == 6
    first = await maintainer.identity.ListTokens(pb.ListTokensRequest(project="support", page_size=2))
    for caller, project in ((admin, "support"), (maintainer, "")):
        request = pb.ListTokensRequest(project=project, page_size=2, page_token=first.next_page_token)
        refusal = await refused(caller.identity.ListTokens(request))
        assert refusal.reason in {"INVALID_CURSOR", "PERMISSION_DENIED"}
    assert await code_of(admin.identity.ListTokens(pb.ListTokensRequest())) is grpc.StatusCode.OK
    assert await code_of(maintainer.identity.ListTokens(pb.ListTokensRequest())) is DENIED
    viewer = await here.with_role("VIEWER")
    assert await code_of(viewer.identity.ListTokens(pb.ListTokensRequest(project="support"))) is DENIED


async def test_a_worker_gets_the_credential_of_the_current_attempt_only(here: World) -> None:
    worker = await here.caller(WORKER)
    job = await here.job(attempt=2)
    issued = await _issue(worker, job, 2)
    me = await (await here.caller(issued.secret)).whoami()
    assert (me.subject, me.expire_time) == (f"attempt:{job}/2", issued.expire_time)
    for attempt in (0, 1, 3):
        assert (await refused(_issue(worker, job, attempt))).reason == "STALE_ATTEMPT"
    assert (await refused(_issue(worker, job, -1))).fields == ["attempt"]
    assert (await refused(_issue(worker, new_id(), 0))).reason == "JOB_NOT_FOUND"
    over = await here.job(state="RUNNING")
    await here.sql("UPDATE jobs SET state = 'SUCCEEDED', ended_at = now() WHERE job_id = :id", id=over)
    assert (await refused(_issue(worker, over, 1))).reason == "STALE_ATTEMPT"
    assert await code_of(_issue(await here.admin(), job, 2)) is DENIED
    assert await code_of(_issue(await here.with_role("MAINTAINER"), job, 2)) is DENIED


async def test_a_worker_with_accelerators_speaks_for_no_attempt_of_another(here: World) -> None:
    admin, worker = await here.admin(), await here.caller(WORKER)
    await here.offer("gpu-1")
    own, others = await here.job(leased_to="gpu-1"), await here.job(leased_to="gpu-2")
    assert (await _issue(worker, own, 1)).secret
    assert (await refused(_issue(worker, others, 1))).reason == "LEASE_NOT_HELD"
    # A worker without accelerators looks after the leases of all: it gives back those of workers that are gone.
    made = await admin.create_token(name="cpu-1", role="WORKER")
    assert (await _issue(await here.caller(made.secret), others, 1)).secret


async def test_what_is_done_with_tokens_is_on_record(here: World) -> None:
    maintainer = await here.with_role("MAINTAINER")
    made = await maintainer.create_token("support", name="ci")
    await maintainer.revoke_token(made.token.token_id)
    records = await here.sql(
        "SELECT method, principal, project, object, code FROM audit_records WHERE object = :id ORDER BY inserted",
        id=made.token.token_id,
    )
    assert [tuple(record) for record in records] == [
        (f"headway.identity.v1.IdentityService/{method}", "service:support/maintainer", "support", made.token.token_id, "OK")
        for method in ("CreateToken", "RevokeToken")
    ]


async def _issue(caller: Caller, job_id: str, attempt: int) -> pb.IssueAttemptTokenResponse:
    return await caller.identity.IssueAttemptToken(pb.IssueAttemptTokenRequest(job_id=job_id, attempt=attempt))


async def _is_out(caller: Caller) -> bool:
    return await code_of(caller.whoami()) is grpc.StatusCode.UNAUTHENTICATED
