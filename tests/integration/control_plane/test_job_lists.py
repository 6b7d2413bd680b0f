"""Lists of jobs: what a filter finds, in which order, page by page, for whom; and job sets."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, timedelta
from operator import eq, ge, gt, itemgetter, le, lt, ne
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sqlalchemy import insert, select
from sqlalchemy import text as sql_text

from control_plane.db.tables import jobs as jobs_table
from control_plane.jobs import filters
from control_plane.jobs.filters import AllOf, AnyOf, Comparison, Filter, Kind, Match, Not, Operator
from control_plane.jobs.states import FINAL_STATES, JobPhase, JobState
from control_plane.jobs.workflows import waiting_without_workflow
from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as pb
from scheduler.core.types import class_of
from tests.integration.control_plane.conftest import new_id, refused
from tests.integration.control_plane.verbs_server import BEGINNING, SPEC, VerbsServer, caller, verbs_server
from tests.waiting import until

COLUMNS = {"create_time": "created_at", "update_time": "updated_at", "end_time": "ended_at"}
WRITE_REASON = sql_text(
    """
    INSERT INTO waiting_reasons (kind, project, priority_class, shape, reasons)
    SELECT 'job', project, :class, shape, CAST(:told AS jsonb) FROM jobs
    WHERE project = :project AND priority = :priority LIMIT 1
    """
)
PROJECTS = ["north", "south"]
PRIORITIES = [0, 100, 500, 1_000]
"""Each of a class of its own."""
TEXTS = ["", "a", "ab", "a*b", 'say "x"', "b\\", "100%", "_", "é"]


@pytest_asyncio.fixture
async def server(postgres_dsn: str) -> AsyncIterator[VerbsServer]:
    async with verbs_server(postgres_dsn) as running:
        yield running


def random_jobs(chance: random.Random, count: int) -> list[dict[str, Any]]:
    """Rows with many equal values, so that ties and comparisons of all kinds occur."""
    rows: list[dict[str, Any]] = []
    # Of queued jobs; what is alike has the same.
    reasons = {(project, priority): chance.choice(TEXTS) for project in PROJECTS for priority in PRIORITIES}
    for _ in range(count):
        state, project, priority = chance.choice(list(JobState)), chance.choice(PROJECTS), chance.choice(PRIORITIES)
        job_type = chance.choice(["fine_tune", "hpo"])
        reason = waiting_without_workflow(job_type) or reasons[project, priority]
        rows.append(
            {
                "job_id": new_id(),
                "project": project,
                "name": chance.choice(TEXTS[1:]),
                "type": job_type,
                "spec": SPEC.model_dump(mode="json"),
                "spec_sha256": "",
                "inputs": {},
                "priority": priority,
                "state": str(state),
                "phase": chance.choice([None, *map(str, JobPhase)]),
                "attempt": chance.randrange(3),
                "checkpoint_step": chance.choice([0, 4, 8]),
                "submitter": chance.choice(["user:ada", "user:bob"]),
                "job_set": chance.choice(["", "sweep", "sweep-2"]),
                "waiting_reason": reason if state is JobState.QUEUED else "",
                "created_at": BEGINNING + timedelta(hours=chance.randrange(5)),
                "updated_at": BEGINNING + timedelta(hours=chance.randrange(5)),
                "ended_at": BEGINNING + timedelta(hours=chance.randrange(5)) if state in FINAL_STATES else None,
            }
        )
    return rows


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("*", "\\*")
    return f'"{escaped}"'


COMPARED: Mapping[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: eq,
    Operator.UNEQUAL: ne,
    Operator.LESS: lt,
    Operator.AT_MOST: le,
    Operator.MORE: gt,
    Operator.AT_LEAST: ge,
}


def random_filter(chance: random.Random, job_ids: list[str], depth: int = 0) -> str:
    """A filter in the grammar, as a person could write it."""
    if depth < 4 and chance.random() < 0.6:
        parts = [random_filter(chance, job_ids, depth + 1) for _ in range(chance.randrange(1, 4))]
        joined = f" {chance.choice(['AND', 'OR'])} ".join(f"({part})" for part in parts)
        return f"NOT ({joined})" if chance.random() < 0.3 else joined
    field = chance.choice(list(filters.FIELDS.values()))
    comparison = chance.choice(["=", "!="] if field.kind in {Kind.WORD, Kind.ID, Kind.TEXT} else list(COMPARED))
    match field.kind:
        case Kind.WORD:
            value = chance.choice(field.words)
        case Kind.ID:
            value = chance.choice(job_ids)
        case Kind.NUMBER:
            value = str(chance.choice([-1, 0, 1, 4, 500, 1000]))
        case Kind.TIME:
            value = (BEGINNING + timedelta(hours=chance.randrange(-1, 6))).isoformat()
        case Kind.TEXT:
            value = quoted(chance.choice(TEXTS[1:]))
            if chance.random() < 0.5:
                comparison, value = ":", f'{value[:-1]}{chance.choice(["", "*"])}"'
    return f"{field.name} {comparison} {value}"


def matches(said: Filter, row: Mapping[str, Any]) -> bool:
    """What the grammar's reference says, without SQL."""
    match said:
        case AllOf(terms):
            return all(matches(term, row) for term in terms)
        case AnyOf(terms):
            return any(matches(term, row) for term in terms)
        case Not(term):
            return not matches(term, row)
        case Comparison():
            return holds(said, row[COLUMNS.get(said.field.name, said.field.name)])


