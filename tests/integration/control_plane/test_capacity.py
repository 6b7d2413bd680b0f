"""Workers by the pool, and out of service: registered, cordoned, drained, forgotten."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from headway.capacity.v1 import capacity_service_pb2 as pb
from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from tests.integration.control_plane.conftest import Api, new_id, refused


def node(name: str, **fields: Any) -> pb.Worker:
    """A node as its executor offers it."""
    offered: dict[str, Any] = {"name": name, "incarnation": new_id(), "accelerator_kind": "h200", "accelerators": 8}
    return pb.Worker(**(offered | fields))


async def registered(api: Api, *nodes: pb.Worker, pool: str = "reserved") -> pb.RegisterNodePoolResponse:
    """Registers nodes as a pool."""
    worker = await api.acting_as("WORKER")
    return await worker.capacity.RegisterNodePool(pb.RegisterNodePoolRequest(pool=pool, nodes=nodes))


async def workers(api: Api) -> dict[str, pb.Worker]:
    """Those known, by name."""
    return {found.name: found for found in (await api.capacity.ListWorkers(pb.ListWorkersRequest())).workers}


async def placed(api: Api, lease_id: str, *parts: tuple[str, int]) -> None:
    """Makes the placement of a granted lease, as the scheduler would have written it."""
    await api.sql(
        """
        UPDATE leases SET worker = :first, pool = 'reserved', placement = (
            SELECT jsonb_agg(jsonb_build_array(name, members, incarnation) ORDER BY name)
            FROM unnest(CAST(:names AS text[]), CAST(:members AS int[])) AS part (name, members) JOIN workers USING (name)
        ) WHERE lease_id = :lease_id
        """,
        first=parts[0][0],
        names=[name for name, _ in parts],
        members=[members for _, members in parts],
        lease_id=lease_id,
    )


async def test_a_pool_registers_in_one_call_and_beats_in_one(api: Api) -> None:
    labelled = node("n2", spot=False, cpu_millis=96_000, memory_mib=1_048_576, labels={"rack": "r7"})
    plain = node("n1")
    assert (await registered(api, labelled, plain)).heartbeat_seconds > 0
    found = await workers(api)
    assert (found["n2"].pool, found["n2"].cpu_millis, dict(found["n2"].labels)) == ("reserved", 96_000, {"rack": "r7"})
    assert found["n1"].alive
    records = "SELECT count(*) FROM audit_records WHERE method LIKE '%RegisterNodePool'"
    ((before,),) = await api.sql(records)
    await api.sql("UPDATE workers SET heartbeat_at = heartbeat_at - interval '5 seconds'")
    await registered(api, labelled, plain)
    beaten = await workers(api)
    assert all(beaten[name].heartbeat_time.ToNanoseconds() > found[name].heartbeat_time.ToNanoseconds() for name in found)
    # Nothing was news, so nothing is on record; a new start of a node is.
    assert await api.sql(records) == [(before,)]
    await registered(api, node("n1"))
    assert await api.sql(records) == [(before + 1,)]


@pytest.mark.parametrize(
    ("nodes", "field"),
    [
        ([], "nodes"),
        ([node("n1"), node("n1")], "nodes[1].name"),
        ([node("n1"), node("n2", accelerator_kind="h100")], "nodes[1].accelerator_kind"),
        ([node("n1"), node("n2", spot=True)], "nodes[1].spot"),
        ([node("n1", pool="other")], "nodes[0].pool"),
        ([node("n1", accelerators=-1)], "nodes[0].accelerators"),
        ([node("n1", cpu_millis=-1)], "nodes[0].cpu_millis"),
        ([node("n1", memory_mib=2**31 - 1)], "nodes[0].memory_mib"),
        ([node("n1", labels={"Rack": "r"})], "nodes[0].labels key"),
        ([node("n1", labels={"rack": "r 7"})], "nodes[0].labels[rack]"),
        ([node("n1", labels={f"l{n}": "v" for n in range(33)})], "nodes[0].labels"),
        ([node("n1", accelerator_kind="any")], "nodes[0].accelerator_kind"),
    ],
)
async def test_a_pool_that_breaks_a_limit_is_refused_as_a_whole(api: Api, nodes: list[pb.Worker], field: str) -> None:
    worker = await api.acting_as("WORKER")
    answer = await refused(worker.capacity.RegisterNodePool(pb.RegisterNodePoolRequest(pool="reserved", nodes=nodes)))
    assert (answer.reason, answer.fields) == ("INVALID_FIELD", [field])
    assert await workers(api) == {}


async def test_a_node_is_cordoned_stays_so_when_it_beats_and_is_put_back(api: Api) -> None:
    await registered(api, node("n1"), node("n2"))
    cordon = scheduler_pb.CordonNodeRequest(request_id=new_id(), node="n1")
    assert (await api.scheduler.CordonNode(cordon)).node.cordoned
    assert list((await registered(api, node("n1"), node("n2"))).cordoned) == ["n1"]
    assert (await workers(api))["n1"].cordoned
    uncordon = scheduler_pb.UncordonNodeRequest(request_id=new_id(), node="n1")
    assert not (await api.scheduler.UncordonNode(uncordon)).node.cordoned
    # The first request again gets its first answer, and changes nothing.
    assert (await api.scheduler.CordonNode(cordon)).node.cordoned
    assert not (await workers(api))["n1"].cordoned
    missing = await refused(api.scheduler.CordonNode(scheduler_pb.CordonNodeRequest(request_id=new_id(), node="n9")))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_drained_node_asks_each_of_its_jobs_once_to_leave(api: Api) -> None:
    await registered(api, node("n1"), node("n2"))
    on_both, first = await api.leased()
    elsewhere, second = await api.leased()
    await placed(api, first, ("n1", 1), ("n2", 1))
    await placed(api, second, ("n2", 1))
    for asked in (1, 0):
        drained = await api.scheduler.DrainNode(
            scheduler_pb.DrainNodeRequest(request_id=new_id(), node="n1", reason="a fan is loud")
        )
        assert (drained.leases_asked, drained.leases_held) == (asked, 1)
        assert (drained.node.cordoned, drained.node.draining, drained.node.leases_held) == (True, True, 1)
    told = await api.sql("SELECT job_id::text, payload ->> 'reason' FROM outbox WHERE kind = 'signal_preempt'")
    assert told == [(on_both, "a fan is loud")]
    # Its time to leave has begun, and only its.
    assert await api.sql("SELECT lease_id::text FROM leases WHERE preempted_at IS NOT NULL") == [(first,)]
    assert (await api.get(elsewhere)).state == job_pb2.JOB_STATE_RUNNING
    await api.sql("UPDATE leases SET state = 'ENDED', ended_at = now() WHERE lease_id = :lease_id", lease_id=first)
    assert {name: (found.draining, found.leases_held) for name, found in (await workers(api)).items()} == {
        "n1": (True, 0),
        "n2": (False, 1),
    }


async def test_a_node_says_why_it_is_drained_until_it_is_back(api: Api) -> None:
    await registered(api, node("n1"))
    drain = scheduler_pb.DrainNodeRequest(request_id=new_id(), node="n1", reason="a fan is loud")
    assert (await api.scheduler.DrainNode(drain)).node.drain_reason == "a fan is loud"
    # It beats on meanwhile, and is cordoned by somebody else.
    await registered(api, node("n1"))
    await api.scheduler.CordonNode(scheduler_pb.CordonNodeRequest(request_id=new_id(), node="n1"))
    assert (await workers(api))["n1"].drain_reason == "a fan is loud"
    await api.scheduler.UncordonNode(scheduler_pb.UncordonNodeRequest(request_id=new_id(), node="n1"))
    assert (await workers(api))["n1"].drain_reason == ""


async def test_a_node_that_holds_leases_is_not_deleted(api: Api) -> None:
    await registered(api, node("n1"))
    job_id, lease_id = await api.leased()
    await placed(api, lease_id, ("n1", 1))
    delete = pb.DeleteWorkerRequest(request_id=new_id(), name="n1")
    answer = await refused(api.capacity.DeleteWorker(delete))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STILL_NEEDED")
    assert answer.metadata == {"worker": "n1", "leases": "1", "jobs": job_id}
    assert f"1 lease, of jobs {job_id};" in answer.message
    await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job_id))
    await api.sql("UPDATE leases SET state = 'ENDED', ended_at = now() WHERE lease_id = :lease_id", lease_id=lease_id)
    for _ in range(2):
        await api.capacity.DeleteWorker(delete)
    assert await workers(api) == {}
    missing = await refused(api.capacity.DeleteWorker(pb.DeleteWorkerRequest(request_id=new_id(), name="n1")))
    assert missing.reason == "RESOURCE_NOT_FOUND"
