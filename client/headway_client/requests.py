"""The requests of both clients, each built in one place. A request id that is not given is made here, once per request."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Protocol, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from headway.audit.v1 import audit_service_pb2 as audit
from headway.datasets.v1 import dataset_service_pb2 as datasets
from headway.identity.v1 import identity_service_pb2 as identity
from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as logs
from headway.projects.v1 import project_service_pb2 as projects
from headway.registry.v1 import registry_service_pb2 as registry
from headway.webhooks.v1 import webhook_service_pb2 as webhooks
from headway_client.arguments import build, unfit
from headway_client.errors import ArgumentError
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


def new_id(request_id: str | None) -> str:
    """The request id to use: the one given, or a new one."""
    return request_id if request_id is not None else str(uuid.uuid4())


def submit_job(
    project: str,
    spec: job_spec_pb2.JobSpec,
    *,
    name: str,
    priority: int | None,
    job_set: str,
    request_id: str | None,
    validate_only: bool,
) -> jobs.SubmitJobRequest:
    """For JobService.SubmitJob."""
    return build(
        jobs.SubmitJobRequest,
        request_id=new_id(request_id),
        project=project,
        name=name,
        spec=spec,
        priority=priority,
        validate_only=validate_only,
        job_set=job_set,
    )


def batch_submit_jobs(
    project: str, items: Iterable[jobs.BatchItem], job_set: str, partial_success: bool, request_id: str | None
) -> jobs.BatchSubmitJobsRequest:
    """For JobService.BatchSubmitJobs."""
    return build(
        jobs.BatchSubmitJobsRequest,
        request_id=new_id(request_id),
        project=project,
        items=items,
        job_set=job_set,
        partial_success=partial_success,
    )


def list_jobs(
    project: str, states: Iterable[job_pb2.JobState.ValueType], filter_: str, order_by: str, summary: bool, page_size: int
) -> jobs.ListJobsRequest:
    """For JobService.ListJobs."""
    return build(
        jobs.ListJobsRequest,
        project=project,
        states=states,
        filter=filter_,
        order_by=order_by,
        summary=summary,
        page_size=page_size,
    )


def update_job(
    job_id: str, name: str | None, priority: int | None, job_set: str | None, etag: str, request_id: str | None
) -> jobs.UpdateJobRequest:
    """For JobService.UpdateJob: what is not None is changed."""
    changes = {"name": name, "priority": priority, "job_set": job_set}
    mask = build(FieldMask, paths=[field for field, value in changes.items() if value is not None])
    job = build(job_pb2.Job, job_id=job_id, etag=etag, name=name or "", priority=priority or 0, job_set=job_set or "")
    return build(jobs.UpdateJobRequest, request_id=new_id(request_id), job=job, update_mask=mask)


def rerun_job(
    job_id: str,
    spec: job_spec_pb2.JobSpec | None,
    spec_paths: Iterable[str],
    *,
    name: str,
    priority: int | None,
    job_set: str,
    request_id: str | None,
) -> jobs.RerunJobRequest:
    """For JobService.RerunJob."""
    return build(
        jobs.RerunJobRequest,
        request_id=new_id(request_id),
        job_id=job_id,
        spec=spec,
        spec_mask=build(FieldMask, paths=spec_paths),
        name=name,
        priority=priority,
        job_set=job_set,
    )


def watch_events(
    job_id: str | None, project: str | None, job_set: tuple[str, str] | None, start_cursor: str, from_now: bool
) -> jobs.WatchEventsRequest:
    """For JobService.WatchEvents; a job set is named by project and name.

    Raises:
        ArgumentError: more than one of job, project and job set is named.
    """
    scopes = {"job_id": job_id, "project": project, "job_set": job_set}
    given = [name for name, scope in scopes.items() if scope is not None]
    if len(given) > 1:
        raise ArgumentError(" and ".join(given), "a stream has one scope; expected at most one of job_id, project and job_set")
    if job_id is not None:
        return build(jobs.WatchEventsRequest, job_id=job_id, start_cursor=start_cursor, from_now=from_now)
    if project is not None:
        return build(jobs.WatchEventsRequest, project=project, start_cursor=start_cursor, from_now=from_now)
    return build(jobs.WatchEventsRequest, job_set=_job_set(job_set), start_cursor=start_cursor, from_now=from_now)


def _job_set(named: tuple[str, str] | None) -> jobs.JobSetName | None:
    if named is None:
        return None
    try:
        project, name = named
    except (TypeError, ValueError) as error:
        raise unfit("job_set", named, "its project and its name") from error
    return build(jobs.JobSetName, project=project, name=name)


def tail_logs(
    job_id: str,
    *,
    follow: bool,
    min_level: log_record_pb2.LogLevel.ValueType,
    attempt: int,
    source: str,
    text: str,
    since: datetime | None,
    start_cursor: str,
) -> logs.TailLogsRequest:
    """For LogService.TailLogs."""
    return build(
        logs.TailLogsRequest,
        job_id=job_id,
        follow=follow,
        min_level=min_level,
        attempt=attempt,
        source=source,
        text=text,
        since=timestamp("since", since),
        start_cursor=start_cursor,
    )


def create_upload(project: str, content: FileContent) -> datasets.CreateUploadRequest:
    """For DatasetService.CreateUpload."""
    return build(datasets.CreateUploadRequest, project=project, sha256=content.sha256, size_bytes=content.size_bytes)


def register_dataset(
    project: str, name: str, uploaded: Uploaded, *, license_: str, attribution: str, request_id: str | None
) -> datasets.RegisterDatasetRequest:
    """For DatasetService.RegisterDataset."""
    dataset = build(
        datasets.Dataset,
        project=project,
        name=name,
        sha256=uploaded.sha256,
        size_bytes=uploaded.size_bytes,
        license=license_,
        attribution=attribution,
    )
    return build(datasets.RegisterDatasetRequest, request_id=new_id(request_id), dataset=dataset)


def register_base_model(
    name: str, uploaded: Uploaded, *, license_: str, attribution: str, request_id: str | None
) -> registry.RegisterBaseModelRequest:
    """For RegistryService.RegisterBaseModel."""
    base_model = build(
        registry.BaseModel,
        name=name,
        sha256=uploaded.sha256,
        size_bytes=uploaded.size_bytes,
        uri=uploaded.uri,
        format=registry.BASE_MODEL_FORMAT_GGUF,
        license=license_,
        attribution=attribution,
    )
    return build(registry.RegisterBaseModelRequest, request_id=new_id(request_id), base_model=base_model)


def get_model_version(project: str, model: str, version: int | None, alias: str | None) -> registry.GetModelVersionRequest:
    """For RegistryService.GetModelVersion.

    Raises:
        ArgumentError: not exactly one of version and alias is given.
    """
    if (version is None) == (alias is None):
        raise ArgumentError("version and alias", "a model version is named by one of them; expected exactly one")
    if version is not None:
        return build(registry.GetModelVersionRequest, project=project, model=model, version=version)
    return build(registry.GetModelVersionRequest, project=project, model=model, alias=alias or "")


def create_project(name: str, title: str, priority_max: int | None, request_id: str | None) -> projects.CreateProjectRequest:
    """For ProjectService.CreateProject."""
    project = build(projects.Project, name=name, title=title, priority_max=priority_max)
    return build(projects.CreateProjectRequest, request_id=new_id(request_id), project=project)


def update_project(
    name: str, title: str | None, priority_max: int | None, etag: str, request_id: str | None
) -> projects.UpdateProjectRequest:
    """For ProjectService.UpdateProject: what is not None is changed."""
    return build(
        projects.UpdateProjectRequest,
        request_id=new_id(request_id),
        name=name,
        title=title,
        priority_max=priority_max,
        etag=etag,
    )


def set_member(subject: str, role: projects.Role.ValueType, project: str, request_id: str | None) -> projects.SetMemberRequest:
    """For ProjectService.SetMember."""
    member = build(projects.Member, project=project, subject=subject, role=role)
    return build(projects.SetMemberRequest, request_id=new_id(request_id), member=member)


def create_token(
    name: str, role: projects.Role.ValueType, project: str, lifetime_seconds: int | None, request_id: str | None
) -> identity.CreateTokenRequest:
    """For IdentityService.CreateToken."""
    return build(
        identity.CreateTokenRequest,
        request_id=new_id(request_id),
        project=project,
        name=name,
        role=role,
        lifetime_seconds=lifetime_seconds,
    )


def list_audit_records(
    *,
    project: str,
    principal: str,
    method: str,
    after_position: int,
    refused_only: bool,
    start_time: datetime | None,
    end_time: datetime | None,
    newest_first: bool,
    page_size: int,
) -> audit.ListAuditRecordsRequest:
    """For AuditService.ListAuditRecords."""
    return build(
        audit.ListAuditRecordsRequest,
        project=project,
        principal=principal,
        method=method,
        after_position=after_position,
        refused_only=refused_only,
        start_time=timestamp("start_time", start_time),
        end_time=timestamp("end_time", end_time),
        newest_first=newest_first,
        page_size=page_size,
    )


def create_webhook(
    project: str,
    url: str,
    states: Iterable[job_pb2.JobState.ValueType],
    job_set: str,
    request_id: str | None,
    *,
    budget_alerts: bool,
) -> webhooks.CreateWebhookRequest:
    """For WebhookService.CreateWebhook."""
    webhook = build(webhooks.Webhook, project=project, url=url, states=states, job_set=job_set, budget_alerts=budget_alerts)
    return build(webhooks.CreateWebhookRequest, request_id=new_id(request_id), webhook=webhook)


def timestamp(argument: str, time: datetime | None) -> Timestamp | None:
    """The message of a time; None stays None.

    Raises:
        ArgumentError: it is none.
    """
    if time is None:
        return None
    stamp = Timestamp()
    try:
        stamp.FromDatetime(time)
    except (TypeError, ValueError) as error:
        raise unfit(argument, time, "a datetime") from error
    return stamp
