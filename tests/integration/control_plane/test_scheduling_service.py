"""Why what waits does, and the state that rounds decide on, over the API; the scheduler's part is written by hand."""

from __future__ import annotations

import json
from typing import Any

import grpc

from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.quotas.v1 import quota_service_pb2 as quotas_pb
from headway.scheduler.v1 import scheduler_service_pb2 as pb
from headway.scheduler.v1 import snapshot_pb2, wait_reason_pb2
from tests.integration.control_plane.callers import OTHER_PROJECT, PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused
from tests.integration.control_plane.test_capacity import node, placed, registered
from tests.integration.control_plane.test_quotas import GPUS, put

NO_CAPACITY = {
    "code": "CAPACITY",
    "words": "",
    "requested": 4,
    "free": 1,
    "total": 8,
    "kind": "any",
    "resource": "accelerators",
}
FAIR_SHARE = {"code": "FAIR_SHARE", "words": "", "queue": PROJECT, "cost": 300, "ahead_queue": OTHER_PROJECT, "ahead_cost": 20}
QUOTA = {
    "code": "QUOTA",
    "words": "",
    "node": "team:lab",
    "pool": "h200",
    "resource": "accelerators",
    "requested": 4,
    "used": 6,
    "nominal": 8,
    "maximum": 8,
}


async def wrote(api: Api, job_id: str, *reasons: dict[str, Any], ago: int = 0, kind: str = "job") -> None:
    """What the scheduler would have written of the line that a queued job is in."""
    await api.sql(
        "INSERT INTO waiting_reasons (kind, project, priority_class, shape, since, reasons) SELECT :kind, project, 2, shape,"
        " clock_timestamp() - make_interval(secs => :ago), CAST(:reasons AS jsonb) FROM jobs WHERE job_id = :job_id",
        kind=kind,
        ago=ago,
        reasons=json.dumps(reasons),
        job_id=job_id,
    )


async def explained(api: Api, job_id: str, **fields: Any) -> pb.ExplainJobResponse:
    return await api.scheduler.ExplainJob(pb.ExplainJobRequest(job_id=job_id, **fields))


async def test_a_queued_job_says_all_its_reasons_with_their_numbers(api: Api) -> None:
    job = await api.submit(await api.inputs())
    first = await explained(api, job.job_id)
    assert [reason.code for reason in first.reasons] == [wait_reason_pb2.WAIT_REASON_CODE_NOT_EVALUATED]
    await wrote(api, job.job_id, QUOTA, NO_CAPACITY)
    found = await explained(api, job.job_id)
    assert (found.project, found.state, found.waiting_for) == (PROJECT, job_pb2.JOB_STATE_QUEUED, pb.WAITING_FOR_ADMISSION)
    assert found.priority_class == snapshot_pb2.PRIORITY_CLASS_NORMAL
    assert (found.shape.accelerators, found.shape.accelerator_kind, found.shape.members) == (1, "any", 1)
    quota, capacity = found.reasons
    assert (quota.WhichOneof("numbers"), quota.quota.used, quota.quota.maximum) == ("quota", 6, 8)
    assert quota.quota.node == "team lab"
    assert "team lab" in quota.words
    assert "2 accelerators of pool h200 given back" in quota.unblocked_by
    assert (capacity.capacity.requested, capacity.capacity.free) == (4, 1)
    assert capacity.unblocked_by.startswith("3 accelerators more")
    assert "4 accelerators" in capacity.words


async def test_the_place_in_line_counts_who_is_ahead_in_it(api: Api) -> None:
    spec = await api.inputs()
    first = await api.submit(spec)
    second = await api.submit(spec)
    large = job_spec_pb2.JobSpec()
    large.CopyFrom(spec)
    large.fine_tune.resources.accelerators = 8
    for other in (large, spec):
        await api.submit(other, priority=500 if other is large else 950)
    assert [((await explained(api, job.job_id)).ahead) for job in (first, second)] == [0, 1]
    assert (await explained(api, second.job_id)).line_length == 2
    # A point of priority is worth a minute of waiting.
    await api.sql("UPDATE jobs SET priority = 501 WHERE job_id = :job_id", job_id=second.job_id)
    assert [((await explained(api, job.job_id)).ahead) for job in (first, second)] == [1, 0]


