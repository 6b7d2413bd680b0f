"""A submission, a quota and a lost node tried against the live state: what is told, and that nothing is changed."""

from __future__ import annotations

from typing import Any

import grpc

from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.jobs.v1 import job_pb2
from headway.quotas.v1 import quota_service_pb2 as quotas_pb
from headway.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused
from tests.integration.control_plane.test_capacity import node, placed, registered
from tests.integration.control_plane.test_scheduling_service import explained


def tried(accelerators: int, **fields: Any) -> pb.SimulateRequest:
    """A submission of the project."""
    shape = attempts_pb.Shape(
        accelerators=accelerators, accelerator_kind=fields.pop("kind", "any"), members=fields.pop("members", 1)
    )
    return pb.SimulateRequest(submission=pb.Submission(project=PROJECT, shape=shape, **fields))


async def test_a_tried_submission_starts_or_says_why_not_and_leaves_nothing(api: Api) -> None:
    await registered(api, node("n1"), node("n2"))
    some = await api.scheduler.Simulate(tried(4, count=3))
    assert (some.started, [(part.node, part.members) for part in some.placement]) == (3, [("n1", 1)])
    more = await api.scheduler.Simulate(tried(8, count=3))
    assert (more.started, [reason.WhichOneof("numbers") for reason in more.reasons]) == (2, ["capacity"])
    for table in ("jobs", "leases"):
        assert await api.sql(f"SELECT 1 FROM {table}") == []  # noqa: S608 - constants


async def test_a_tried_submission_that_waits_is_told_when_it_may_start(api: Api) -> None:
    await registered(api, node("n1"))
    _, lease_id = await api.leased()
    await api.sql(
        "UPDATE leases SET accelerators = 8, expires_at = now() + interval '1 hour' WHERE lease_id = :id", id=lease_id
    )
    await api.sql("UPDATE leases SET shape = shape_of(leases)")
    await placed(api, lease_id, ("n1", 1))
    found = await api.scheduler.Simulate(tried(8))
    assert (found.started, [reason.WhichOneof("numbers") for reason in found.reasons]) == (0, ["capacity"])
    # What runs declared a minute.
    wait_seconds = found.eta.p50_time.ToSeconds() - found.time.ToSeconds()
    assert 0 <= wait_seconds <= 120
    assert found.eta.p90_time.ToSeconds() >= found.eta.p50_time.ToSeconds()
    job_id = await api.running()
    await api.attempts.RequestLease(
        attempts_pb.RequestLeaseRequest(
            lease_id=new_id(),
            job_id=job_id,
            phase=job_pb2.JOB_PHASE_TRAIN,
            shape=attempts_pb.Shape(accelerators=8, accelerator_kind="h200"),
            max_run_seconds=60,
        )
    )
    explained_job = await explained(api, job_id, eta=True)
    assert explained_job.eta.simulations > 0
    assert explained_job.eta.HasField("p50_time")


async def test_an_estimate_draws_on_what_ended_leases_took(api: Api) -> None:
    await registered(api, node("n1"))
    for _ in range(20):
        _, ended_id = await api.leased()
        await api.sql(
            """
            UPDATE leases SET state = 'ENDED', outcome = 'completed', max_run_seconds = 600,
                granted_at = now() - interval '60 seconds', ended_at = now()
            WHERE lease_id = :id
            """,
            id=ended_id,
        )
    _, lease_id = await api.leased()
    await api.sql(
        """
        UPDATE leases SET accelerators = 8, max_run_seconds = 36000, expires_at = now() + interval '1 hour'
        WHERE lease_id = :id
        """,
        id=lease_id,
    )
    await api.sql("UPDATE leases SET shape = shape_of(leases)")
    await placed(api, lease_id, ("n1", 1))
    found = await api.scheduler.Simulate(tried(8))
    # What runs declared ten hours; what was observed took a tenth of that.
    wait_seconds = found.eta.p90_time.ToSeconds() - found.time.ToSeconds()
    assert 3_500 <= wait_seconds <= 3_700
    assert "what 20 ended leases took" in found.eta.basis


async def test_what_could_never_run_is_refused_with_the_numbers(api: Api) -> None:
    await registered(api, node("n1"), node("n2"))
    gang = await refused(api.scheduler.Simulate(tried(8, members=3)))
    assert (gang.code, gang.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EXCEEDS_MAXIMUM")
    assert gang.metadata == {"requested": "24", "maximum": "16"}
    unknown = await refused(api.scheduler.Simulate(tried(1, kind="tpu")))
    assert (unknown.reason, unknown.fields) == ("INVALID_FIELD", ["submission.shape.accelerator_kind"])
    for request, field in (
        (pb.SimulateRequest(), "submission"),
        (pb.SimulateRequest(quota=quotas_pb.Quota(team="a"), lost_node="n1"), "quota"),
        (tried(0), "submission.shape.accelerators"),
        (tried(1, count=-1), "submission.count"),
        (tried(1, priority=1_001), "submission.priority"),
        (pb.SimulateRequest(quota=quotas_pb.Quota(project=PROJECT, parent="nowhere")), "quota.parent"),
        (pb.SimulateRequest(quota=quotas_pb.Quota(project=PROJECT, weight=0)), "quota.weight"),
    ):
        assert (await refused(api.scheduler.Simulate(request))).fields == [field]
    lost = await refused(api.scheduler.Simulate(pb.SimulateRequest(lost_node="n9")))
    assert lost.reason == "RESOURCE_NOT_FOUND"


async def test_a_lost_node_displaces_what_runs_on_it(api: Api) -> None:
    await registered(api, node("n1"), node("n2"))
    job_id, lease_id = await api.leased()
    await placed(api, lease_id, ("n1", 1))
    found = await api.scheduler.Simulate(pb.SimulateRequest(lost_node="n1"))
    assert (found.displaced, [list(effect.displaced_job_ids) for effect in found.effects]) == (1, [[job_id]])
    assert (await api.scheduler.Simulate(pb.SimulateRequest(lost_node="n2"))).displaced == 0


async def test_a_tried_quota_says_who_would_get_less(api: Api) -> None:
    await registered(api, node("n1"))
    job_id = await api.running()
    await api.attempts.RequestLease(
        attempts_pb.RequestLeaseRequest(
            lease_id=new_id(),
            job_id=job_id,
            phase=job_pb2.JOB_PHASE_TRAIN,
            shape=attempts_pb.Shape(accelerators=2, accelerator_kind="h200"),
            max_run_seconds=60,
        )
    )
    paused = quotas_pb.Quota(project=PROJECT, max_accelerators={"reserved": 0})
    found = await api.scheduler.Simulate(pb.SimulateRequest(quota=paused))
    assert [(effect.project, effect.granted_change) for effect in found.effects] == [(PROJECT, -1)]
    assert (await refused(api.quotas.GetQuota(quotas_pb.GetQuotaRequest(project=PROJECT)))).reason == "RESOURCE_NOT_FOUND"
