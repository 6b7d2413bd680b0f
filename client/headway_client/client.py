"""The blocking client: one method per call, answers as the generated messages, errors as `HeadwayError`.

Every call has a deadline. Calls that are safe to repeat are repeated while the server is unavailable, with the same request
id. Streams reopen themselves after the last message that was consumed, so a caller sees each message once, in order.

    with Client("127.0.0.1:7400") as client:
        job = client.submit_job("support", spec)
        for batch in client.watch_events(job_id=job.job_id):
            for event in batch.events:
                print(event)

`headway_client.aio_client.AsyncClient` is the same for asyncio.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
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
from headway_client.channels import sync_channel, trace_metadata
from headway_client.errors import HeadwayError, from_rpc_error
from headway_client.requests import PagedRequestT, PagedResponseT
from headway_client.retries import RetryPolicy, UnaryRetry
from headway_client.streams import Resumption, StreamRequestT, StreamResponseT

if TYPE_CHECKING:
    from grpc import UnaryStreamMultiCallable, UnaryUnaryMultiCallable


_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class Client:
    """A connection to one control plane. Safe to share between threads; close it, or use it as a context manager.

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
        self._channel = sync_channel(address)
        self._jobs = JobServiceStub(self._channel)
        self._logs = LogServiceStub(self._channel)
        self._datasets = DatasetServiceStub(self._channel)
        self._registry = RegistryServiceStub(self._channel)
        self._quotas = QuotaServiceStub(self._channel)
        self._capacity = CapacityServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every call."""
        self._channel.close()

    # Jobs

    def submit_job(
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
        return self._unary(self._jobs.SubmitJob, request).job

    def get_job(self, job_id: str) -> job_pb2.Job:
        """One job."""
        return self._unary(self._jobs.GetJob, jobs.GetJobRequest(job_id=job_id)).job

    def list_jobs(
        self, project: str, *, states: Iterable[job_pb2.JobState.ValueType] = (), page_size: int = 0
    ) -> Iterator[job_pb2.Job]:
        """A project's jobs, newest first, fetched page by page as they are consumed."""
        for page in self._pages(self._jobs.ListJobs, requests.list_jobs(project, states, page_size)):
            yield from page.jobs

    def cancel_job(self, job_id: str, *, reason: str = "", request_id: str | None = None) -> job_pb2.Job:
        """Asks a job to stop."""
        return self._unary(self._jobs.CancelJob, requests.cancel_job(job_id, reason, request_id)).job

    def watch_events(
        self, *, job_id: str | None = None, project: str | None = None, start_cursor: str = ""
    ) -> Generator[jobs.WatchEventsResponse]:
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
    ) -> Generator[logs.TailLogsResponse]:
        """A job's log records: what is stored, and with `follow` what comes until the job is final."""
        request = requests.tail_logs(job_id, follow, min_level, start_cursor)
        return self._stream(self._logs.TailLogs, request, ends_when_drained=not follow)

    def stream_progress(self, job_id: str, *, start_cursor: str = "") -> Generator[logs.StreamProgressResponse]:
        """A job's measurements, from the first one kept, until the job is final."""
        request = logs.StreamProgressRequest(job_id=job_id, start_cursor=start_cursor)
        return self._stream(self._logs.StreamProgress, request)

    # Datasets and models

    def upload(self, project: str, path: Path, progress: uploads.Progress = uploads.ignore_progress) -> uploads.Uploaded:
        """Brings a file's bytes into the object store, unless they are there already.

        Raises:
            OSError: the file cannot be read.
        """
        content = uploads.read_content(path)
        upload = self._unary(self._datasets.CreateUpload, requests.create_upload(project, content))
        return uploads.put(content, upload, self._deadline_seconds, progress)

    def register_dataset(
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
        return self._unary(self._datasets.RegisterDataset, request).dataset

    def list_datasets(self, project: str) -> Iterator[datasets.Dataset]:
        """A project's datasets, by name."""
        for page in self._pages(self._datasets.ListDatasets, datasets.ListDatasetsRequest(project=project)):
            yield from page.datasets

    def register_base_model(
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
        return self._unary(self._registry.RegisterBaseModel, request).base_model

    def list_base_models(self) -> Iterator[registry.BaseModel]:
        """The base models, by name."""
        for page in self._pages(self._registry.ListBaseModels, registry.ListBaseModelsRequest()):
            yield from page.base_models

    def get_model_version(
        self, project: str, model: str, *, version: int | None = None, alias: str | None = None
    ) -> registry.ModelVersion:
        """One version of a model, by number or by alias."""
        request = requests.get_model_version(project, model, version, alias)
        return self._unary(self._registry.GetModelVersion, request).model_version

    def list_model_versions(self, project: str, model: str = "") -> Iterator[registry.ModelVersion]:
        """The versions of a project's models, or of one of them, newest first."""
        request = registry.ListModelVersionsRequest(project=project, model=model)
        for page in self._pages(self._registry.ListModelVersions, request):
            yield from page.model_versions

    # Quotas and capacity

    def get_quota(self, project: str) -> quotas.Quota:
        """A project's quota."""
        return self._unary(self._quotas.GetQuota, quotas.GetQuotaRequest(project=project)).quota

    def set_quota(self, project: str, max_accelerators: Mapping[str, int], *, request_id: str | None = None) -> quotas.Quota:
        """Sets how many accelerators of each kind a project may hold at once."""
        return self._unary(self._quotas.SetQuota, requests.set_quota(project, max_accelerators, request_id)).quota

    def list_quotas(self) -> Iterator[quotas.Quota]:
        """The quotas set, by project."""
        for page in self._pages(self._quotas.ListQuotas, quotas.ListQuotasRequest()):
            yield from page.quotas

    def get_usage(self, project: str) -> list[quotas.Usage]:
        """What a project holds and used, by kind of accelerator."""
        return list(self._unary(self._quotas.GetUsage, quotas.GetUsageRequest(project=project)).usage)

    def list_workers(self) -> Iterator[capacity.Worker]:
        """The workers known, by name."""
        for page in self._pages(self._capacity.ListWorkers, capacity.ListWorkersRequest()):
            yield from page.workers

    # How calls are made

    def _unary(self, call: UnaryUnaryMultiCallable[_RequestT, _ResponseT], request: _RequestT) -> _ResponseT:
        retry = UnaryRetry(self._retries, request, self._deadline_seconds)
        while True:
            try:
                return call(request, timeout=retry.remaining_seconds())
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
                wait_seconds = retry.wait_seconds(failure.code)
                if wait_seconds is None:
                    raise failure from error
            time.sleep(wait_seconds)

    def _pages(
        self, call: UnaryUnaryMultiCallable[PagedRequestT, PagedResponseT], request: PagedRequestT
    ) -> Iterator[PagedResponseT]:
        while True:
            page = self._unary(call, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _stream(
        self,
        call: UnaryStreamMultiCallable[StreamRequestT, StreamResponseT],
        request: StreamRequestT,
        *,
        ends_when_drained: bool = False,
    ) -> Generator[StreamResponseT]:
        resumption = Resumption(self._retries, request.start_cursor)
        while True:
            failure: HeadwayError | None = None
            request.start_cursor = resumption.cursor
            stream = call(request, timeout=self._retries.stream_call_seconds, metadata=trace_metadata())
            try:
                for response in stream:
                    resumption.received(response)
                    yield response
                    if response.end_of_stream:
                        return
                if ends_when_drained:
                    return
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
            finally:
                stream.cancel()
            time.sleep(resumption.wait_seconds(failure))
