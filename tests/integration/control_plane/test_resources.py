"""Datasets, base models, quotas, usage and workers over the API."""

from __future__ import annotations

import asyncio
import hashlib
import urllib.error
import urllib.request
from typing import Any

import grpc

from headway.attempts.v1 import attempt_service_pb2 as attempts_pb
from headway.capacity.v1 import capacity_service_pb2 as capacity_pb
from headway.datasets.v1 import dataset_service_pb2 as datasets_pb
from headway.quotas.v1 import quota_service_pb2 as quotas_pb
from headway.registry.v1 import registry_service_pb2 as registry_pb
from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused

DATA = b'{"prompt": "question", "completion": "answer"}\n'
SHA256 = hashlib.sha256(DATA).hexdigest()


async def _put(upload: datasets_pb.CreateUploadResponse, body: bytes) -> int:
    request = urllib.request.Request(upload.upload_url, data=body, method="PUT", headers=dict(upload.headers))  # noqa: S310 - our store

    def send() -> int:
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    return await asyncio.to_thread(send)


async def test_an_upload_takes_the_announced_bytes_and_no_others(api: Api) -> None:
    announce = datasets_pb.CreateUploadRequest(project=PROJECT, sha256=SHA256, size_bytes=len(DATA))
    upload = await api.datasets.CreateUpload(announce)
    dataset = datasets_pb.Dataset(project=PROJECT, name="questions", sha256=SHA256, size_bytes=len(DATA), license="MIT")
    register = datasets_pb.RegisterDatasetRequest(request_id=new_id(), dataset=dataset)
    answer = await refused(api.datasets.RegisterDataset(register))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OBJECT_MISSING")
    assert await _put(upload, DATA.replace(b"answer", b"ANSWER")) == 400
    assert await _put(upload, DATA) == 200
    stored = (await api.datasets.RegisterDataset(register)).dataset
    assert (stored.uri, stored.license) == (upload.uri, "MIT")
    assert (await api.datasets.RegisterDataset(register)).dataset == stored
    again = await api.datasets.CreateUpload(announce)
    assert (again.uri, again.upload_url) == (upload.uri, ""), "bytes that are there need no second upload"


async def test_a_name_means_its_newest_bytes_and_a_late_repeat_does_not_turn_it_back(api: Api) -> None:
    requests: list[datasets_pb.RegisterDatasetRequest] = []
    for data in (b"first\n", b"second\n"):
        sha256, _ = api.put(PROJECT, data)
        dataset = datasets_pb.Dataset(project=PROJECT, name="notes", sha256=sha256, size_bytes=len(data))
        requests.append(datasets_pb.RegisterDatasetRequest(request_id=new_id(), dataset=dataset))
        await api.datasets.RegisterDataset(requests[-1])
    await api.datasets.RegisterDataset(requests[0])
    listed = (await api.datasets.ListDatasets(datasets_pb.ListDatasetsRequest(project=PROJECT))).datasets
    assert [(dataset.name, dataset.sha256) for dataset in listed] == [("notes", requests[1].dataset.sha256)]


async def test_datasets_and_base_models_are_paged_by_name(api: Api) -> None:
    sha256, uri = api.put(PROJECT, DATA)
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        dataset = datasets_pb.Dataset(project=PROJECT, name=name, sha256=sha256, size_bytes=len(DATA))
        await api.datasets.RegisterDataset(datasets_pb.RegisterDatasetRequest(request_id=new_id(), dataset=dataset))
        model = registry_pb.BaseModel(
            name=name, sha256=sha256, size_bytes=len(DATA), uri=uri, format=registry_pb.BASE_MODEL_FORMAT_GGUF
        )
        await api.registry.RegisterBaseModel(registry_pb.RegisterBaseModelRequest(request_id=new_id(), base_model=model))
    found: list[str] = []
    models: list[str] = []
    token = model_token = ""
    for _ in range(3):
        page = await api.datasets.ListDatasets(datasets_pb.ListDatasetsRequest(project=PROJECT, page_size=2, page_token=token))
        found, token = found + [dataset.name for dataset in page.datasets], page.next_page_token
        model_page = await api.registry.ListBaseModels(registry_pb.ListBaseModelsRequest(page_size=2, page_token=model_token))
        models, model_token = models + [model.name for model in model_page.base_models], model_page.next_page_token
    assert (found, models, token, model_token) == (names, names, "", "")


async def test_a_base_model_never_changes(api: Api) -> None:
    await api.inputs()
    sha256, uri = api.put(PROJECT, b"other weights")
    model = registry_pb.BaseModel(name="base", sha256=sha256, size_bytes=13, uri=uri, format=registry_pb.BASE_MODEL_FORMAT_GGUF)
    request = registry_pb.RegisterBaseModelRequest(request_id=new_id(), base_model=model)
    answer = await refused(api.registry.RegisterBaseModel(request))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN")


