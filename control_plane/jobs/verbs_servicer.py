"""JobService's verbs, lists and comparisons: requests checked, one transaction each, converted back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from google.rpc import status_pb2
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.call import current_call
from control_plane.db import mutations
from control_plane.errors import FieldViolation, invalid_field, invalid_fields
from control_plane.jobs import convert, diff, filters, lifecycle, listing, rerun
from control_plane.jobs.group_writer import GroupWriter
from control_plane.jobs.lifecycle import Outcome, Outcomes, Verb
from control_plane.jobs.references import project_not_found
from control_plane.jobs.repository import get_job, job_not_found
from control_plane.jobs.selection import Selection, selection_of
from control_plane.jobs.spec import ProjectName, ResourceName
from control_plane.jobs.states import JobState
from control_plane.jobs.submit_requests import job_set_violations, name_violation, priority_violation
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, timestamp, validated_value
from control_plane.rpc.pages import Cursors
from control_plane.rpc.status import as_refusal, to_status
from control_plane.rpc.text import require_text
from governance.policies import TypePolicies
from headway.jobs.v1 import job_pb2, job_service_pb2_grpc
from headway.jobs.v1 import job_service_pb2 as pb

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_M = TypeVar("_M", bound=Message)

_REASON_MAX = 500
_UPDATABLE = ("name", "priority", "job_set")


class _Steering(Protocol):
    """What the requests of all verbs over jobs have in common."""

    @property
    def request_id(self) -> str: ...
    @property
    def job_id(self) -> str: ...
    @property
    def selection(self) -> pb.JobSelection: ...
    @property
    def reason(self) -> str: ...
    def HasField(self, field_name: Any) -> bool: ...  # noqa: N802 - protobuf's name


class JobVerbs(job_service_pb2_grpc.JobServiceServicer):
    """Steer jobs, list them and compare them."""

    def __init__(
        self, engine: AsyncEngine, writer: GroupWriter, cursors: Cursors, policies: TypePolicies | None = None
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._cursors = cursors
        self._policies = policies or TypePolicies()

    async def CancelJob(self, request: pb.CancelJobRequest, context: _Context) -> pb.CancelJobResponse:  # noqa: N802 - gRPC's name
        """Asks jobs to stop."""
        del context
        return await self._steer(request, lifecycle.CANCEL, pb.CancelJobResponse)

    async def PauseJob(self, request: pb.PauseJobRequest, context: _Context) -> pb.PauseJobResponse:  # noqa: N802 - gRPC's name
        """Asks jobs to hold still."""
        del context
        return await self._steer(request, lifecycle.PAUSE, pb.PauseJobResponse)

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: _Context) -> pb.ResumeJobResponse:  # noqa: N802 - gRPC's name
        """Lets paused jobs go on."""
        del context
        return await self._steer(request, lifecycle.RESUME, pb.ResumeJobResponse)

    async def PreemptJob(self, request: pb.PreemptJobRequest, context: _Context) -> pb.PreemptJobResponse:  # noqa: N802 - gRPC's name
        """Takes the lease of running jobs."""
        del context
        return await self._steer(request, lifecycle.PREEMPT, pb.PreemptJobResponse)

    async def ReprioritizeJob(  # noqa: N802 - gRPC's name
        self, request: pb.ReprioritizeJobRequest, context: _Context
    ) -> pb.ReprioritizeJobResponse:
        """Gives jobs another priority."""
        del context
        if fault := priority_violation(request.priority, "priority"):
            raise invalid_fields([fault])
        return await self._steer(request, lifecycle.reprioritize(request.priority, self._policies), pb.ReprioritizeJobResponse)

    async def _steer(self, request: Any, verb: Verb, response_type: type[_M]) -> _M:
        """Applies a verb to what a request names, once per request id."""
        request_id, selection = _addressed(request)
        project = selection.project
        if request.job_id:
            project = (await self._visible(selection.job_ids[0]))["project"]

        async def work(connection: AsyncConnection) -> _M:
            outcomes = await lifecycle.steer(connection, verb, selection, request.reason)
            if not request.job_id:
                current_call().object = _counted(outcomes)
                return response_type(outcome=_outcomes_to_proto(outcomes))
            [outcome] = outcomes.jobs
            if outcome.refusal is not None:
                raise outcome.refusal
            return response_type(job=convert.job_to_proto(await get_job(connection, outcome.job_id)))

        return await self._once(project, request_id, request, response_type, work)

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: _Context) -> pb.UpdateJobResponse:  # noqa: N802 - gRPC's name
        """Changes a job's name, priority or job set."""
        del context
        request_id = identifier(request.request_id, "request_id")
        job_id = identifier(request.job.job_id, "job.job_id")
        values = _updated_values(request)
        project = (await self._visible(job_id))["project"]

        async def work(connection: AsyncConnection) -> pb.UpdateJobResponse:
            await lifecycle.update_one(connection, job_id, values, request.job.etag, self._policies)
            return pb.UpdateJobResponse(job=convert.job_to_proto(await get_job(connection, job_id)))

        return await self._once(project, request_id, request, pb.UpdateJobResponse, work)

    async def RerunJob(self, request: pb.RerunJobRequest, context: _Context) -> pb.RerunJobResponse:  # noqa: N802 - gRPC's name
        """Submits a job again, with changes."""
        del context
        original = await self._visible(identifier(request.job_id, "job_id"))
        submission = rerun.submission(request, original, current_call())
        # Bytes, which the chain sends as they are.
        return cast("pb.RerunJobResponse", await self._writer.store(submission))

    async def DiffJobs(self, request: pb.DiffJobsRequest, context: _Context) -> pb.DiffJobsResponse:  # noqa: N802 - gRPC's name
        """What differs between two jobs."""
        del context
        left = await self._visible(identifier(request.job_id, "job_id"))
        right = await self._visible(identifier(request.other_job_id, "other_job_id"))
        async with self._engine.connect() as connection:
            lineages = [await diff.lineage_of(connection, row["job_id"]) for row in (left, right)]
        found = diff.differences(left, lineages[0], right, lineages[1])
        return pb.DiffJobsResponse(differences=map(_difference_to_proto, found))

    async def ListJobs(self, request: pb.ListJobsRequest, context: _Context) -> pb.ListJobsResponse:  # noqa: N802 - gRPC's name
        """A page of jobs."""
        del context
        states = _states(request.states)
        said = filters.parse(request.filter)
        order = listing.order_of(request.order_by)
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListJobs", request.project, sorted(states), request.filter, request.order_by]
        position = self._cursors.decode(request.page_token, query, order.types, "page_token")
        wanted = listing.Query(
            projects=await self._projects(request.project),
            states=states,
            said=said,
            order=order,
            after=None if position is None else order.parsed(position),
            limit=size + 1,
            summary=request.summary,
        )
        async with self._engine.connect() as connection:
            rows = await listing.list_jobs(connection, wanted)
        page = rows[:size]
        token = self._cursors.encode(query, order.position_of(page[-1])) if len(rows) > size else ""
        to_proto = convert.summary_to_proto if request.summary else convert.job_to_proto
        return pb.ListJobsResponse(jobs=map(to_proto, page), next_page_token=token)

    async def GetJobSet(self, request: pb.GetJobSetRequest, context: _Context) -> pb.GetJobSetResponse:  # noqa: N802 - gRPC's name
        """One job set."""
        del context
        validated_value(ResourceName, request.name, "name")
        await self._projects(validated_value(ProjectName, request.project, "project"))
        async with self._engine.connect() as connection:
            row = await listing.job_set(connection, request.project, request.name)
        if row is None:
            raise listing.job_set_not_found(request.project, request.name)
        return pb.GetJobSetResponse(job_set=_job_set_to_proto(request.project, row))

    async def ListJobSets(self, request: pb.ListJobSetsRequest, context: _Context) -> pb.ListJobSetsResponse:  # noqa: N802 - gRPC's name
        """A page of job sets."""
        del context
        await self._projects(validated_value(ProjectName, request.project, "project"))
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListJobSets", request.project]
        position = self._cursors.decode(request.page_token, query, (str,), "page_token")
        async with self._engine.connect() as connection:
            rows = await listing.list_job_sets(connection, request.project, position[0] if position else "", size + 1)
        page = rows[:size]
        token = self._cursors.encode(query, [page[-1]["name"]]) if len(rows) > size else ""
        return pb.ListJobSetsResponse(job_sets=[_job_set_to_proto(request.project, row) for row in page], next_page_token=token)

    async def _once(
        self,
        project: str,
        request_id: str,
        request: Message,
        response_type: type[_M],
        work: Callable[[AsyncConnection], Awaitable[_M]],
    ) -> _M:
        return await mutations.once(self._engine, project, request_id, rerun.content_sha256(request), response_type, work)

    async def _visible(self, job_id: str) -> RowMapping:
        """The row of a job that exists for the caller, and the call's object.

        Raises:
            RefusedError: there is none, or none for them.
        """
        call = current_call()
        async with self._engine.connect() as connection:
            row = await get_job(connection, job_id)
        if not call.principal.sees(row["project"]):
            raise job_not_found(job_id)
        call.object = call.object or job_id
        call.project = call.project or row["project"]
        return row

    async def _projects(self, project: str) -> Sequence[str] | None:
        """The projects that a list is about; None: all.

        Raises:
            RefusedError: there is no such project for the caller.
        """
        principal = current_call().principal
        if not project:
            visible = principal.visible_projects()
            return None if visible is None else sorted(visible)
        validated_value(ProjectName, project, "project")
        if not principal.sees(project):
            raise project_not_found(project)
        return [project]


