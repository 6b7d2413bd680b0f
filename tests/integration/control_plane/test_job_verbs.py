"""The verbs: what they make of one job and of thousands, who may ask for them, and what a repeat does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2

from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as pb
from tests.integration.control_plane.conftest import new_id, refused
from tests.integration.control_plane.verbs_server import CEILING, VerbsServer, attempt, caller, verbs_server

NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
DENIED = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
ILLEGAL = (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")


@pytest_asyncio.fixture
async def server(postgres_dsn: str) -> AsyncIterator[VerbsServer]:
    async with verbs_server(postgres_dsn) as running:
        yield running


def request_of(verb: str, **fields: Any) -> Any:
    kind: Callable[..., Any] = getattr(pb, f"{verb}Request")
    return kind(**{"request_id": new_id(), **fields})


async def call(server: VerbsServer, verb: str, who: str = "ada", **fields: Any) -> Any:
    return await getattr(server.jobs, verb)(request_of(verb, **fields), metadata=caller(who))


async def refusal_of(server: VerbsServer, verb: str, who: str = "ada", **fields: Any) -> tuple[grpc.StatusCode, str]:
    answer = await refused(call(server, verb, who, **fields))
    return answer.code, answer.reason


def reason_of(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason


async def test_a_job_paused_before_its_admission_goes_back_to_the_queue(server: VerbsServer) -> None:
    job_id = await server.job()
    paused = await call(server, "PauseJob", job_id=job_id, reason="wait for data")
    assert paused.job.state == job_pb2.JOB_STATE_PAUSED
    resumed = await call(server, "ResumeJob", job_id=job_id)
    assert resumed.job.state == job_pb2.JOB_STATE_QUEUED
    assert await server.signals(job_id) == []
    assert await server.sql("SELECT state FROM outbox") == []
    assert await server.events(job_id) == [
        ("STATE_CHANGED", "PAUSED", {"by": "user:ada", "reason": "wait for data"}),
        ("STATE_CHANGED", "QUEUED", {"by": "user:ada"}),
    ]


async def test_a_running_job_is_told_to_pause_and_is_paused_when_it_says_so(server: VerbsServer) -> None:
    job_id = await server.job("RUNNING")
    lease_id = await server.lease(job_id, granted=True)
    pausing = await call(server, "PauseJob", job_id=job_id, reason="lunch")
    assert pausing.job.state == job_pb2.JOB_STATE_PAUSING
    confirm = attempts_pb.ConfirmPauseRequest(job_id=job_id, attempt=1, pause=1)
    for _ in range(2):
        assert (await server.attempts.ConfirmPause(confirm)).state == job_pb2.JOB_STATE_PAUSED
    [(lease_state, outcome)] = await server.sql("SELECT state, outcome FROM leases WHERE lease_id = :id", id=lease_id)
    assert (lease_state, outcome) == ("ENDED", "paused")
    resumed = await call(server, "ResumeJob", job_id=job_id)
    assert resumed.job.state == job_pb2.JOB_STATE_RUNNING
    assert await server.signals(job_id) == [
        ("signal_pause", {"pause": 1, "reason": "lunch"}),
        ("signal_resume", {"pause": 1}),
    ]
    assert [state for _, state, _ in await server.events(job_id)] == ["PAUSING", "PAUSING", "PAUSED", "RUNNING"]


async def test_the_confirmation_of_an_earlier_pause_does_not_confirm_a_later_one(server: VerbsServer) -> None:
    job_id = await server.job("RUNNING")
    await call(server, "PauseJob", job_id=job_id)
    await call(server, "ResumeJob", job_id=job_id)
    await call(server, "PauseJob", job_id=job_id)
    late = attempts_pb.ConfirmPauseRequest(job_id=job_id, attempt=0, pause=1)
    assert (await server.attempts.ConfirmPause(late)).state == job_pb2.JOB_STATE_PAUSING
    stale = attempts_pb.ConfirmPauseRequest(job_id=job_id, attempt=7, pause=2)
    assert (await refused(server.attempts.ConfirmPause(stale))).reason == "STALE_ATTEMPT"
    confirmed = attempts_pb.ConfirmPauseRequest(job_id=job_id, attempt=0, pause=2)
    assert (await server.attempts.ConfirmPause(confirmed)).state == job_pb2.JOB_STATE_PAUSED


async def test_a_pause_that_comes_too_late_lets_the_job_end(server: VerbsServer) -> None:
    for state, expected in ((job_pb2.JOB_STATE_SUCCEEDED, "SUCCEEDED"), (job_pb2.JOB_STATE_FAILED, "FAILED")):
        job_id = await server.job("RUNNING")
        await call(server, "PauseJob", job_id=job_id)
        failure = job_pb2.Failure(kind=job_pb2.FAILURE_KIND_NUMERIC, message="loss is NaN")
        finish = attempts_pb.FinishJobRequest(job_id=job_id, state=state, failure=failure if expected == "FAILED" else None)
        assert (await server.attempts.FinishJob(finish)).state == state
        assert await server.state(job_id) == expected
        assert await server.signals(job_id) == []


@pytest.mark.parametrize(
    ("state", "admitted", "after", "told"),
    [
        ("QUEUED", False, "CANCELLED", []),
        ("PAUSED", False, "CANCELLED", []),
        ("PAUSED", True, "CANCELLING", ["cancel_workflow"]),
        ("PAUSING", True, "CANCELLING", ["cancel_workflow"]),
        ("RUNNING", True, "CANCELLING", ["cancel_workflow"]),
    ],
)
async def test_cancel_in_every_open_state(server: VerbsServer, state: str, admitted: bool, after: str, told: list[str]) -> None:
    job_id = await server.job(state, admitted=admitted)
    await call(server, "CancelJob", job_id=job_id, reason="mistake")
    assert await server.state(job_id) == after
    assert [kind for kind, _ in await server.signals(job_id)] == told
    again = await call(server, "CancelJob", job_id=job_id) if after == "CANCELLING" else None
    assert again is None or again.job.state == job_pb2.JOB_STATE_CANCELLING
    assert len(await server.events(job_id)) == 1


@pytest.mark.parametrize(
    ("verb", "states"),
    [
        ("CancelJob", ["SUCCEEDED", "FAILED", "CANCELLED"]),
        ("PauseJob", ["CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED"]),
        ("ResumeJob", ["QUEUED", "STARTING", "RUNNING", "CANCELLING", "SUCCEEDED"]),
        ("ReprioritizeJob", ["SUCCEEDED", "FAILED", "CANCELLED"]),
    ],
)
async def test_a_state_that_forbids_the_verb_is_named(server: VerbsServer, verb: str, states: list[str]) -> None:
    for state in states:
        job_id = await server.job(state)
        answer = await refused(call(server, verb, job_id=job_id))
        assert ((answer.code, answer.reason), answer.metadata["state"]) == (ILLEGAL, state)
        assert await server.events(job_id) == []


async def test_preemption_asks_the_holder_of_the_lease_once(server: VerbsServer) -> None:
    job_id = await server.job("RUNNING")
    held_nothing = (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_NOT_HELD")
    assert await refusal_of(server, "PreemptJob", job_id=job_id) == held_nothing
    lease_id = await server.lease(job_id, granted=True)
    for _ in range(2):
        answer = await call(server, "PreemptJob", job_id=job_id, reason="repair")
        assert answer.job.state == job_pb2.JOB_STATE_RUNNING
    assert await server.signals(job_id) == [("signal_preempt", {"lease_id": lease_id, "reason": "repair"})]
    [event] = await server.events(job_id)
    assert event == ("PREEMPTION_REQUESTED", "RUNNING", {"lease_id": lease_id, "by": "user:ada", "reason": "repair"})
    release = attempts_pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="preempted", reason="DISPLACED: repair")
    await server.attempts.ReleaseLease(release, metadata=attempt(1))
    [_, (kind, _, detail)] = await server.events(job_id)
    assert (kind, detail["outcome"], detail["reason"]) == ("LEASE_ENDED", "preempted", "DISPLACED: repair")


async def test_of_many_holders_each_is_asked_for_its_own_lease(server: VerbsServer) -> None:
    holders = await server.many(5, "RUNNING")
    leases = {job_id: await server.lease(job_id, granted=True) for job_id in holders}
    for job_id, lease_id in leases.items():
        await call(server, "PreemptJob", job_id=job_id, reason="repair")
        assert await server.signals(job_id) == [("signal_preempt", {"lease_id": lease_id, "reason": "repair"})]


async def test_a_priority_reaches_the_request_that_waits(server: VerbsServer) -> None:
    job_id = await server.job("RUNNING")
    lease_id = await server.lease(job_id, granted=False)
    answer = await call(server, "ReprioritizeJob", job_id=job_id, priority=CEILING)
    assert answer.job.priority == CEILING
    assert await server.sql("SELECT priority FROM leases WHERE lease_id = :id", id=lease_id) == [(CEILING,)]
    [event] = await server.events(job_id)
    assert event == ("UPDATED", "RUNNING", {"priority": CEILING, "by": "user:ada"})
    same = await call(server, "ReprioritizeJob", job_id=job_id, priority=CEILING)
    assert same.job.etag == answer.job.etag


async def test_only_an_admin_goes_above_the_ceiling(server: VerbsServer) -> None:
    job_id = await server.job()
    for who in ("ada", "mia"):
        assert await refusal_of(server, "ReprioritizeJob", who, job_id=job_id, priority=CEILING + 1) == DENIED
        job, mask = job_pb2.Job(job_id=job_id, priority=CEILING + 1), FieldMask(paths=["priority"])
        assert await refusal_of(server, "UpdateJob", who, job=job, update_mask=mask) == DENIED
    answer = await call(server, "ReprioritizeJob", "admin", job_id=job_id, priority=1_000)
    assert answer.job.priority == 1_000
    for priority in (-1, 1_001, 2**31 - 1):
        assert await refusal_of(server, "ReprioritizeJob", "admin", job_id=job_id, priority=priority) == INVALID


VERBS = ["CancelJob", "PauseJob", "ResumeJob", "PreemptJob", "ReprioritizeJob"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("who", ["bob", "vic", "auditor", "zoe"])
async def test_others_may_not_steer_a_job(server: VerbsServer, verb: str, who: str) -> None:
    job_id = await server.job("PAUSED", admitted=False)
    expected = NOT_FOUND if who == "zoe" else DENIED
    assert await refusal_of(server, verb, who, job_id=job_id) == expected
    named = await call(server, verb, who, selection=pb.JobSelection(job_ids=[job_id]))
    [outcome] = named.outcome.outcomes
    assert reason_of(outcome.status) == expected[1]
    assert await server.events(job_id) == []
    if who == "zoe":
        missing = new_id()
        hidden, absent = [await refused(call(server, verb, who, job_id=one)) for one in (job_id, missing)]
        assert hidden.message.replace(job_id, "") == absent.message.replace(missing, "")
        answer = await call(server, verb, who, selection=pb.JobSelection(job_ids=[missing]))
        assert answer.outcome.outcomes[0].status.message == f"there is no job {missing}"
        assert outcome.state == answer.outcome.outcomes[0].state == job_pb2.JOB_STATE_UNSPECIFIED


async def test_a_set_is_steered_as_far_as_it_is_the_callers(server: VerbsServer) -> None:
    own = await server.many(3, "RUNNING", job_set="sweep")
    others = await server.many(2, "RUNNING", job_set="sweep", submitter="user:bob")
    final = await server.job("SUCCEEDED", job_set="sweep")
    elsewhere = await server.job("RUNNING", job_set="sweep", project="south")
    selection = pb.JobSelection(project="north", job_set="sweep")
    mine = (await call(server, "PauseJob", "ada", selection=selection)).outcome
    assert {outcome.job_id for outcome in mine.outcomes} == set(own)
    assert (mine.changed_count, mine.more) == (3, False)
    rest = (await call(server, "PauseJob", "mia", selection=selection)).outcome
    assert {outcome.job_id for outcome in rest.outcomes} == set(others)
    assert [await server.state(job_id) for job_id in (final, elsewhere)] == ["SUCCEEDED", "RUNNING"]
    nothing = (await call(server, "PauseJob", "mia", selection=selection)).outcome
    assert (list(nothing.outcomes), nothing.changed_count) == ([], 0)


async def test_named_jobs_are_each_answered_for_in_the_order_asked(server: VerbsServer) -> None:
    good, foreign, final, missing = await server.job(), await server.job(project="south"), await server.job("FAILED"), new_id()
    asked = [missing, final, good, foreign]
    outcome = (await call(server, "CancelJob", "mia", selection=pb.JobSelection(job_ids=asked))).outcome
    assert [found.job_id for found in outcome.outcomes] == asked
    assert [reason_of(found.status) if found.HasField("status") else "" for found in outcome.outcomes] == [
        "JOB_NOT_FOUND",
        "ILLEGAL_TRANSITION",
        "",
        "JOB_NOT_FOUND",
    ]
    assert outcome.changed_count == 1
    assert await server.state(foreign) == "QUEUED"


async def test_a_filter_selects_with_a_reason(server: VerbsServer) -> None:
    low = await server.many(2, priority=10)
    high = await server.job(priority=600)
    selection = pb.JobSelection(project="north", filter="priority < 100 AND state = QUEUED")
    answer = await refused(call(server, "CancelJob", "mia", selection=selection))
    assert ((answer.code, answer.reason), answer.fields) == (INVALID, ["reason"])
    outcome = (await call(server, "CancelJob", "mia", selection=selection, reason="too low")).outcome
    assert {found.job_id for found in outcome.outcomes} == set(low)
    assert await server.state(high) == "QUEUED"


async def test_ten_thousand_jobs_are_one_call_and_more_says_that_there_are_others(server: VerbsServer) -> None:
    jobs = await server.many(10_001, job_set="flood")
    selection = pb.JobSelection(project="north", job_set="flood")
    first = (await call(server, "CancelJob", selection=selection, reason="too many")).outcome
    assert (len(first.outcomes), first.changed_count, first.more) == (10_000, 10_000, True)
    second = (await call(server, "CancelJob", selection=selection)).outcome
    assert (second.changed_count, second.more) == (1, False)
    [(events, distinct)] = await server.sql("SELECT count(*), count(DISTINCT job_id) FROM job_events")
    assert events == distinct == len(jobs)
    assert await server.sql("SELECT DISTINCT state, job_set FROM job_events") == [("CANCELLED", "flood")]
    assert await server.sql("SELECT DISTINCT state FROM outbox") == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "job_id"),
        ({"job_id": "7"}, "job_id"),
        ({"job_id": new_id(), "selection": pb.JobSelection(job_ids=[new_id()])}, "job_id"),
        ({"selection": pb.JobSelection()}, "selection"),
        ({"selection": pb.JobSelection(job_set="a", filter="state = QUEUED", project="north")}, "selection"),
        ({"selection": pb.JobSelection(job_set="a")}, "selection.project"),
        ({"selection": pb.JobSelection(job_set="A", project="north")}, "selection.job_set"),
        ({"selection": pb.JobSelection(job_ids=[new_id()], project="north")}, "selection.project"),
        ({"selection": pb.JobSelection(job_ids=["x"])}, "selection.job_ids[0]"),
        ({"selection": pb.JobSelection(job_ids=["0" * 36] * 1_001)}, "selection.job_ids"),
        ({"selection": pb.JobSelection(filter="   ", project="north"), "reason": "r"}, "selection.filter"),
        ({"selection": pb.JobSelection(filter="1=1 OR x", project="north"), "reason": "r"}, "selection.filter"),
        ({"job_id": new_id(), "reason": "x" * 501}, "reason"),
        ({"job_id": new_id(), "request_id": "soon"}, "request_id"),
    ],
)
async def test_bad_selections_name_their_field(server: VerbsServer, fields: dict[str, Any], field: str) -> None:
    answer = await refused(call(server, "CancelJob", "admin", **fields))
    assert ((answer.code, answer.reason), answer.fields) == (INVALID, [field])


async def test_a_job_named_twice_is_refused(server: VerbsServer) -> None:
    job_id = await server.job()
    answer = await refused(call(server, "CancelJob", selection=pb.JobSelection(job_ids=[job_id, job_id.upper()])))
    assert answer.fields == ["selection.job_ids[1]"]


async def test_a_repeat_gets_the_first_answer_and_changes_nothing(server: VerbsServer) -> None:
    jobs = await server.many(3, job_set="sweep")
    request = request_of("PauseJob", selection=pb.JobSelection(project="north", job_set="sweep"))
    answers = await asyncio.gather(*(server.jobs.PauseJob(request, metadata=caller("ada")) for _ in range(8)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    await call(server, "ResumeJob", job_id=jobs[0])
    assert await server.jobs.PauseJob(request, metadata=caller("ada")) == answers[0]
    assert await server.state(jobs[0]) == "QUEUED"
    assert len(await server.sql("SELECT * FROM audit_records WHERE method LIKE '%PauseJob'")) == 1
    other_body = request_of("PauseJob", request_id=request.request_id, selection=request.selection, reason="other")
    answer = await refused(server.jobs.PauseJob(other_body, metadata=caller("ada")))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    # Another principal's request ids are another's.
    mine = await server.jobs.PauseJob(request, metadata=caller("mia"))
    assert mine.outcome.changed_count == 1


async def test_pauses_and_resumes_at_once_leave_a_history_that_adds_up(server: VerbsServer) -> None:
    job_id = await server.job("RUNNING")

    calls = (call(server, verb, job_id=job_id) for verb in ["PauseJob", "ResumeJob"] * 10)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {error.code() for error in refusals} <= {grpc.StatusCode.FAILED_PRECONDITION}
    states = [state for _, state, _ in await server.events(job_id)]
    assert states == [("PAUSING", "RUNNING")[number % 2] for number in range(len(states))]
    told = await server.signals(job_id)
    assert len(told) == len(states)
    assert [kind for kind, _ in told] == [("signal_pause", "signal_resume")[number % 2] for number in range(len(told))]
    assert [payload["pause"] for _, payload in told] == [number // 2 + 1 for number in range(len(told))]


def changes(job_id: str, **fields: Any) -> dict[str, Any]:
    return {"job": job_pb2.Job(job_id=job_id, **fields), "update_mask": FieldMask(paths=sorted(fields))}


async def test_an_update_changes_what_the_mask_names(server: VerbsServer) -> None:
    job_id = await server.job(name="before", job_set="old")
    answer = await call(server, "UpdateJob", **changes(job_id, name="after", priority=7, job_set="new"))
    assert (answer.job.name, answer.job.priority, answer.job.job_set) == ("after", 7, "new")
    [event] = await server.events(job_id)
    assert event == ("UPDATED", "QUEUED", {"name": "after", "priority": 7, "job_set": "new", "by": "user:ada"})
    cleared = await call(server, "UpdateJob", job=job_pb2.Job(job_id=job_id), update_mask=FieldMask(paths=["job_set"]))
    assert cleared.job.job_set == ""
    assert await server.sql("SELECT job_set FROM job_events ORDER BY sequence") == [("new",), ("",)]


async def test_an_update_of_what_has_changed_is_refused(server: VerbsServer) -> None:
    job_id = await server.job()
    etag = (await call(server, "ReprioritizeJob", job_id=job_id, priority=3)).job.etag
    fields = changes(job_id, name="mine")
    fields["job"].etag = etag
    current = (await call(server, "UpdateJob", "ada", **fields)).job.etag
    answer = await refused(call(server, "UpdateJob", "ada", **fields))
    assert (answer.code, answer.reason, answer.metadata) == (
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
        {"etag": current},
    )


@pytest.mark.parametrize(
    ("fields", "paths", "named"),
    [
        ({"state": job_pb2.JOB_STATE_SUCCEEDED}, ["state"], ["update_mask.paths[0]", "job.state"]),
        ({"submitter": "user:eve"}, ["submitter"], ["update_mask.paths[0]", "job.submitter"]),
        ({"attempt": 9, "name": "x"}, ["name"], ["job.attempt"]),
        ({"name": "x", "project": "south"}, ["name"], ["job.project"]),
        ({"accelerator_seconds": {"cpu": 0.0}, "name": "x"}, ["name"], ["job.accelerator_seconds"]),
        ({"name": "x", "priority": 5}, ["name"], ["job.priority"]),
        ({"name": "x"}, [], ["update_mask", "job.name"]),
        ({}, ["spec.fine_tune"], ["update_mask.paths[0]"]),
        ({}, ["*"], ["update_mask.paths[0]"]),
        ({"name": "a\u202eb"}, ["name"], ["job.name"]),
        ({}, ["name"], ["job.name"]),
        ({"priority": -1}, ["priority"], ["job.priority"]),
        ({"job_set": "No Set"}, ["job_set"], ["job.job_set"]),
    ],
)
async def test_nothing_else_can_be_assigned(
    server: VerbsServer, fields: dict[str, Any], paths: list[str], named: list[str]
) -> None:
    job_id = await server.job()
    answer = await refused(
        call(server, "UpdateJob", "admin", job=job_pb2.Job(job_id=job_id, **fields), update_mask=FieldMask(paths=paths))
    )
    assert ((answer.code, answer.reason), answer.fields) == (INVALID, named)
    assert await server.events(job_id) == []


async def test_others_may_not_update_a_job(server: VerbsServer) -> None:
    job_id = await server.job()
    for who in ("bob", "vic", "auditor"):
        assert await refusal_of(server, "UpdateJob", who, **changes(job_id, name="mine")) == DENIED
    assert await refusal_of(server, "UpdateJob", "zoe", **changes(job_id, name="mine")) == NOT_FOUND


async def inputs(server: VerbsServer) -> None:
    await server.sql(
        "INSERT INTO datasets (project, name, sha256, size_bytes, uri, license, attribution) VALUES"
        " ('north', 'faq', repeat('a', 64), 1, 's3://b/d', '', ''),"
        " ('north', 'faq', repeat('c', 64), 1, 's3://b/newer', '', ''),"
        " ('north', 'other', repeat('d', 64), 1, 's3://b/o', '', '')"
    )
    await server.sql(
        "INSERT INTO base_models (name, sha256, size_bytes, uri, format, license, attribution)"
        " VALUES ('smol', repeat('b', 64), 1, 's3://b/m', 'GGUF', '', '')"
    )


async def test_a_rerun_reads_the_same_bytes_with_the_changes_that_were_named(server: VerbsServer) -> None:
    await inputs(server)
    job_id = await server.job("SUCCEEDED", name="first", job_set="sweep", priority=300)
    spec = job_spec_pb2.JobSpec()
    spec.fine_tune.training.learning_rate = 0.01
    request = request_of(
        "RerunJob",
        job_id=job_id,
        spec=spec,
        spec_mask=FieldMask(paths=["fine_tune.training.learning_rate", "fine_tune.training.steps"]),
    )
    job = (await server.jobs.RerunJob(request, metadata=caller("ada"))).job
    assert (job.rerun_of, job.name, job.job_set, job.priority) == (job_id, "first", "sweep", 300)
    assert job.spec.fine_tune.dataset.sha256 == "a" * 64, "pinned, though the name means other bytes by now"
    assert job.spec.fine_tune.training.learning_rate == 0.01
    assert job.spec.fine_tune.training.steps == 10, "named without a value: the default"
    assert (await server.jobs.RerunJob(request, metadata=caller("ada"))).job == job
    assert await server.sql("SELECT state, submitter FROM jobs WHERE rerun_of = :id", id=job_id) == [("QUEUED", "user:ada")]


async def test_a_rerun_with_another_dataset_takes_what_its_name_means_now(server: VerbsServer) -> None:
    await inputs(server)
    job_id = await server.job()
    spec = job_spec_pb2.JobSpec()
    spec.fine_tune.dataset.name = "other"
    mask = FieldMask(paths=["fine_tune.dataset.name"])
    job = (await call(server, "RerunJob", job_id=job_id, spec=spec, spec_mask=mask, name="second", job_set="b", priority=1)).job
    assert job.spec.fine_tune.dataset.sha256 == "d" * 64
    assert (job.name, job.job_set, job.priority) == ("second", "b", 1)


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["fine_tune.training.speed"], ["spec_mask.paths[0]"]),
        (["hpo.max_trials"], ["spec_mask.paths[0]"]),
        (["fine_tune"], ["spec_mask.paths[0]"]),
        (["fine_tune.output_model", "state"], ["spec_mask.paths[1]"]),
        (["fine_tune.training.steps.more"], ["spec_mask.paths[0]"]),
        (["fine_tune.training.learning_rate"], ["spec.fine_tune.training.steps"]),
        (["fine_tune.training.steps"], ["spec.fine_tune.training.steps"]),
        ([], ["spec.fine_tune.training.steps"]),
        (["fine_tune.base_model"] * 101, ["spec_mask"]),
    ],
)
async def test_a_rerun_with_changes_that_make_no_sense_names_them(
    server: VerbsServer, paths: list[str], named: list[str]
) -> None:
    job_id = await server.job()
    spec = job_spec_pb2.JobSpec()
    spec.fine_tune.training.steps = -5
    answer = await refused(call(server, "RerunJob", job_id=job_id, spec=spec, spec_mask=FieldMask(paths=paths)))
    assert ((answer.code, answer.reason), answer.fields) == (INVALID, named)


async def test_a_rerun_of_anothers_project_is_not_found(server: VerbsServer) -> None:
    job_id = await server.job()
    assert await refusal_of(server, "RerunJob", "zoe", job_id=job_id) == NOT_FOUND


async def test_a_diff_tells_spec_data_code_and_result_apart(server: VerbsServer) -> None:
    left, right = await server.job("SUCCEEDED"), await server.job("SUCCEEDED")
    await server.sql(
        """
        UPDATE jobs SET spec = spec || jsonb_build_object(
                'training', spec -> 'training' || '{"steps": 20}',
                'dataset', spec -> 'dataset' || jsonb_build_object('sha256', repeat('e', 64))
            ),
            result = '{"train": {"final_loss": 1.5}, "gate": {"passed": true}}'
        WHERE job_id = :id
        """,
        id=right,
    )
    for number, job_id in enumerate((left, right), 1):
        await server.sql(
            "INSERT INTO model_versions (project, model, version, job_id, manifest_uri, manifest_sha256, lineage, metrics)"
            " VALUES ('north', 'answers', :number, :job_id, '', '', CAST(:lineage AS jsonb), '{}')",
            number=number,
            job_id=job_id,
            lineage=f'{{"code_version": "commit {number}"}}',
        )
    request = pb.DiffJobsRequest(job_id=left, other_job_id=right)
    found = (await server.jobs.DiffJobs(request, metadata=caller("vic"))).differences
    assert [(pb.DiffSection.Name(item.section), item.path) for item in found] == [
        ("DIFF_SECTION_SPEC", "training.steps"),
        ("DIFF_SECTION_DATA", "dataset.sha256"),
        ("DIFF_SECTION_CODE", "code_version"),
        ("DIFF_SECTION_RESULT", "gate.passed"),
        ("DIFF_SECTION_RESULT", "train.final_loss"),
    ]
    steps, _, code, passed, loss = found
    assert (steps.left.number_value, steps.right.number_value) == (10, 20)
    assert (code.left.string_value, code.right.string_value) == ("commit 1", "commit 2")
    assert (passed.left.WhichOneof("kind"), passed.right.bool_value) == ("null_value", True)
    assert loss.right.number_value == 1.5
    same = pb.DiffJobsRequest(job_id=left, other_job_id=left)
    assert not (await server.jobs.DiffJobs(same, metadata=caller("vic"))).differences
    assert (await refused(server.jobs.DiffJobs(request, metadata=caller("zoe")))).reason == "JOB_NOT_FOUND"


async def test_a_failure_of_any_write_leaves_nothing_behind(server: VerbsServer) -> None:
    job_id = await server.job("RUNNING")
    await server.sql("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$")
    for table in ("job_events", "outbox", "idempotency_keys", "audit_records"):
        await server.sql(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
        assert await refusal_of(server, "PauseJob", job_id=job_id) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        await server.sql(f"DROP TRIGGER refuse ON {table}")
        assert await server.state(job_id) == "RUNNING"
        assert (await server.events(job_id), await server.signals(job_id)) == ([], [])
    await call(server, "PauseJob", job_id=job_id)
    assert await server.state(job_id) == "PAUSING"
