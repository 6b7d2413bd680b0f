"""Many leases asked for, and many jobs ended, at once: what comes of it is what one call after the other would have made."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from headway.attempts.v1 import attempt_service_pb2 as pb
from headway.jobs.v1 import job_pb2
from tests.integration.control_plane.conftest import Api, new_id, refused

_JOBS, _LEASES, _REQUESTS = 6, 8, 24
_STATES = ("STARTING", "RUNNING", "PAUSING", "PAUSED", "CANCELLING", "QUEUED", "SUCCEEDED")


@dataclass(frozen=True)
class _World:
    """Jobs and leases that another world has in the same places under other names."""

    jobs: list[str]
    leases: list[str]

    def place(self, name: Any) -> Any:
        """Where a name stands, which is the same in both."""
        for named in (self.jobs, self.leases):
            if name in named:
                return named.index(name)
        return name


def _random(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - the same each time


async def _worlds(api: Api, random: Random) -> tuple[_World, _World]:
    """Two that differ in nothing but names: jobs in any state, some of which hold a lease or ask for one."""
    spec = await api.inputs()
    worlds = [_World([], [new_id() for _ in range(_LEASES)]) for _ in range(2)]
    for number in range(_JOBS):
        state, attempt, held = random.choice(_STATES), random.choice((0, 1, 1)), random.choice(("", "REQUESTED", "GRANTED"))
        for world in worlds:
            job_id = (await api.submit(spec)).job_id
            world.jobs.append(job_id)
            await api.sql(
                "UPDATE jobs SET state = :state, attempt = :attempt, ended_at = CASE WHEN :final THEN now() END"
                " WHERE job_id = :id",
                state=state,
                attempt=attempt,
                final=state == "SUCCEEDED",
                id=job_id,
            )
            if held and number < _LEASES:
                await _lease(api, world.leases[number], job_id, held, attempt)
    for world in worlds:
        world.jobs.append(new_id())  # and one that does not exist
    return worlds[0], worlds[1]


async def _lease(api: Api, lease_id: str, job_id: str, state: str, attempt: int) -> None:
    await api.sql(
        """
        INSERT INTO leases (lease_id, job_id, project, phase, state, accelerators, accelerator_kind, priority, max_run_seconds,
            attempt, worker, granted_kind, granted_at, expires_at)
        VALUES (:lease_id, :job_id, 'support', 'TRAIN', :state, 2, 'any', 500, 60, :attempt, 'w', 'cpu', now(),
            now() + interval '1 hour')
        """,
        lease_id=lease_id,
        job_id=job_id,
        state=state,
        attempt=attempt,
    )


def _requests(world: _World, random: Random) -> list[pb.RequestLeaseRequest]:
    return [
        pb.RequestLeaseRequest(
            lease_id=random.choice(world.leases),
            job_id=random.choice(world.jobs),
            attempt=random.choice((0, 1, 1, 2)),
            phase=random.choice((job_pb2.JOB_PHASE_TRAIN, job_pb2.JOB_PHASE_EVALUATE)),
            shape=_shape(random),
            max_run_seconds=random.choice((0, 60, 3_600)),
        )
        for _ in range(_REQUESTS)
    ]


def _shape(random: Random) -> pb.Shape:
    shape = pb.Shape(accelerators=random.choice((0, 1, 8)), accelerator_kind=random.choice(("any", "h100")))
    shape.members, shape.cpu_millis, shape.spot = random.choice((0, 1, 4)), random.choice((0, 500)), random.random() < 0.5
    if random.random() < 0.5:
        shape.labels["zone"] = "a"
    if random.random() < 0.5:
        shape.topology.level, shape.topology.mode = "rack", pb.TOPOLOGY_MODE_PREFERRED
    return shape


def _ends(world: _World, random: Random) -> list[pb.FinishJobRequest]:
    ends: list[pb.FinishJobRequest] = []
    for _ in range(_REQUESTS):
        states = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_RUNNING)
        end = pb.FinishJobRequest(
            job_id=random.choice(world.jobs), attempt=random.choice((0, 1, 1, 2)), state=random.choice(states)
        )
        if end.state == job_pb2.JOB_STATE_FAILED and random.random() < 0.9:
            end.failure.kind, end.failure.message = job_pb2.FAILURE_KIND_NUMERIC, f"loss became NaN in step {len(ends)}"
        ends.append(end)
    return ends


def _reason(status: status_pb2.Status) -> tuple[int, str]:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    return status.code, info.reason


async def _alone(call: Any) -> tuple[int, str, int]:
    """What came of a unary call: code, reason, and the state it answered with."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(bytes(trailers["grpc-status-details-bin"]))  # pyright: ignore[reportArgumentType] - a -bin key has bytes
        return *_reason(status), 0
    return 0, "", getattr(answer, "state", 0)