def _addressed(request: _Steering) -> tuple[str, Selection]:
    """The request id, and which jobs are meant.

    Raises:
        RefusedError: with the fields that break their limits.
    """
    request_id = identifier(request.request_id, "request_id")
    require_text({"reason": (request.reason, _REASON_MAX)})
    if bool(request.job_id) == request.HasField("selection"):
        raise invalid_field("job_id", "expected exactly one of job_id and selection")
    if request.job_id:
        return request_id, Selection(job_ids=(identifier(request.job_id, "job_id"),))
    selection = selection_of(request.selection)
    if selection.said is not None and not request.reason.strip():
        raise invalid_field("reason", "is missing; expected one with a filter, for the histories of all the jobs it finds")
    return request_id, selection


def _updated_values(request: pb.UpdateJobRequest) -> dict[str, Any]:
    """The new values by column.

    Raises:
        RefusedError: a path or a value that is not for clients to set, or that breaks its limits.
    """
    job, paths = request.job, list(request.update_mask.paths)
    violations: list[FieldViolation] = []
    if not 1 <= len(paths) <= len(_UPDATABLE):
        violations.append(FieldViolation("update_mask", f"has {len(paths)} paths; expected some of {', '.join(_UPDATABLE)}"))
    violations += [
        FieldViolation(f"update_mask.paths[{index}]", f"is {path[:60]!r}; expected one of {', '.join(_UPDATABLE)}")
        for index, path in enumerate(paths[:100])
        if path not in _UPDATABLE
    ]
    violations += [
        FieldViolation(f"job.{descriptor.name}", "is not in update_mask, or not for clients to set; expected to be left out")
        for descriptor, _ in job.ListFields()
        if descriptor.name not in {"job_id", "etag", *paths} or descriptor.name not in {"job_id", "etag", *_UPDATABLE}
    ]
    if "name" in paths and (fault := name_violation(job.name, "job.name")):
        violations.append(fault)
    if "priority" in paths and (fault := priority_violation(job.priority, "job.priority")):
        violations.append(fault)
    if "job_set" in paths:
        violations += job_set_violations(job.job_set, "job.job_set")
    if violations:
        raise invalid_fields(violations)
    return {path: getattr(job, path) for path in paths}


