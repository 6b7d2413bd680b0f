"""Jobs that no node could ever hold are refused as they are submitted, with the field and the number."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2

from headway.jobs.v1 import job_service_pb2 as pb
from headway.jobs.v1 import job_spec_pb2
from tests.integration.control_plane.conftest import PROJECT, Api, new_id, refused
from tests.integration.control_plane.test_capacity import node, registered


def request(spec: job_spec_pb2.JobSpec, accelerators: int, kind: str = "", validate_only: bool = False) -> pb.SubmitJobRequest:
    """A submission of the spec that holds so many."""
    asked = pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=spec, validate_only=validate_only)
    asked.spec.fine_tune.resources.accelerators = accelerators
    asked.spec.fine_tune.resources.accelerator_kind = kind
    return asked


async def stored(api: Api) -> int:
    """How many jobs there are."""
    return int((await api.sql("SELECT count(*) FROM jobs"))[0][0])


async def test_anything_is_accepted_while_no_node_is_known(api: Api) -> None:
    assert (await api.jobs.SubmitJob(request(await api.inputs(), 4_096, "tpu"))).job.job_id


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("accelerators", "kind", "field", "maximum"),
    [
        (9, "h200", "accelerators", "8"),
        (9, "any", "accelerators", "8"),
        (1, "tpu", "accelerator_kind", "0"),
    ],
)
async def test_what_no_node_could_hold_is_refused(
    api: Api, accelerators: int, kind: str, field: str, maximum: str, dry: bool
) -> None:
    # Two of them together would do; one lease is whole on one.
    await registered(api, node("n1"), node("n2"))
    spec = await api.inputs()
    answer = await refused(api.jobs.SubmitJob(request(spec, accelerators, kind, validate_only=dry)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EXCEEDS_MAXIMUM")
    assert answer.fields == [f"spec.fine_tune.resources.{field}"]
    assert answer.metadata == {"requested": str(accelerators), "maximum": maximum}
    assert await stored(api) == 0
    assert (
        await api.jobs.SubmitJob(request(spec, 8, "h200", validate_only=dry))
    ).job.spec.fine_tune.resources.accelerators == 8


async def test_silent_and_cordoned_nodes_count_and_a_new_one_counts_at_once(api: Api) -> None:
    await registered(api, node("n1"))
    await api.sql("UPDATE workers SET heartbeat_at = now() - interval '1 day', cordoned = true")
    spec = await api.inputs()
    assert (await api.jobs.SubmitJob(request(spec, 8))).job.job_id
    assert (await refused(api.jobs.SubmitJob(request(spec, 16)))).reason == "EXCEEDS_MAXIMUM"
    await registered(api, node("n2", accelerators=16))
    assert (await api.jobs.SubmitJob(request(spec, 16))).job.job_id


async def test_a_search_is_refused_by_what_its_trials_hold(api: Api) -> None:
    await registered(api, node("n1"))
    spec = await api.inputs()
    spec.fine_tune.resources.accelerators = 9
    search = job_spec_pb2.JobSpec(hpo=job_spec_pb2.HpoSpec(trial=spec.fine_tune, max_trials=4))
    search.hpo.search_space["training.learning_rate"].real.CopyFrom(job_spec_pb2.RealRange(low=1e-5, high=1e-3))
    answer = await refused(api.jobs.SubmitJob(pb.SubmitJobRequest(request_id=new_id(), project=PROJECT, spec=search)))
    assert (answer.reason, answer.fields) == ("EXCEEDS_MAXIMUM", ["spec.hpo.trial.resources.accelerators"])


async def test_a_batch_is_refused_whole_or_by_its_items(api: Api) -> None:
    await registered(api, node("n1"))
    spec = await api.inputs()
    specs = [request(spec, accelerators).spec for accelerators in (1, 9, 8, 10)]
    batch = pb.BatchSubmitJobsRequest(request_id=new_id(), project=PROJECT, items=[pb.BatchItem(spec=each) for each in specs])
    answer = await refused(api.jobs.BatchSubmitJobs(batch))
    assert answer.fields == [f"items[{index}].spec.fine_tune.resources.accelerators" for index in (1, 3)]
    assert (answer.reason, await stored(api)) == ("EXCEEDS_MAXIMUM", 0)
    batch.request_id, batch.partial_success = new_id(), True
    response = await api.jobs.BatchSubmitJobs(batch)
    codes = [result.status.code for result in response.results]
    assert codes == [code_pb2.OK, code_pb2.INVALID_ARGUMENT, code_pb2.OK, code_pb2.INVALID_ARGUMENT]
    assert await stored(api) == response.accepted_count == 2


async def test_a_job_is_not_run_again_with_more_than_a_node_has(api: Api) -> None:
    await registered(api, node("n1"))
    job = await api.submit(await api.inputs())
    again = pb.RerunJobRequest(request_id=new_id(), job_id=job.job_id)
    again.spec.fine_tune.resources.accelerators = 9
    again.spec_mask.paths.append("fine_tune.resources.accelerators")
    answer = await refused(api.jobs.RerunJob(again))
    assert (answer.reason, answer.fields) == ("EXCEEDS_MAXIMUM", ["spec.fine_tune.resources.accelerators"])