async def _stored(api: Api, world: _World) -> list[Any]:
    """All that is stored of a world but names and times."""
    jobs = await api.sql(
        "SELECT job_id::text, state, attempt, failure, event_sequence, ended_at IS NULL FROM jobs WHERE job_id = ANY(:ids)"
        " ORDER BY array_position(:ids, job_id)",
        ids=[uuid.UUID(job_id) for job_id in world.jobs],
    )
    leases = await api.sql(
        "SELECT lease_id::text, job_id::text, project, phase, state, accelerators, accelerator_kind, cpu_millis, members, spot,"
        " labels, topology, priority, max_run_seconds, attempt, outcome, waiting_since IS NULL FROM leases"
        " WHERE lease_id = ANY(:ids) ORDER BY array_position(:ids, lease_id)",
        ids=[uuid.UUID(lease_id) for lease_id in world.leases],
    )
    events = await api.sql(
        "SELECT job_id::text, sequence, type, state, phase, attempt, detail - 'accelerator_seconds' - 'lease_id',"
        " detail ->> 'lease_id' FROM job_events WHERE job_id = ANY(:ids) ORDER BY array_position(:ids, job_id), sequence",
        ids=[uuid.UUID(job_id) for job_id in world.jobs],
    )
    waiting = await api.sql(
        "SELECT count(*), state FROM outbox WHERE job_id = ANY(:ids) GROUP BY state ORDER BY state",
        ids=[uuid.UUID(job_id) for job_id in world.jobs],
    )
    return [[[world.place(value) for value in row] for row in rows] for rows in (jobs, leases, events, waiting)]


@pytest.mark.parametrize("seed", range(6))
async def test_a_batch_of_requests_does_what_they_would_one_by_one(api: Api, seed: int) -> None:
    one, other = await _worlds(api, _random(seed))
    batch = pb.BatchRequestLeasesRequest(requests=_requests(one, _random(seed)))
    together = [(*_reason(result.status), 0) for result in (await api.attempts.BatchRequestLeases(batch)).results]
    alone = [await _alone(api.attempts.RequestLease(request)) for request in _requests(other, _random(seed))]
    assert together == alone
    assert await _stored(api, one) == await _stored(api, other)
    assert len(set(together)) > 2, "some were stored, and some refused for different reasons"


@pytest.mark.parametrize("seed", range(6))
async def test_a_batch_of_ends_does_what_they_would_one_by_one(api: Api, seed: int) -> None:
    one, other = await _worlds(api, _random(seed))
    batch = pb.BatchFinishJobsRequest(requests=_ends(one, _random(seed)))
    together = [(*_reason(result.status), result.state) for result in (await api.attempts.BatchFinishJobs(batch)).results]
    alone = [await _alone(api.attempts.FinishJob(end)) for end in _ends(other, _random(seed))]
    assert together == alone
    assert await _stored(api, one) == await _stored(api, other)
    assert len(set(together)) > 2, "some ended, and some were refused for different reasons"


async def test_the_first_lease_asked_for_says_that_the_workflow_runs(api: Api) -> None:
    job_id = (await api.submit(await api.inputs())).job_id
    await api.sql("UPDATE jobs SET state = 'STARTING' WHERE job_id = :id", id=job_id)
    request = pb.RequestLeaseRequest(
        lease_id=new_id(), job_id=job_id, phase=job_pb2.JOB_PHASE_TRAIN, shape=pb.Shape(accelerators=1), max_run_seconds=60
    )
    await api.attempts.BatchRequestLeases(pb.BatchRequestLeasesRequest(requests=[request]))
    assert (await api.get(job_id)).state == job_pb2.JOB_STATE_RUNNING


async def test_a_batch_is_one_transaction_and_one_audit_record(api: Api) -> None:
    job_ids = [(await api.running()) for _ in range(3)]
    ends = [pb.FinishJobRequest(job_id=job_id, state=job_pb2.JOB_STATE_SUCCEEDED) for job_id in job_ids]
    answer = await api.attempts.BatchFinishJobs(pb.BatchFinishJobsRequest(requests=ends))
    assert [result.state for result in answer.results] == [job_pb2.JOB_STATE_SUCCEEDED] * 3
    moments = await api.sql("SELECT DISTINCT ended_at FROM jobs WHERE state = 'SUCCEEDED'")
    assert len(moments) == 1
    records = await api.sql("SELECT principal, code FROM audit_records WHERE method LIKE '%BatchFinishJobs'")
    assert records == [("worker:worker", "OK")]


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_holds_1_to_1000_requests(api: Api, count: int) -> None:
    ends = pb.BatchFinishJobsRequest(requests=[pb.FinishJobRequest()] * count)
    leases = pb.BatchRequestLeasesRequest(requests=[pb.RequestLeaseRequest()] * count)
    for call in (api.attempts.BatchFinishJobs(ends), api.attempts.BatchRequestLeases(leases)):
        answer = await refused(call)
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["requests"])