def _states(asked: Sequence[int]) -> frozenset[JobState]:
    known = {int(number): JobState(name.removeprefix("JOB_STATE_")) for name, number in job_pb2.JobState.items() if number != 0}
    if len(asked) > len(known):
        raise invalid_field("states", f"holds {len(asked):,}; expected at most {len(known)}")
    unknown = [
        FieldViolation(f"states[{index}]", f"is {value}; expected a JobState")
        for index, value in enumerate(asked)
        if value not in known
    ]
    if unknown:
        raise invalid_fields(unknown)
    return frozenset(known[value] for value in asked)


def _counted(outcomes: Outcomes) -> str:
    return f"{sum(outcome.changed for outcome in outcomes.jobs)} jobs"


def _outcomes_to_proto(outcomes: Outcomes) -> pb.SelectionOutcome:
    return pb.SelectionOutcome(
        outcomes=map(_outcome_to_proto, outcomes.jobs),
        changed_count=sum(outcome.changed for outcome in outcomes.jobs),
        more=outcomes.more,
    )


def _outcome_to_proto(outcome: Outcome) -> pb.JobOutcome:
    state = 0 if outcome.state is None else job_pb2.JobState.Value(f"JOB_STATE_{outcome.state}")
    return pb.JobOutcome(job_id=outcome.job_id, state=job_pb2.JobState.ValueType(state), status=_status(outcome))


def _status(outcome: Outcome) -> status_pb2.Status | None:
    return None if outcome.refusal is None else to_status(as_refusal(outcome.refusal))


def _job_set_to_proto(project: str, row: RowMapping) -> pb.JobSet:
    return pb.JobSet(
        project=project,
        name=row["name"],
        job_count=int(row["job_count"]),
        states=row["states"],
        create_time=timestamp(row["created_at"]),
    )


def _difference_to_proto(difference: diff.Difference) -> pb.Difference:
    return pb.Difference(
        section=pb.DiffSection.Value(f"DIFF_SECTION_{difference.section}"),
        path=difference.path,
        left=_value(difference.left),
        right=_value(difference.right),
    )


def _value(content: Any) -> Value:
    """A JSON value for the wire; of lists and objects only empty ones come."""
    value = Value()
    match content:
        case None:
            value.null_value = 0  # pyright: ignore[reportAttributeAccessIssue] - NullValue's only number
        case bool():
            value.bool_value = content
        case int() | float():
            value.number_value = content
        case list():
            value.list_value.SetInParent()
        case dict():
            value.struct_value.SetInParent()
        case _:
            value.string_value = str(content)
    return value
