"""The asyncio client: as `headway_client.client.Client`, for callers inside an event loop.

async with AsyncClient("127.0.0.1:7400") as client:
    job = await client.submit_job("support", spec)
    async for batch in client.watch_events(job_id=job.job_id):
        for event in batch.events:
            print(event)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from headway.capacity.v1 import capacity_service_pb2 as capacity
from headway.capacity.v1.capacity_service_pb2_grpc import CapacityServiceStub
from headway.datasets.v1 import dataset_service_pb2 as datasets
from headway.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.jobs.v1.job_service_pb2_grpc import JobServiceStub
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as logs
from headway.logs.v1.log_service_pb2_grpc import LogServiceStub
from headway.quotas.v1 import quota_service_pb2 as quotas
from headway.quotas.v1.quota_service_pb2_grpc import QuotaServiceStub
from headway.registry.v1 import registry_service_pb2 as registry
from headway.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from headway_client import requests, uploads
from headway_client.channels import aio_channel
from headway_client.errors import HeadwayError, from_rpc_error
from headway_client.requests import PagedRequestT, PagedResponseT
from headway_client.retries import RetryPolicy, UnaryRetry
from headway_client.streams import Resumption, StreamRequestT, StreamResponseT

if TYPE_CHECKING:
    from grpc.aio import UnaryStreamMultiCallable, UnaryUnaryMultiCallable

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


def _asked_to_stop() -> bool:
    # gRPC raises CancelledError also when it was the server that cancelled the call; then nobody cancelled this task.
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class AsyncClient:
    """A connection to one control plane, for the event loop it is made in; close it, or use it as a context manager.

    Every method raises `HeadwayError` when its call is refused or does not come through.
    """

    def __init__(self, address: str, *, deadline_seconds: float = 30.0, retries: RetryPolicy | None = None) -> None:
        """Dials on the first call.

        Args:
            address: host:port of the control plane.
            deadline_seconds: the longest a unary call may take, its retries included.
            retries: how persistent it is.
        """
        self.address = address
        self._deadline_seconds = deadline_seconds
        self._retries = retries or RetryPolicy()
        self._channel = aio_channel(address)
        self._jobs = JobServiceStub(self._channel)
        self._logs = LogServiceStub(self._channel)
        self._datasets = DatasetServiceStub(self._channel)
        self._registry = RegistryServiceStub(self._channel)
        self._quotas = QuotaServiceStub(self._channel)
        self._capacity = CapacityServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call."""
        await self._channel.close()

    # Jobs

    async def submit_job(
        self,
        project: str,
        spec: job_spec_pb2.JobSpec,
        *,
        name: str = "",
        priority: int | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> job_pb2.Job:
        """Submits a job, once, however often the call is repeated with one `request_id` (a UUID; default: a new one)."""
        request = requests.submit_job(
            project, spec, name=name, priority=priority, request_id=request_id, validate_only=validate_only
        )
        return (await self._unary(self._jobs.SubmitJob, request)).job

    async def get_job(self, job_id: str) -> job_pb2.Job:
        """One job."""
        return (await self._unary(self._jobs.GetJob, jobs.GetJobRequest(job_id=job_id))).job

    async def list_jobs(
        self, project: str, *, states: Iterable[job_pb2.JobState.ValueType] = (), page_size: int = 0
    ) -> AsyncIterator[job_pb2.Job]:
        """A project's jobs, newest first, fetched page by page as they are consumed."""
        async for page in self._pages(self._jobs.ListJobs, requests.list_jobs(project, states, page_size)):
            for item in page.jobs:
                yield item

    async def cancel_job(self, job_id: str, *, reason: str = "", request_id: str | None = None) -> job_pb2.Job:
        """Asks a job to stop."""
        return (await self._unary(self._jobs.CancelJob, requests.cancel_job(job_id, reason, request_id))).job

    def watch_events(
        self, *, job_id: str | None = None, project: str | None = None, start_cursor: str = ""
    ) -> AsyncGenerator[jobs.WatchEventsResponse]:
        """The events of one job, until its last, or of a project, for ever. Heartbeats carry no event, only a cursor."""
        return self._stream(self._jobs.WatchEvents, requests.watch_events(job_id, project, start_cursor))

    # Logs

    def tail_logs(
        self,
        job_id: str,
        *,
        follow: bool = False,
        min_level: log_record_pb2.LogLevel.ValueType = log_record_pb2.LOG_LEVEL_UNSPECIFIED,
        start_cursor: str = "",
    ) -> AsyncGenerator[logs.TailLogsResponse]:
        """A job's log records: what is stored, and with `follow` what comes until the job is final."""
        request = requests.tail_logs(job_id, follow, min_level, start_cursor)
        return self._stream(self._logs.TailLogs, request, ends_when_drained=not follow)

    def stream_progress(self, job_id: str, *, start_cursor: str = "") -> AsyncGenerator[logs.StreamProgressResponse]:
        """A job's measurements, from the first one kept, until the job is final."""
        request = logs.StreamProgressRequest(job_id=job_id, start_cursor=start_cursor)
        return self._stream(self._logs.StreamProgress, request)

    # Datasets and models

    async def upload(self, project: str, path: Path, progress: uploads.Progress = uploads.ignore_progress) -> uploads.Uploaded:
        """Brings a file's bytes into the object store, unless they are there already.

        Raises:
            OSError: the file cannot be read.
        """
        content = await asyncio.to_thread(uploads.read_content, path)
        upload = await self._unary(self._datasets.CreateUpload, requests.create_upload(project, content))
        return await asyncio.to_thread(uploads.put, content, upload, self._deadline_seconds, progress)

    async def register_dataset(
        self,
        project: str,
        name: str,
        uploaded: uploads.Uploaded,
        *,
        license_: str = "",
        attribution: str = "",
        request_id: str | None = None,
    ) -> datasets.Dataset:
        """Gives uploaded bytes a name among the project's datasets."""
        request = requests.register_dataset(
            project, name, uploaded, license_=license_, attribution=attribution, request_id=request_id
        )
        return (await self._unary(self._datasets.RegisterDataset, request)).dataset

    async def list_datasets(self, project: str) -> AsyncIterator[datasets.Dataset]:
        """A project's datasets, by name."""
        async for page in self._pages(self._datasets.ListDatasets, datasets.ListDatasetsRequest(project=project)):
            for item in page.datasets:
                yield item

    async def register_base_model(
        self,
        name: str,
        uploaded: uploads.Uploaded,
        *,
        license_: str = "",
        attribution: str = "",
        request_id: str | None = None,
    ) -> registry.BaseModel:
        """Makes an uploaded GGUF file known as a base model."""
        request = requests.register_base_model(
            name, uploaded, license_=license_, attribution=attribution, request_id=request_id
        )
        return (await self._unary(self._registry.RegisterBaseModel, request)).base_model

    async def list_base_models(self) -> AsyncIterator[registry.BaseModel]:
        """The base models, by name."""
        async for page in self._pages(self._registry.ListBaseModels, registry.ListBaseModelsRequest()):
            for item in page.base_models:
                yield item

    async def get_model_version(
        self, project: str, model: str, *, version: int | None = None, alias: str | None = None
    ) -> registry.ModelVersion:
        """One version of a model, by number or by alias."""
        request = requests.get_model_version(project, model, version, alias)
        return (await self._unary(self._registry.GetModelVersion, request)).model_version

    async def list_model_versions(self, project: str, model: str = "") -> AsyncIterator[registry.ModelVersion]:
        """The versions of a project's models, or of one of them, newest first."""
        request = registry.ListModelVersionsRequest(project=project, model=model)
        async for page in self._pages(self._registry.ListModelVersions, request):
            for item in page.model_versions:
                yield item

    # Quotas and capacity

    async def get_quota(self, project: str) -> quotas.Quota:
        """A project's quota."""
        return (await self._unary(self._quotas.GetQuota, quotas.GetQuotaRequest(project=project))).quota

    async def set_quota(
        self, project: str, max_accelerators: Mapping[str, int], *, request_id: str | None = None
    ) -> quotas.Quota:
        """Sets how many accelerators of each kind a project may hold at once."""
        return (await self._unary(self._quotas.SetQuota, requests.set_quota(project, max_accelerators, request_id))).quota

    async def list_quotas(self) -> AsyncIterator[quotas.Quota]:
        """The quotas set, by project."""
        async for page in self._pages(self._quotas.ListQuotas, quotas.ListQuotasRequest()):
            for item in page.quotas:
                yield item

    async def get_usage(self, project: str) -> list[quotas.Usage]:
        """What a project holds and used, by kind of accelerator."""
        return list((await self._unary(self._quotas.GetUsage, quotas.GetUsageRequest(project=project))).usage)

    async def list_workers(self) -> AsyncIterator[capacity.Worker]:
        """The workers known, by name."""
        async for page in self._pages(self._capacity.ListWorkers, capacity.ListWorkersRequest()):
            for item in page.workers:
                yield item

    # How calls are made

    async def _unary(self, call: UnaryUnaryMultiCallable[_RequestT, _ResponseT], request: _RequestT) -> _ResponseT:
        retry = UnaryRetry(self._retries, request, self._deadline_seconds)
        while True:
            try:
                return await call(request, timeout=retry.remaining_seconds())
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
                wait_seconds = retry.wait_seconds(failure.code)
                if wait_seconds is None:
                    raise failure from error
            await asyncio.sleep(wait_seconds)

    async def _pages(
        self, call: UnaryUnaryMultiCallable[PagedRequestT, PagedResponseT], request: PagedRequestT
    ) -> AsyncIterator[PagedResponseT]:
        while True:
            page = await self._unary(call, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _stream(
        self,
        call: UnaryStreamMultiCallable[StreamRequestT, StreamResponseT],
        request: StreamRequestT,
        *,
        ends_when_drained: bool = False,
    ) -> AsyncGenerator[StreamResponseT]:
        resumption = Resumption(self._retries, request.start_cursor)
        while True:
            failure: HeadwayError | None = None
            request.start_cursor = resumption.cursor
            stream = call(request, timeout=self._retries.stream_call_seconds)
            try:
                async for response in stream:
                    resumption.received(response)
                    yield response
                    if response.end_of_stream:
                        return
                if ends_when_drained:
                    return
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
            except asyncio.CancelledError:
                if _asked_to_stop():
                    raise
                failure = HeadwayError(grpc.StatusCode.CANCELLED, f"the control plane at {self.address} ended the call")
            finally:
                stream.cancel()
            await asyncio.sleep(resumption.wait_seconds(failure))
