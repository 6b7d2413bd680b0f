"""The requests of both clients, each built in one place. A request id that is not given is made here, once per request."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from headway.datasets.v1 import dataset_service_pb2 as datasets
from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as logs
from headway.quotas.v1 import quota_service_pb2 as quotas
from headway.registry.v1 import registry_service_pb2 as registry
from headway_client.uploads import FileContent, Uploaded


class PagedRequest(Protocol):
    """Asks for a page."""

    page_token: str


class PagedResponse(Protocol):
    """A page."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""
        ...


PagedRequestT = TypeVar("PagedRequestT", bound=PagedRequest)
PagedResponseT = TypeVar("PagedResponseT", bound=PagedResponse)


def _id(request_id: str | None) -> str:
    return request_id if request_id is not None else str(uuid.uuid4())


def submit_job(
    project: str,
    spec: job_spec_pb2.JobSpec,
    *,
    name: str,
    priority: int | None,
    request_id: str | None,
    validate_only: bool,
) -> jobs.SubmitJobRequest:
    """For JobService.SubmitJob."""
    return jobs.SubmitJobRequest(
        request_id=_id(request_id),
        project=project,
        name=name,
        spec=spec,
        priority=priority,
        validate_only=validate_only,
    )


def list_jobs(project: str, states: Iterable[job_pb2.JobState.ValueType], page_size: int) -> jobs.ListJobsRequest:
    """For JobService.ListJobs."""
    return jobs.ListJobsRequest(project=project, states=states, page_size=page_size)


def cancel_job(job_id: str, reason: str, request_id: str | None) -> jobs.CancelJobRequest:
    """For JobService.CancelJob."""
    return jobs.CancelJobRequest(request_id=_id(request_id), job_id=job_id, reason=reason)


def watch_events(job_id: str | None, project: str | None, start_cursor: str) -> jobs.WatchEventsRequest:
    """For JobService.WatchEvents.

    Raises:
        ValueError: not exactly one of job and project is named.
    """
    if (job_id is None) == (project is None):
        raise ValueError("watch_events follows one job or one project; expected exactly one of job_id and project")
    if job_id is not None:
        return jobs.WatchEventsRequest(job_id=job_id, start_cursor=start_cursor)
    return jobs.WatchEventsRequest(project=project or "", start_cursor=start_cursor)


def tail_logs(
    job_id: str, follow: bool, min_level: log_record_pb2.LogLevel.ValueType, start_cursor: str
) -> logs.TailLogsRequest:
    """For LogService.TailLogs."""
    return logs.TailLogsRequest(job_id=job_id, follow=follow, min_level=min_level, start_cursor=start_cursor)


def create_upload(project: str, content: FileContent) -> datasets.CreateUploadRequest:
    """For DatasetService.CreateUpload."""
    return datasets.CreateUploadRequest(project=project, sha256=content.sha256, size_bytes=content.size_bytes)


def register_dataset(
    project: str, name: str, uploaded: Uploaded, *, license_: str, attribution: str, request_id: str | None
) -> datasets.RegisterDatasetRequest:
    """For DatasetService.RegisterDataset."""
    dataset = datasets.Dataset(
        project=project,
        name=name,
        sha256=uploaded.sha256,
        size_bytes=uploaded.size_bytes,
        license=license_,
        attribution=attribution,
    )
    return datasets.RegisterDatasetRequest(request_id=_id(request_id), dataset=dataset)


def register_base_model(
    name: str, uploaded: Uploaded, *, license_: str, attribution: str, request_id: str | None
) -> registry.RegisterBaseModelRequest:
    """For RegistryService.RegisterBaseModel."""
    base_model = registry.BaseModel(
        name=name,
        sha256=uploaded.sha256,
        size_bytes=uploaded.size_bytes,
        uri=uploaded.uri,
        format=registry.BASE_MODEL_FORMAT_GGUF,
        license=license_,
        attribution=attribution,
    )
    return registry.RegisterBaseModelRequest(request_id=_id(request_id), base_model=base_model)


def get_model_version(project: str, model: str, version: int | None, alias: str | None) -> registry.GetModelVersionRequest:
    """For RegistryService.GetModelVersion.

    Raises:
        ValueError: not exactly one of version and alias is given.
    """
    if (version is None) == (alias is None):
        raise ValueError("a model version is named by number or by alias; expected exactly one of version and alias")
    if version is not None:
        return registry.GetModelVersionRequest(project=project, model=model, version=version)
    return registry.GetModelVersionRequest(project=project, model=model, alias=alias or "")


def set_quota(project: str, max_accelerators: Mapping[str, int], request_id: str | None) -> quotas.SetQuotaRequest:
    """For QuotaService.SetQuota."""
    quota = quotas.Quota(project=project, max_accelerators=max_accelerators)
    return quotas.SetQuotaRequest(request_id=_id(request_id), quota=quota)