async def test_a_job_that_waits_for_its_lease_is_in_the_line_of_leases(api: Api) -> None:
    job_id = await api.running()
    request = attempts_pb.RequestLeaseRequest(
        lease_id=new_id(),
        job_id=job_id,
        phase=job_pb2.JOB_PHASE_TRAIN,
        shape=attempts_pb.Shape(
            accelerators=2,
            accelerator_kind="h200",
            members=4,
            cpu_millis=500,
            memory_mib=64,
            spot=True,
            labels={"rack": "r7", "az": "b"},
            topology=attempts_pb.Topology(level="rack", mode=attempts_pb.TOPOLOGY_MODE_BALANCED),
        ),
        max_run_seconds=60,
    )
    await api.attempts.RequestLease(request)
    found = await explained(api, job_id)
    assert found.waiting_for == pb.WAITING_FOR_LEASE
    assert found.shape == request.shape
    (line,) = (await api.scheduler.ExplainQueue(pb.ExplainQueueRequest(project=PROJECT))).lines
    assert (line.waiting_for, line.head_job_id, line.count) == (pb.WAITING_FOR_LEASE, job_id, 1)
    assert line.shape == request.shape


async def test_a_job_that_waits_for_nothing_has_no_reasons(api: Api) -> None:
    job_id = await api.running()
    found = await explained(api, job_id)
    assert (found.state, found.waiting_for, list(found.reasons)) == (job_pb2.JOB_STATE_RUNNING, 0, [])


async def test_history_tells_how_the_reasons_changed_while_it_waited(api: Api) -> None:
    job = await api.submit(await api.inputs())
    await api.sql("UPDATE jobs SET created_at = now() - interval '1 hour' WHERE job_id = :job_id", job_id=job.job_id)
    for ago, reasons in ((7_200, [FAIR_SHARE]), (5_400, [QUOTA]), (600, [NO_CAPACITY]), (60, [QUOTA, NO_CAPACITY])):
        await wrote(api, job.job_id, *reasons, ago=ago)
    found = await explained(api, job.job_id)
    # What held when it came is part of it; what was over by then is not.
    assert [[reason.WhichOneof("numbers") for reason in change.reasons] for change in found.history] == [
        ["quota", "capacity"],
        ["capacity"],
        ["quota"],
    ]
    assert found.reasons_time == found.history[0].time
    assert len((await explained(api, job.job_id, history_size=1)).history) == 1
    too_much = await refused(explained(api, job.job_id, history_size=101))
    assert too_much.fields == ["history_size"]


async def test_a_type_that_nothing_runs_is_said_at_once(api: Api) -> None:
    job = await api.submit(await api.inputs())
    await api.sql("UPDATE jobs SET type = 'rlhf' WHERE job_id = :job_id", job_id=job.job_id)
    (reason,) = (await explained(api, job.job_id)).reasons
    assert (reason.no_workflow.job_type, list(reason.no_workflow.known)) == ("rlhf", ["fine_tune"])
    (line,) = (await api.scheduler.ExplainQueue(pb.ExplainQueueRequest(project=PROJECT))).lines
    assert list(line.reasons) == [reason]


async def test_projects_do_not_learn_of_one_another(api: Api) -> None:
    job = await api.submit(await api.inputs())
    await wrote(api, job.job_id, FAIR_SHARE)
    viewer = await api.acting_as("VIEWER")
    (hidden,) = (await explained(viewer, job.job_id)).reasons
    assert hidden.fair_share.ahead_queue == ""
    assert hidden.fair_share.ahead_cost == 20
    queue = await viewer.scheduler.ExplainQueue(pb.ExplainQueueRequest(project=PROJECT))
    for answer in (str(hidden), str(queue)):
        assert OTHER_PROJECT not in answer
    assert "another project" in hidden.unblocked_by
    (shown,) = (await explained(api, job.job_id)).reasons
    assert shown.fair_share.ahead_queue == OTHER_PROJECT
    stranger = await api.acting_as("VIEWER", OTHER_PROJECT)
    assert (await refused(explained(stranger, job.job_id))).reason == "JOB_NOT_FOUND"