async def test_a_base_model_must_lie_where_uploads_lie(api: Api) -> None:
    sha256, uri = api.put(PROJECT, DATA)
    bucket = uri.split("/projects/", maxsplit=1)[0]
    for bad in (
        "file:///etc/passwd",
        "http://169.254.169.254/",
        f"s3://other-bucket/projects/{PROJECT}/blobs/{sha256}",
        f"{bucket}/projects/../{sha256}",
        f"{bucket}/projects/{PROJECT}/blobs/%2e%2e/{sha256}",
        f"{uri}?versionId=1",
        bucket + "/",
        "",
    ):
        model = registry_pb.BaseModel(
            name="bad", sha256=sha256, size_bytes=len(DATA), uri=bad, format=registry_pb.BASE_MODEL_FORMAT_GGUF
        )
        request = registry_pb.RegisterBaseModelRequest(request_id=new_id(), base_model=model)
        answer = await refused(api.registry.RegisterBaseModel(request))
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["base_model.uri"]), bad


async def test_quotas_are_set_once_per_request_and_listed(api: Api) -> None:
    answer = await refused(api.quotas.GetQuota(quotas_pb.GetQuotaRequest(project=PROJECT)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    first = quotas_pb.SetQuotaRequest(request_id=new_id())
    first.quota.project = PROJECT
    first.quota.max_accelerators.update({"h200": 8, "cpu": 1})
    second = quotas_pb.SetQuotaRequest(request_id=new_id())
    second.quota.project = PROJECT
    second.quota.max_accelerators["h200"] = 4
    for request in (first, second, first):
        await api.quotas.SetQuota(request)
    quota = (await api.quotas.GetQuota(quotas_pb.GetQuotaRequest(project=PROJECT))).quota
    assert dict(quota.max_accelerators) == {"h200": 4}
    assert [q.project for q in (await api.quotas.ListQuotas(quotas_pb.ListQuotasRequest())).quotas] == [PROJECT]


async def test_bad_quotas_are_refused(api: Api) -> None:
    for kinds, field in [({"h200": -1}, "quota.max_accelerators[h200]"), ({"H 200": 1}, "quota.max_accelerators key")]:
        request = quotas_pb.SetQuotaRequest(request_id=new_id())
        request.quota.project = PROJECT
        request.quota.max_accelerators.update(kinds)
        answer = await refused(api.quotas.SetQuota(request))
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_cpu_time_is_never_gpu_hours(api: Api) -> None:
    job_id, lease_id = await api.leased()
    await api.sql("UPDATE leases SET granted_at = now() - interval '1 hour'")
    usage = (await api.quotas.GetUsage(quotas_pb.GetUsageRequest(project=PROJECT))).usage
    assert [(use.accelerator_kind, use.accelerators_held) for use in usage] == [("cpu", 1)]
    await api.attempts.ReleaseLease(attempts_pb.ReleaseLeaseRequest(lease_id=lease_id, job_id=job_id, outcome="completed"))
    [use] = (await api.quotas.GetUsage(quotas_pb.GetUsageRequest(project=PROJECT))).usage
    assert use.accelerators_held == 0
    assert 3_600 <= use.accelerator_seconds < 3_700
    assert use.gpu_hours == 0
    await api.sql("UPDATE leases SET granted_kind = 'h200'")
    [use] = (await api.quotas.GetUsage(quotas_pb.GetUsageRequest(project=PROJECT))).usage
    assert 1 <= use.gpu_hours < 1.1


async def test_workers_register_and_are_lost_when_silent(api: Api) -> None:
    worker = capacity_pb.Worker(name="gpu-0", incarnation=new_id(), accelerator_kind="h200", accelerators=8)
    answer = await api.capacity.RegisterWorker(capacity_pb.RegisterWorkerRequest(worker=worker))
    assert answer.heartbeat_seconds == 5
    await api.leased()
    await api.sql("UPDATE leases SET worker = 'gpu-0'")
    [listed] = (await api.capacity.ListWorkers(capacity_pb.ListWorkersRequest())).workers
    assert (listed.alive, listed.accelerators, listed.accelerators_leased) == (True, 8, 1)
    await api.sql("UPDATE workers SET heartbeat_at = now() - interval '1 minute'")
    [listed] = (await api.capacity.ListWorkers(capacity_pb.ListWorkersRequest())).workers
    assert not listed.alive


async def test_bad_workers_are_refused(api: Api) -> None:
    good: dict[str, Any] = {"name": "gpu-0", "incarnation": new_id(), "accelerator_kind": "h200", "accelerators": 8}
    for field, value in [
        ("name", "GPU 0"),
        ("incarnation", "first"),
        ("accelerator_kind", "any"),
        ("accelerators", -1),
        ("accelerators", 1_025),
    ]:
        request = capacity_pb.RegisterWorkerRequest(worker=_worker({**good, field: value}))
        answer = await refused(api.capacity.RegisterWorker(request))
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [f"worker.{field}"])


def _worker(fields: dict[str, Any]) -> capacity_pb.Worker:
    return capacity_pb.Worker(**fields)
