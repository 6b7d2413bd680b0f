"""Jobs, their events and their logs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from datetime import datetime
from functools import cached_property

from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.jobs.v1.job_service_pb2_grpc import JobServiceStub
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as logs
from headway.logs.v1.log_service_pb2_grpc import LogServiceStub
from headway_client import requests
from headway_client.arguments import build
from headway_client.blocking.calls import Calls


class JobCalls(Calls):
    """JobService and LogService, without what only runners write."""

    @cached_property
    def _jobs(self) -> JobServiceStub:
        return JobServiceStub(self._channel)

    @cached_property
    def _logs(self) -> LogServiceStub:
        return LogServiceStub(self._channel)

    # Submitting

    def submit(
        self,
        project: str,
        spec: job_spec_pb2.JobSpec,
        *,
        name: str = "",
        priority: int | None = None,
        job_set: str = "",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> jobs.SubmitJobResponse:
        """As `submit_job`, with all that the server says: warnings, and with `validate_only` the plan."""
        request = requests.submit_job(
            project,
            spec,
            name=name,
            priority=priority,
            job_set=job_set,
            request_id=request_id,
            validate_only=validate_only,
        )
        return self._unary(self._jobs.SubmitJob, request)

    def submit_job(
        self,
        project: str,
        spec: job_spec_pb2.JobSpec,
        *,
        name: str = "",
        priority: int | None = None,
        job_set: str = "",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> job_pb2.Job:
        """Submits a job, once, however often the call is repeated with one `request_id` (a UUID; default: a new one)."""
        response = self.submit(
            project,
            spec,
            name=name,
            priority=priority,
            job_set=job_set,
            request_id=request_id,
            validate_only=validate_only,
        )
        return response.job

    def batch_submit_jobs(
        self,
        project: str,
        items: Iterable[jobs.BatchItem],
        *,
        job_set: str = "",
        partial_success: bool = False,
        request_id: str | None = None,
    ) -> jobs.BatchSubmitJobsResponse:
        """Submits up to 1,000 jobs: all or none, or with `partial_success` the good ones; `errors.from_status` reads why."""
        request = requests.batch_submit_jobs(project, items, job_set, partial_success, request_id)
        return self._unary(self._jobs.BatchSubmitJobs, request)

    def rerun_job(
        self,
        job_id: str,
        *,
        spec: job_spec_pb2.JobSpec | None = None,
        spec_paths: Iterable[str] = (),
        name: str = "",
        priority: int | None = None,
        job_set: str = "",
        request_id: str | None = None,
    ) -> job_pb2.Job:
        """Submits a job again, its inputs pinned; the fields of `spec` that `spec_paths` names take the place of its own."""
        request = requests.rerun_job(
            job_id, spec, spec_paths, name=name, priority=priority, job_set=job_set, request_id=request_id
        )
        return self._unary(self._jobs.RerunJob, request).job

    # Looking

    def get_job(self, job_id: str) -> job_pb2.Job:
        """One job."""
        return self._unary(self._jobs.GetJob, build(jobs.GetJobRequest, job_id=job_id)).job

    def get_job_and_cost(self, job_id: str) -> tuple[job_pb2.Job, jobs.JobCost]:
        """One job, and what it was foretold to cost and did cost."""
        response = self._unary(self._jobs.GetJob, build(jobs.GetJobRequest, job_id=job_id))
        return response.job, response.cost

    def list_jobs(
        self,
        project: str = "",
        *,
        states: Iterable[job_pb2.JobState.ValueType] = (),
        filter_: str = "",
        order_by: str = "",
        summary: bool = False,
        page_size: int = 0,
    ) -> Iterator[job_pb2.Job]:
        """Jobs of a project, or of every project one may see, newest first unless ordered; fetched as they are consumed.

        `filter_` and `order_by` are those of docs/reference/filters.md; `summary` leaves out spec, result and failure details.
        """
        request = requests.list_jobs(project, states, filter_, order_by, summary, page_size)
        for page in self._pages(self._jobs.ListJobs, request):
            yield from page.jobs

    def diff_jobs(self, job_id: str, other_job_id: str) -> list[jobs.Difference]:
        """What differs between two jobs, by section and path."""
        request = build(jobs.DiffJobsRequest, job_id=job_id, other_job_id=other_job_id)
        return list(self._unary(self._jobs.DiffJobs, request).differences)

    def get_job_set(self, project: str, name: str) -> jobs.JobSet:
        """One job set: how many of its jobs stand where."""
        return self._unary(self._jobs.GetJobSet, build(jobs.GetJobSetRequest, project=project, name=name)).job_set

    def list_job_sets(self, project: str) -> Iterator[jobs.JobSet]:
        """A project's job sets, by name."""
        for page in self._pages(self._jobs.ListJobSets, build(jobs.ListJobSetsRequest, project=project)):
            yield from page.job_sets

    # Steering one job

    def cancel_job(self, job_id: str, *, reason: str = "", request_id: str | None = None) -> job_pb2.Job:
        """Asks a job to stop."""
        request = build(jobs.CancelJobRequest, request_id=requests.new_id(request_id), job_id=job_id, reason=reason)
        return self._unary(self._jobs.CancelJob, request).job

    def pause_job(self, job_id: str, *, reason: str = "", request_id: str | None = None) -> job_pb2.Job:
        """Asks a job to hold still at a checkpoint, without a lease, until it is resumed."""
        request = build(jobs.PauseJobRequest, request_id=requests.new_id(request_id), job_id=job_id, reason=reason)
        return self._unary(self._jobs.PauseJob, request).job

    def resume_job(self, job_id: str, *, reason: str = "", request_id: str | None = None) -> job_pb2.Job:
        """Lets a paused job go on."""
        request = build(jobs.ResumeJobRequest, request_id=requests.new_id(request_id), job_id=job_id, reason=reason)
        return self._unary(self._jobs.ResumeJob, request).job

    def preempt_job(self, job_id: str, *, reason: str = "", request_id: str | None = None) -> job_pb2.Job:
        """Takes a running job's lease; it asks for a new one in its turn."""
        request = build(jobs.PreemptJobRequest, request_id=requests.new_id(request_id), job_id=job_id, reason=reason)
        return self._unary(self._jobs.PreemptJob, request).job

    def reprioritize_job(self, job_id: str, priority: int, *, reason: str = "", request_id: str | None = None) -> job_pb2.Job:
        """Gives a job another priority."""
        request = build(
            jobs.ReprioritizeJobRequest, request_id=requests.new_id(request_id), job_id=job_id, priority=priority, reason=reason
        )
        return self._unary(self._jobs.ReprioritizeJob, request).job

    def update_job(
        self,
        job_id: str,
        *,
        name: str | None = None,
        priority: int | None = None,
        job_set: str | None = None,
        etag: str = "",
        request_id: str | None = None,
    ) -> job_pb2.Job:
        """Changes what is not None; refused with ETAG_MISMATCH if the job no longer has the etag given."""
        request = requests.update_job(job_id, name, priority, job_set, etag, request_id)
        return self._unary(self._jobs.UpdateJob, request).job

    # Steering many jobs at once

    def cancel_jobs(
        self, selection: jobs.JobSelection, *, reason: str = "", request_id: str | None = None
    ) -> jobs.SelectionOutcome:
        """Asks every job of a selection to stop. While the outcome says `more`, call again."""
        request = build(jobs.CancelJobRequest, request_id=requests.new_id(request_id), selection=selection, reason=reason)
        return self._unary(self._jobs.CancelJob, request).outcome

    def pause_jobs(
        self, selection: jobs.JobSelection, *, reason: str = "", request_id: str | None = None
    ) -> jobs.SelectionOutcome:
        """As `pause_job`, for a selection."""
        request = build(jobs.PauseJobRequest, request_id=requests.new_id(request_id), selection=selection, reason=reason)
        return self._unary(self._jobs.PauseJob, request).outcome

    def resume_jobs(
        self, selection: jobs.JobSelection, *, reason: str = "", request_id: str | None = None
    ) -> jobs.SelectionOutcome:
        """As `resume_job`, for a selection."""
        request = build(jobs.ResumeJobRequest, request_id=requests.new_id(request_id), selection=selection, reason=reason)
        return self._unary(self._jobs.ResumeJob, request).outcome

    def preempt_jobs(
        self, selection: jobs.JobSelection, *, reason: str = "", request_id: str | None = None
    ) -> jobs.SelectionOutcome:
        """As `preempt_job`, for a selection."""
        request = build(jobs.PreemptJobRequest, request_id=requests.new_id(request_id), selection=selection, reason=reason)
        return self._unary(self._jobs.PreemptJob, request).outcome

    def reprioritize_jobs(
        self, selection: jobs.JobSelection, priority: int, *, reason: str = "", request_id: str | None = None
    ) -> jobs.SelectionOutcome:
        """As `reprioritize_job`, for a selection."""
        request = build(
            jobs.ReprioritizeJobRequest,
            request_id=requests.new_id(request_id),
            selection=selection,
            priority=priority,
            reason=reason,
        )
        return self._unary(self._jobs.ReprioritizeJob, request).outcome

    # Following

    def watch_events(
        self,
        *,
        job_id: str | None = None,
        project: str | None = None,
        job_set: tuple[str, str] | None = None,
        start_cursor: str = "",
        from_now: bool = False,
    ) -> Generator[jobs.WatchEventsResponse]:
        """The events of one job, until its last, or for ever those of a project, of a job set (project and name), or of all.

        Heartbeats carry no event, only a cursor. Lost connections are taken up again by themselves. CURSOR_EXPIRED is raised:
        what was missed is not kept any more, and only the caller knows whether `metadata["oldest_cursor"]` will do.
        """
        return self._stream(self._jobs.WatchEvents, requests.watch_events(job_id, project, job_set, start_cursor, from_now))

    def tail_logs(
        self,
        job_id: str,
        *,
        follow: bool = False,
        min_level: log_record_pb2.LogLevel.ValueType = log_record_pb2.LOG_LEVEL_UNSPECIFIED,
        attempt: int = 0,
        source: str = "",
        text: str = "",
        since: datetime | None = None,
        start_cursor: str = "",
    ) -> Generator[logs.TailLogsResponse]:
        """A job's log records: what is stored, and with `follow` what comes until the job is final.

        Only those of an attempt, from a source, with a text in them, or made since a time, as far as these are given.
        """
        request = requests.tail_logs(
            job_id,
            follow=follow,
            min_level=min_level,
            attempt=attempt,
            source=source,
            text=text,
            since=since,
            start_cursor=start_cursor,
        )
        return self._stream(self._logs.TailLogs, request, ends_when_drained=not follow)

    def stream_progress(
        self, job_id: str, *, metrics: Iterable[str] = (), from_step: int = 0, start_cursor: str = ""
    ) -> Generator[logs.StreamProgressResponse]:
        """A job's measurements until the job is final: all, or only some metrics, or only from a step on."""
        request = build(
            logs.StreamProgressRequest, job_id=job_id, metrics=metrics, from_step=from_step, start_cursor=start_cursor
        )
        return self._stream(self._logs.StreamProgress, request)