async def test_a_queue_shows_what_it_has_uses_and_borrows_up_to_the_organisation(api: Api) -> None:
    await registered(api, node("n1"), node("n2"))
    cell: dict[str, Any] = {**GPUS, "pool": "reserved"}
    await put(api, team="lab", cells=[quotas_pb.QuotaCell(**cell, nominal=4)])
    await put(
        api, project=PROJECT, parent="lab", weight=2_000, cells=[quotas_pb.QuotaCell(**cell, nominal=0, borrowing_limit=6)]
    )
    job_id, lease_id = await api.leased()
    await api.sql("UPDATE leases SET accelerators = 3, members = 2 WHERE lease_id = :lease_id", lease_id=lease_id)
    await api.sql("UPDATE leases SET shape = shape_of(leases)")
    await placed(api, lease_id, ("n1", 1), ("n2", 1))
    found = await api.scheduler.ExplainQueue(pb.ExplainQueueRequest(project=PROJECT))
    assert found.jobs_admitted == 1
    own, team, root = found.path
    assert (own.project, own.parent, own.weight) == (PROJECT, "lab", 2_000)
    assert (own.cells[0].used, own.cells[0].borrowed, own.cells[0].available) == (6, 6, 0)
    assert (team.team, team.cells[0].used, team.cells[0].borrowed) == ("lab", 6, 2)
    assert root.organisation
    # What the organisation has is what there is: no quota stops it.
    assert (root.cells[0].used, root.cells[0].borrowed, root.cells[0].HasField("available")) == (6, 0, False)
    # 6 of 16 borrowed, in hundred-thousandths, over a weight of 2.
    assert own.cost == 18_750
    assert job_id


async def test_the_snapshot_pages_through_nodes_and_then_leases(api: Api) -> None:
    await registered(api, *(node(f"n{number}", cpu_millis=4_000) for number in range(3)))
    leases = [await api.leased() for _ in range(2)]
    for _, lease_id in leases:
        await placed(api, lease_id, ("n1", 1))
    await api.submit(await api.inputs())
    pages: list[pb.GetSnapshotResponse] = [await api.scheduler.GetSnapshot(pb.GetSnapshotRequest(page_size=2))]
    while pages[-1].next_page_token:
        following = pb.GetSnapshotRequest(page_size=2, page_token=pages[-1].next_page_token)
        pages.append(await api.scheduler.GetSnapshot(following))
    assert [(len(page.nodes), len(page.leases)) for page in pages] == [(2, 0), (1, 1), (0, 1)]
    assert [state.accelerators_free for page in pages for state in page.nodes] == [8, 6, 8]
    assert {lease.lease_id for page in pages for lease in page.leases} == {lease_id for _, lease_id in leases}
    (pool,) = pages[0].pools
    assert (pool.name, pool.nodes, pool.nodes_available) == ("reserved", 3, 3)
    assert [(one.resource, one.total, one.held, one.free) for one in pool.resources] == [(1, 24, 2, 22), (2, 12_000, 0, 12_000)]
    waiting = {queue.project: queue.jobs_waiting for queue in pages[0].queues if queue.project}
    assert waiting == {PROJECT: 1}
    assert [len(page.pools) for page in pages[1:]] == [0, 0]
    one = await api.scheduler.GetSnapshot(pb.GetSnapshotRequest())
    assert (len(one.nodes), len(one.leases), one.next_page_token) == (3, 2, "")
    forged = await refused(api.scheduler.GetSnapshot(pb.GetSnapshotRequest(page_token="x" * 40)))
    assert (forged.code, forged.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR")