def holds(said: Comparison, found: Any) -> bool:
    if said.operator is Operator.HAS:
        match said.match:
            case Match.ANY:
                return found not in {None, ""}
            case Match.BEGINS:
                return found.startswith(said.value)
            case _:
                return str(said.value) in found
    if found is None:
        return said.operator is Operator.UNEQUAL
    return COMPARED[said.operator](found, said.value)


async def insert_jobs(server: VerbsServer, rows: list[dict[str, Any]]) -> None:
    stored = [{name: value for name, value in row.items() if name != "waiting_reason"} for row in rows]
    reasons = {
        (row["project"], row["priority"]): row["waiting_reason"]
        for row in rows
        if row["state"] == JobState.QUEUED and row["type"] == "fine_tune"
    }
    async with server.engine.begin() as connection:
        await connection.execute(insert(jobs_table), stored)
        for (project, priority), words in reasons.items():
            # What it was told last counts.
            for told in ([{"words": "a time ago"}], [{"words": words}] if words else []):
                group = {"project": project, "priority": priority, "class": class_of(priority), "told": json.dumps(told)}
                await connection.execute(WRITE_REASON, group)


@pytest.mark.parametrize("seed", range(4))
async def test_a_filter_in_sql_says_what_it_says_in_python(server: VerbsServer, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - data of a test
    rows = random_jobs(chance, 150)
    await insert_jobs(server, rows)
    job_ids = [row["job_id"] for row in rows]
    found_some = 0
    async with server.engine.connect() as connection:
        for _ in range(150):
            text = random_filter(chance, job_ids)
            said = filters.parse(text)
            assert said is not None
            query = select(jobs_table.c.job_id).where(filters.condition(said))
            found = set((await connection.execute(query)).scalars())
            assert found == {row["job_id"] for row in rows if matches(said, row)}, text
            asked = filters.states_asked(said)
            assert asked is None or {row["state"] for row in rows if matches(said, row)} <= set(asked), text
            found_some += 0 < len(found) < len(rows)
    assert found_some > 50, "filters that find all or nothing prove nothing"


async def listed(server: VerbsServer, who: str, **fields: Any) -> list[job_pb2.Job]:
    """Every page, one after the other."""
    found: list[job_pb2.Job] = []
    token = ""
    while True:
        page = await server.jobs.ListJobs(pb.ListJobsRequest(page_token=token, **fields), metadata=caller(who))
        assert len(page.jobs) <= (fields.get("page_size") or 50)
        found += page.jobs
        token = page.next_page_token
        if not token:
            return found


ORDERS = {"": ("created_at", True), "create_time": ("created_at", False)} | {
    f"{name}{direction}": (column, direction == " desc")
    for name, column in (("create_time", "created_at"), ("priority", "priority"))
    for direction in (" asc", " desc")
}


@pytest.mark.parametrize("order_by", ORDERS)
async def test_pages_of_any_size_are_the_whole_list_in_its_order(server: VerbsServer, order_by: str) -> None:
    rows = random_jobs(random.Random(7), 90)  # noqa: S311 - data of a test
    await insert_jobs(server, rows)
    column, descending = ORDERS[order_by]
    seen: dict[str, Callable[[dict[str, Any]], bool]] = {
        "admin": lambda _: True,
        "both": lambda _: True,
        "vic": lambda row: row["project"] == "north",
    }
    for who, visible in seen.items():
        expected = [row["job_id"] for row in sorted(rows, key=itemgetter(column, "job_id"), reverse=descending) if visible(row)]
        for size in (1, 5, 16):
            if size == 1 and who != "both":
                continue
            found = await listed(server, who, order_by=order_by, page_size=size)
            assert [job.job_id for job in found] == expected


OPEN = [state for state in JobState if not state.final]
STATES_AND_FILTERS: list[tuple[list[JobState], str, Callable[[dict[str, Any]], bool]]] = [
    ([JobState.RUNNING], "", lambda row: row["state"] == "RUNNING"),
    (OPEN, "priority > 0", lambda row: row["state"] in OPEN and row["priority"] > 0),
    ([JobState.RUNNING, JobState.FAILED], "state != FAILED", lambda row: row["state"] == "RUNNING"),
    ([], "state = QUEUED OR state = PAUSED", lambda row: row["state"] in {"QUEUED", "PAUSED"}),
    ([], 'job_set = "sweep" AND NOT state = QUEUED', lambda row: row["job_set"] == "sweep" and row["state"] != "QUEUED"),
    ([JobState.RUNNING], "state = FAILED", lambda row: False),
]


@pytest.mark.parametrize("who", ["admin", "both", "vic"])
async def test_states_and_filters_are_held_against_each_other(server: VerbsServer, who: str) -> None:
    rows = random_jobs(random.Random(11), 120)  # noqa: S311 - data of a test
    await insert_jobs(server, rows)
    visible = [row for row in rows if who != "vic" or row["project"] == "north"]
    for order_by, (column, descending) in ORDERS.items():
        for states, text, lets_through in STATES_AND_FILTERS:
            expected = [
                row for row in sorted(visible, key=itemgetter(column, "job_id"), reverse=descending) if lets_through(row)
            ]
            numbers = [job_pb2.JobState.Value(f"JOB_STATE_{state}") for state in states]
            found = await listed(server, who, order_by=order_by, states=numbers, filter=text, page_size=7)
            assert [job.job_id for job in found] == [row["job_id"] for row in expected], (order_by, text)


async def test_one_sees_the_projects_one_belongs_to(server: VerbsServer) -> None:
    north, south = await server.job(), await server.job(project="south")
    for who, expected in {"admin": {north, south}, "auditor": {north, south}, "vic": {north}, "zoe": {south}}.items():
        assert {job.job_id for job in await listed(server, who)} == expected
    assert [job.job_id for job in await listed(server, "vic", filter='project = "south"')] == []
    assert [job.job_id for job in await listed(server, "admin", project="south")] == [south]
    answer = await refused(server.jobs.ListJobs(pb.ListJobsRequest(project="south"), metadata=caller("vic")))
    assert (answer.code, answer.reason, answer.message) == (
        grpc.StatusCode.NOT_FOUND,
        "PROJECT_NOT_FOUND",
        "there is no project south",
    )


async def test_a_token_belongs_to_its_caller_and_its_query(server: VerbsServer) -> None:
    await server.many(5)
    first = pb.ListJobsRequest(project="north", page_size=2, filter="priority = 500", order_by="priority desc")
    token = (await server.jobs.ListJobs(first, metadata=caller("vic"))).next_page_token
    assert token
    others: list[tuple[str, dict[str, Any]]] = [
        ("ada", {}),
        ("vic", {"filter": "priority = 501"}),
        ("vic", {"order_by": "priority asc"}),
        ("vic", {"order_by": ""}),
        ("vic", {"project": ""}),
        ("vic", {"states": [job_pb2.JOB_STATE_QUEUED]}),
        ("vic", {"page_token": f"{token[:-1]}{'A' if token[-1] != 'A' else 'B'}"}),
        ("vic", {"page_token": "x" * 1_000_000}),
    ]
    for who, changes in others:
        fields: dict[str, Any] = {
            "project": "north",
            "page_size": 2,
            "filter": first.filter,
            "order_by": first.order_by,
            "page_token": token,
            **changes,
        }
        answer = await refused(server.jobs.ListJobs(pb.ListJobsRequest(**fields), metadata=caller(who)))
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR"), changes
    again = pb.ListJobsRequest(page_token=token)
    again.MergeFrom(first)
    assert len((await server.jobs.ListJobs(again, metadata=caller("vic"))).jobs) == 2


@pytest.mark.parametrize(
    "order_by",
    [
        "id; select pg_sleep(5)",
        "spec",
        "inputs desc",
        "created_at",
        "tokens.secret_sha256",
        "priority  desc",
        "priority desc, name",
        "priority DESC",
        "create_time desc nulls first",
        "x" * 5_000,
    ],
)
async def test_an_order_that_is_none_is_refused(server: VerbsServer, order_by: str) -> None:
    answer = await refused(server.jobs.ListJobs(pb.ListJobsRequest(order_by=order_by), metadata=caller("admin")))
    assert (answer.code, answer.reason, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", ["order_by"])


async def test_a_summary_leaves_out_what_is_long(server: VerbsServer) -> None:
    failure = {"kind": "INVALID_DATASET", "message": "3 rows are empty", "violation_count": 1}
    violation = {"path": "/prompt", "line": 3, "code": "empty_prompt", "message": "is empty"}
    job_id = await server.job("FAILED", failure={**failure, "violations": [violation]}, result={"prepare": {"rows": 1}})
    for filter_text in ("", "state = FAILED"):
        [whole] = await listed(server, "both", filter=filter_text)
        [short] = await listed(server, "both", filter=filter_text, summary=True)
        assert (whole.job_id, short.job_id) == (job_id, job_id)
        assert len(whole.failure.violations) == 1
        assert not short.HasField("spec")
        assert not short.HasField("result")
        assert (short.failure.message, list(short.failure.violations)) == ("3 rows are empty", [])
        whole.ClearField("spec")
        whole.ClearField("result")
        del whole.failure.violations[:]
        assert short == whole


async def test_job_sets_are_counted_and_paged(server: VerbsServer) -> None:
    for number in range(7):
        await server.many(number + 1, job_set=f"set-{number}")
    await server.many(2, "RUNNING", job_set="set-3")
    await server.many(3, job_set="elsewhere", project="south")
    await server.many(3)
    found: list[pb.JobSet] = []
    token = ""
    while True:
        request = pb.ListJobSetsRequest(project="north", page_size=3, page_token=token)
        page = await server.jobs.ListJobSets(request, metadata=caller("vic"))
        found += page.job_sets
        token = page.next_page_token
        if not token:
            break
    assert [(job_set.name, job_set.job_count) for job_set in found] == [
        (f"set-{number}", number + 1 + 2 * (number == 3)) for number in range(7)
    ]
    one = await server.jobs.GetJobSet(pb.GetJobSetRequest(project="north", name="set-3"), metadata=caller("vic"))
    assert one.job_set == found[3]
    assert dict(one.job_set.states) == {"QUEUED": 4, "RUNNING": 2}
    assert one.job_set.create_time.ToDatetime(UTC) == BEGINNING
    for who, project, name, reason in (
        ("vic", "north", "elsewhere", "RESOURCE_NOT_FOUND"),
        ("vic", "south", "elsewhere", "PROJECT_NOT_FOUND"),
        ("vic", "north", "No Set", "INVALID_FIELD"),
    ):
        request = pb.GetJobSetRequest(project=project, name=name)
        assert (await refused(server.jobs.GetJobSet(request, metadata=caller(who)))).reason == reason


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "a project": ("vic", {"project": "north"}),
    "everything": ("admin", {}),
    "two projects": ("both", {}),
    "by priority": ("vic", {"project": "north", "order_by": "priority desc"}),
    "a rare state": ("vic", {"project": "north", "states": [job_pb2.JOB_STATE_PAUSED]}),
    "open ones everywhere": ("admin", {"filter": "state = RUNNING OR state = STARTING OR state = PAUSED"}),
    "a job set": ("vic", {"project": "north", "filter": 'job_set = "sweep"'}),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_page_reads_an_index_and_little_of_it(server: VerbsServer, shape: str) -> None:
    """The plan of each common shape, in a table large enough that the planner means it: rows read are a few pages' worth."""
    await server.sql(
        """
        INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, ended_at, created_at,
            updated_at, job_set)
        SELECT gen_random_uuid(), CASE number % 2 WHEN 0 THEN 'north' ELSE 'south' END, 'a job', 'fine_tune',
            CAST(:spec AS jsonb), '', '{}', number % 7 * 100,
            CASE WHEN number % 2000 = 0 THEN 'PAUSED' WHEN number % 500 = 1 THEN 'RUNNING' ELSE 'SUCCEEDED' END,
            CASE WHEN number % 2000 = 0 OR number % 500 = 1 THEN NULL ELSE now() END,
            now() - number * interval '1 second', now() - number * interval '1 second',
            CASE number % 100 WHEN 0 THEN 'sweep' ELSE '' END
        FROM generate_series(1, 20000) AS number
        """,
        spec=SPEC.model_dump_json(),
    )
    await server.sql("ANALYZE jobs")
    await server.sql("SELECT pg_stat_reset()")
    who, fields = SHAPES[shape]
    page = await server.jobs.ListJobs(pb.ListJobsRequest(**fields), metadata=caller(who))
    assert 0 < len(page.jobs) <= 50
    await server.engine.dispose()  # a session reports what it read when it ends at the latest
    read = "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'jobs'"

    async def reported() -> bool:
        [row] = await server.sql(read)
        return row.seq_tup_read + row.idx_tup_fetch >= len(page.jobs)

    await until(reported, "the session has reported what it read")
    [(scanned, fetched)] = await server.sql(read)
    assert scanned == 0
    assert fetched <= 1_000, f"{fetched} rows fetched for a page of {len(page.jobs)}"
