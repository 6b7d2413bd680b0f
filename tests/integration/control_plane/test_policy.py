"""Every method for every role in every scope, on the real server over a real channel; and what the policy does not know."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from sqlalchemy import Engine, event

from control_plane import app
from control_plane.app import SERVICES, ControlPlane
from control_plane.rpc.chain import mutates
from control_plane.rpc.policy import POLICY, policy
from control_plane.settings import LimitsSettings, S3Settings
from headway.identity.v1 import identity_service_pb2 as identity_pb
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from tests.integration.control_plane import matrix
from tests.integration.control_plane.callers import ADMIN_TOKEN, OTHER_PROJECT, PROJECT, channel_to
from tests.integration.control_plane.conftest import Api, new_id, refusal, refused, settings_of
from tests.integration.control_plane.scenes import BUDGET, Row, Scene, Stage

LETTERS = {
    grpc.StatusCode.OK: "✓",
    grpc.StatusCode.UNAUTHENTICATED: "U",
    grpc.StatusCode.PERMISSION_DENIED: "D",
    grpc.StatusCode.NOT_FOUND: "N",
    grpc.StatusCode.FAILED_PRECONDITION: "F",
}
REASONS = {
    "U": {"UNAUTHENTICATED"},
    "D": {"PERMISSION_DENIED"},
    "N": {"JOB_NOT_FOUND", "PROJECT_NOT_FOUND", "RESOURCE_NOT_FOUND"},
    "F": {"STALE_ATTEMPT"},
}


def test_the_matrix_has_a_row_for_every_method() -> None:
    assert {row.rpc for row in matrix.rows()} == set(_full_names())


def _full_names() -> dict[str, Any]:
    pool = descriptor_pool.Default()
    return {
        f"{name.rpartition('.')[2]}/{method.name}": (f"/{name}/{method.name}", method)
        for name in SERVICES
        for method in pool.FindServiceByName(name).methods
    }


async def _called(api: Api, rpc: str, request: Any) -> tuple[str, str]:
    """The letter and the reason of what comes of a call; of a stream, of its first message or its end."""
    path, method = _full_names()[rpc]
    response = message_factory.GetMessageClass(method.output_type)
    encode: Any = type(request).SerializeToString
    try:
        if method.client_streaming:
            call: Any = api.channel.stream_stream(path, encode, response.FromString)(iter([request]))
            await anext(aiter(call), None)
        elif method.server_streaming:
            call = api.channel.unary_stream(path, encode, response.FromString)(request)
            await anext(aiter(call), None)
            call.cancel()
        else:
            await api.channel.unary_unary(path, encode, response.FromString)(request)
    except grpc.aio.AioRpcError as error:
        return LETTERS.get(error.code(), error.code().name), refusal(error).reason
    return "✓", ""


async def _stage(api: Api) -> Stage:
    spec = await api.inputs()
    template = (await api.submit(spec)).job_id
    await api.sql(
        "INSERT INTO datasets (project, name, sha256, size_bytes, uri, license, attribution)"
        " SELECT :other, name, sha256, size_bytes, uri, license, attribution FROM datasets",
        other=OTHER_PROJECT,
    )
    await api.sql(
        "INSERT INTO queue_nodes (kind, name) SELECT 'PROJECT', unnest(ARRAY[:one, :two])", one=PROJECT, two=OTHER_PROJECT
    )
    await api.sql("INSERT INTO queue_nodes (kind, name) VALUES ('ORGANISATION', '')")
    for kind, scope in (("PROJECT", PROJECT), ("PROJECT", OTHER_PROJECT), ("ORGANISATION", "")):
        await api.sql(BUDGET, kind=kind, scope=scope)
    return Stage(api, template, OTHER_PROJECT)


@pytest.mark.timeout(900)
async def test_every_method_for_every_role_in_every_scope(api: Api) -> None:
    stage = await _stage(api)
    callers = {
        "an": await api.with_token(None, ""),
        "v": await api.acting_as("VIEWER"),
        "s": await api.acting_as("SUBMITTER"),
        "m": await api.acting_as("MAINTAINER"),
        "p": await api.acting_as("APPROVER"),
        "o": await api.acting_as("ORG_ADMIN"),
        "a": await api.acting_as("AUDITOR"),
        "k": await api.acting_as("WORKER"),
    }
    await api.sql("INSERT INTO projects (project, creator) VALUES ('elsewhere', 'x')")
    callers["x"] = await api.acting_as("MAINTAINER", "elsewhere")
    bystander = await stage.scene(matrix.rows()[0], "own", "somebody")
    wrong: list[str] = []
    changed: Counter[str] = Counter()
    denied: Counter[str] = Counter()
    recorded_before = await _recorded(api)

    async def check(row: Row, role: str, place: str) -> None:
        submitter = callers["s"].subject if row.scope == "mine" else "somebody"
        scene: Scene = await stage.scene(row, place, submitter)
        if role == "w":
            # An attempt of the very job; where it is another's turn, an attempt of a job that has nothing to do with it.
            caller = await api.as_attempt(scene.job_id if place == "own" else bystander.job_id, 1)
        else:
            caller = callers[role]
        letter, reason = await _called(caller, row.rpc, matrix.request(row, scene))
        method = _full_names()[row.rpc][0][1:]
        if letter in {"D", "N", "F"}:
            denied[method] += 1
        elif letter == "✓" and mutates(method) and not POLICY[method].heartbeat:
            changed[method] += 1
        expected = row.expected(role, place)
        if letter != expected or (reason and reason not in REASONS[expected]):
            wrong.append(f"{row.rpc} ({row.scope}) {role} {place}: expected {expected}, got {letter} {reason}")

    for row in matrix.rows():
        cells = itertools.product(matrix.ROLES, row.places)
        # x is a member of neither project: theirs is the case "own" for everybody else.
        await asyncio.gather(*(check(row, role, place) for role, place in cells if role != "x" or place != "other"))
    assert not wrong, "\n".join(wrong)
    # One record for every call that changed something or was denied, and none for any other.
    recorded = await _recorded(api)
    assert recorded[0] - recorded_before[0] == changed
    assert recorded[1] - recorded_before[1] == denied


async def _recorded(api: Api) -> tuple[Counter[str], Counter[str]]:
    """By method, how many calls are on record as done, and as denied to somebody who is known."""
    rows = await api.sql(
        "SELECT method, code = 'OK', count(*) FROM audit_records WHERE principal <> '' AND count = 1 GROUP BY 1, 2"
    )
    done = Counter({method: count for method, ok, count in rows if ok and not POLICY[method].heartbeat})
    return done, Counter({method: count for method, ok, count in rows if not ok})


async def test_what_is_hidden_answers_as_what_is_missing_to_the_byte(api: Api) -> None:
    stage = await _stage(api)
    hidden = await stage.scene(matrix.rows()[0], "own", "somebody")
    stranger = await api.acting_as("MAINTAINER", OTHER_PROJECT)
    missing = Scene(
        "nowhere", *(new_id() for _ in range(5)), node=new_id(), sha256=hidden.sha256, manifest_uri=hidden.manifest_uri
    )
    for row in matrix.rows():
        if row.cells["x"] != "N":
            continue
        answers: list[bytes] = []
        for scene in (hidden, missing):
            path, method = _full_names()[row.rpc]
            request = matrix.request(row, scene)
            encode: Any = type(request).SerializeToString
            call: Any = (
                stranger.channel.unary_stream(path, encode, None)(request)
                if method.server_streaming
                else stranger.channel.unary_unary(path, encode, None)(request)
            )
            code, details, trailing = await call.code(), await call.details(), dict(await call.trailing_metadata())
            answer = f"{code} {details} ".encode() + trailing["grpc-status-details-bin"]
            for name, letter in ((scene.project, "P"), (scene.job_id, "J"), (scene.token_id, "T"), (scene.webhook_id, "W")):
                answer = answer.replace(name.encode(), letter.encode())
            answers.append(_without_lengths(answer))
        assert answers[0] == answers[1], row.rpc


def _without_lengths(answer: bytes) -> bytes:
    """Leaves out what only says how long the name is that was asked for."""
    return bytes(byte for byte in answer if 32 <= byte < 127)


async def test_a_hidden_job_costs_the_very_statements_that_a_missing_one_costs(api: Api) -> None:
    job_id = (await api.submit(await api.inputs())).job_id
    stranger = await api.acting_as("VIEWER", OTHER_PROJECT)
    await api.get(job_id)  # whoever may see it has looked it up
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        if "jobs.submitter" in statement:
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        seen: list[list[str]] = []
        for asked in (job_id, new_id(), job_id, new_id()):
            statements.clear()
            assert (await refused(stranger.jobs.GetJob(jobs_pb.GetJobRequest(job_id=asked)))).reason == "JOB_NOT_FOUND"
            seen.append(list(statements))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(seen[0]) == 1
    assert all(one == seen[0] for one in seen)


async def test_a_method_without_a_row_is_denied(
    postgres_dsn: str, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_who_am_i(reflection: Any) -> Any:
        return {name: rule for name, rule in policy(reflection).items() if not name.endswith("/WhoAmI")}

    monkeypatch.setattr(app, "policy", without_who_am_i)
    async with (
        ControlPlane(settings_of(postgres_dsn, s3_settings, limits=LimitsSettings())) as running,
        channel_to(running.port, ADMIN_TOKEN) as channel,
    ):
        call = channel.unary_unary("/headway.identity.v1.IdentityService/WhoAmI", None, None)
        answer = await refused(call(identity_pb.WhoAmIRequest().SerializeToString()))
        assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
