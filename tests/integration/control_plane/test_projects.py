"""Projects and members over the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest_asyncio

from control_plane.settings import S3Settings
from headway.projects.v1 import project_service_pb2 as pb
from tests.integration.control_plane.conftest import new_id, refused
from tests.integration.control_plane.identity_world import Caller, World, code_of, world
from tests.waiting import until

DENIED, OK = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OK


@pytest_asyncio.fixture
async def here(postgres_dsn: str, s3_settings: S3Settings) -> AsyncIterator[World]:
    async with world(postgres_dsn, s3_settings) as running:
        yield running


async def test_a_project_is_made_once_and_read_back(here: World) -> None:
    admin = await here.admin()
    asked = pb.Project(name="search", title="Search, Zürich", priority_max=0)
    request = pb.CreateProjectRequest(request_id=new_id(), project=asked)
    made = (await admin.projects.CreateProject(request)).project
    assert (made.name, made.title, made.priority_max, made.creator) == ("search", asked.title, 0, "service:admin")
    assert not made.HasField("delete_time")
    assert (await admin.projects.CreateProject(request)).project == made
    assert (await admin.projects.GetProject(pb.GetProjectRequest(name="search"))).project == made
    assert (await admin.create_project("plain")).project.priority_max == 1_000
    refusal = await refused(admin.create_project("search"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN")
    repeated = pb.CreateProjectRequest(request_id=request.request_id, project=pb.Project(name="another"))
    assert (await refused(admin.projects.CreateProject(repeated))).reason == "REQUEST_ID_REUSED"


LOOK_ALIKES: list[str] = [
    "",
    "Support",  # B12: lower-cased it would be another's
    "SUPPORT",
    "a" * 64,  # B12: cut to 63 it would be another's
    "a_b",
    "a.b",
    "a/b",
    "-a",
    "a-",
    "support\n",  # D4
    "support\x00",
    " support",
    "s\u0443pport",  # D3: Cyrillic
    "\uff53upport",  # D3: full width
    "sup\u200bport",  # D3: zero width
    "\u202esupport",  # D3: turned
    "🚀",
    "٣",  # A digit, but not an ASCII one.
    "../support",
    "support%00",
]


async def test_names_that_could_be_taken_for_others_are_refused(here: World) -> None:
    admin = await here.admin()
    for name in LOOK_ALIKES:
        refusal = await refused(admin.create_project(name))
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["project.name"]), name


BEYOND_LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"title": "x" * 129}, "project.title"),
    ({"title": "two\nlines"}, "project.title"),
    ({"title": "turned \u202e round"}, "project.title"),
    ({"priority_max": -1}, "project.priority_max"),
    ({"priority_max": 1_001}, "project.priority_max"),
    ({"priority_max": 2**31 - 1}, "project.priority_max"),
]


async def test_limits_of_a_project(here: World) -> None:
    admin = await here.admin()
    for fields, at_fault in BEYOND_LIMITS:
        assert (await refused(admin.create_project("search", **fields))).fields == [at_fault], fields


async def test_changes_name_the_version_they_are_of(here: World) -> None:
    admin, maintainer = await here.admin(), await here.with_role("MAINTAINER")
    before = (await maintainer.projects.GetProject(pb.GetProjectRequest(name="support"))).project
    titled = (await _update(maintainer, title="Support", etag=before.etag)).project
    assert titled.title == "Support"
    assert titled.etag != before.etag
    refusal = await refused(_update(maintainer, title="again", etag=before.etag))
    assert (refusal.code, refusal.reason, refusal.metadata) == (
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
        {"etag": titled.etag},
    )
    assert (await _update(maintainer, title="Support")).project == titled
    # The ceiling binds the maintainers: they do not set it.
    assert await code_of(_update(maintainer, priority_max=1_000)) is DENIED
    assert (await _update(admin, priority_max=500)).project.priority_max == 500
    assert await code_of(_update(await here.with_role("SUBMITTER"), title="x")) is DENIED


async def test_a_project_that_one_may_not_see_is_one_that_is_not_there(here: World) -> None:
    outsider = await here.with_role("MAINTAINER", "other")
    calls: dict[str, Callable[[str], Awaitable[Any]]] = {
        "get": lambda name: outsider.projects.GetProject(pb.GetProjectRequest(name=name)),
        "update": lambda name: _update(outsider, name=name, title="x"),
        "members": lambda name: outsider.projects.ListMembers(pb.ListMembersRequest(project=name)),
        "set": lambda name: outsider.set_member(name, "user:bob", "VIEWER"),
        "remove": lambda name: outsider.remove_member(name, "user:bob"),
    }
    for what, call in calls.items():
        hidden, missing = await refused(call("support")), await refused(call("nothing"))
        assert (hidden.code, hidden.reason) == (grpc.StatusCode.NOT_FOUND, "PROJECT_NOT_FOUND"), what
        assert hidden.message.replace("support", "nothing") == missing.message == "there is no project nothing"
    assert await code_of(outsider.create_project("mine")) is DENIED
    assert [project.name for project in (await outsider.projects.ListProjects(pb.ListProjectsRequest())).projects] == ["other"]


async def test_projects_are_listed_by_page_and_name(here: World) -> None:
    admin = await here.admin()
    for name in ("c", "a", "b"):
        await admin.create_project(name)
    listed: list[str] = []
    page_token = ""
    while True:
        page = await admin.projects.ListProjects(pb.ListProjectsRequest(page_size=2, page_token=page_token))
        listed += [project.name for project in page.projects]
        page_token = page.next_page_token
        if not page_token:
            break
    assert listed == ["a", "b", "c", "other", "support"]
    for role in ("VIEWER", "SUBMITTER", "MAINTAINER", "APPROVER"):
        caller = await here.with_role(role)
        own = (await caller.projects.ListProjects(pb.ListProjectsRequest())).projects
        assert [project.name for project in own] == ["support"], role
    auditor = await here.with_role("AUDITOR")
    page = await admin.projects.ListProjects(pb.ListProjectsRequest(page_size=2))
    request = pb.ListProjectsRequest(page_size=2, page_token=page.next_page_token)
    assert (await refused(auditor.projects.ListProjects(request))).reason == "INVALID_CURSOR"


async def test_a_project_ends_when_nothing_runs_in_it_any_more(here: World) -> None:
    admin = await here.admin()
    made = await admin.create_token("support", name="ci", role="SUBMITTER")
    service, job = await here.caller(made.secret), await here.job()
    assert await code_of(service.whoami()) is OK
    request = pb.DeleteProjectRequest(request_id=new_id(), name="support")
    refusal = await refused(admin.projects.DeleteProject(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STILL_NEEDED")
    assert refusal.metadata == {"project": "support"}
    await here.sql("UPDATE jobs SET state = 'CANCELLED', ended_at = now() WHERE job_id = :job", job=job)
    deleted = (await admin.projects.DeleteProject(request)).project
    assert deleted.HasField("delete_time")
    assert (await admin.projects.DeleteProject(request)).project == deleted
    await until(lambda: _unknown(service))
    assert (await refused(admin.create_token("support"))).reason == "PROJECT_NOT_FOUND"
    assert (await refused(admin.set_member("support", "user:bob", "VIEWER"))).reason == "PROJECT_NOT_FOUND"
    assert (await refused(admin.create_project("support"))).reason == "NAME_TAKEN"


async def test_nothing_is_made_in_a_project_that_is_ending(here: World) -> None:
    # The end of a project waits for what is being made in it, and what comes later finds no project.
    admin = await here.admin()
    for _ in range(5):
        name = f"p-{new_id()[:8]}"
        await admin.create_project(name)
        request = pb.DeleteProjectRequest(request_id=new_id(), name=name)
        await asyncio.gather(
            admin.projects.DeleteProject(request),
            *(admin.create_token(name, name=f"n{number}") for number in range(4)),
            return_exceptions=True,
        )
        alive = await here.sql(
            "SELECT token_id FROM tokens NATURAL JOIN projects WHERE project = :name AND revoked_at IS NULL", name=name
        )
        assert not alive


async def test_roles_are_given_replaced_and_taken(here: World) -> None:
    admin = await here.admin()
    member = (await admin.set_member("support", "user:alice@example.org", "MAINTAINER")).member
    assert (member.role, member.grantor) == (pb.ROLE_MAINTAINER, "service:admin")
    await admin.set_member("support", "service:support/nightly", "SUBMITTER")
    await admin.set_member("support", "service:support/nightly", "VIEWER")
    listed = (await admin.projects.ListMembers(pb.ListMembersRequest(project="support"))).members
    assert [(item.subject, item.role) for item in listed] == [
        ("service:support/nightly", pb.ROLE_VIEWER),
        ("user:alice@example.org", pb.ROLE_MAINTAINER),
    ]
    await admin.remove_member("support", "service:support/nightly")
    refusal = await refused(admin.remove_member("support", "service:support/nightly"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_nobody_gives_a_role_above_their_own(here: World) -> None:
    admin, maintainer = await here.admin(), await here.with_role("MAINTAINER")
    await maintainer.set_member("support", "user:bob", "MAINTAINER")
    assert await code_of(maintainer.set_member("support", "user:bob", "APPROVER")) is DENIED
    assert await code_of(maintainer.set_member("", "user:bob", "ORG_ADMIN")) is DENIED
    assert await code_of(maintainer.set_member("", "user:bob", "AUDITOR")) is DENIED
    # Neither do maintainers take from model risk what they could not give it.
    await admin.set_member("support", "user:risk", "APPROVER")
    assert await code_of(maintainer.set_member("support", "user:risk", "VIEWER")) is DENIED
    assert await code_of(maintainer.remove_member("support", "user:risk")) is DENIED
    for role in ("VIEWER", "SUBMITTER", "APPROVER", "AUDITOR"):
        caller = await here.with_role(role)
        assert await code_of(caller.set_member("support", "user:eve", "VIEWER")) is DENIED
        assert await code_of(caller.remove_member("support", "user:bob")) is DENIED


async def test_the_last_maintainer_and_the_last_admin_stay(here: World) -> None:
    admin = await here.admin()
    for scope, keeper, lesser in (("support", "MAINTAINER", "VIEWER"), ("", "ORG_ADMIN", "AUDITOR")):
        await admin.set_member(scope, "user:alice", keeper)
        for call in (admin.remove_member(scope, "user:alice"), admin.set_member(scope, "user:alice", lesser)):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STILL_NEEDED")
        await admin.set_member(scope, "user:alice", keeper)
        await admin.set_member(scope, "user:bob", keeper)
        await admin.set_member(scope, "user:alice", lesser)
        await admin.remove_member(scope, "user:alice")


async def test_of_two_last_ones_who_leave_at_once_one_stays(here: World) -> None:
    admin = await here.admin()
    for scope, keeper in (("support", "MAINTAINER"), ("", "ORG_ADMIN")):
        for _ in range(5):
            await asyncio.gather(*(admin.set_member(scope, f"user:{name}", keeper) for name in "ab"))
            codes = await asyncio.gather(*(code_of(admin.remove_member(scope, f"user:{name}")) for name in "ab"))
            assert sorted(codes, key=str) == sorted([OK, grpc.StatusCode.FAILED_PRECONDITION], key=str)


NO_SUBJECTS: list[str] = [
    "",
    "alice",
    "user:",
    "user:alice\n",
    "user:al ice",
    "user:\u0430lice",
    "User:alice",
    "worker:gpu-1",
    "attempt:x/1",
    "system:migration",
    "user:" + "a" * 196,
]


async def test_subjects_that_are_none(here: World) -> None:
    admin = await here.admin()
    for subject in NO_SUBJECTS:
        assert (await refused(admin.set_member("support", subject, "VIEWER"))).fields == ["member.subject"], subject
        assert (await refused(admin.remove_member("support", subject))).fields == ["subject"], subject


async def test_roles_that_do_not_fit_their_scope(here: World) -> None:
    admin = await here.admin()
    for scope, role in (("support", "ORG_ADMIN"), ("support", "UNSPECIFIED"), ("", "VIEWER"), ("", "WORKER")):
        assert (await refused(admin.set_member(scope, "user:bob", role))).fields == ["member.role"], (scope, role)


async def _update(caller: Caller, name: str = "support", **fields: object) -> pb.UpdateProjectResponse:
    request = pb.UpdateProjectRequest(request_id=new_id(), name=name, **fields)  # pyright: ignore[reportArgumentType] - as named
    return await caller.projects.UpdateProject(request)


async def _unknown(caller: Caller) -> bool:
    return await code_of(caller.whoami()) is grpc.StatusCode.UNAUTHENTICATED
