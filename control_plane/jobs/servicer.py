"""JobService over the domain: convert, act in one transaction, convert back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypeAlias

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db import idempotency
from control_plane.db.engine import in_transaction
from control_plane.db.notifications import Notifications
from control_plane.db.tables import job_events
from control_plane.errors import FieldViolation, invalid_field, invalid_fields
from control_plane.jobs import convert, repository, watch
from control_plane.jobs.commands import SubmitJob
from control_plane.jobs.spec import ProjectName
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, validated_value
from headway.jobs.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Submit jobs and follow them."""

    def __init__(self, engine: AsyncEngine, notifications: Notifications, heartbeat_seconds: float) -> None:
        self._engine = engine
        self._notifications = notifications
        self._heartbeat_seconds = heartbeat_seconds

    async def SubmitJob(  # noqa: N802 - gRPC's name
        self, request: job_service_pb2.SubmitJobRequest, context: _Context
    ) -> job_service_pb2.SubmitJobResponse:
        """Accepts a job, once per request id."""
        del context
        command = convert.submit_command(request)

        async def preview(connection: AsyncConnection) -> job_service_pb2.SubmitJobResponse:
            return job_service_pb2.SubmitJobResponse(job=convert.job_to_proto(await _resolved_row(connection, command)))

        async def submit(connection: AsyncConnection) -> job_service_pb2.SubmitJobResponse:
            key = (command.project, command.request_id, "SubmitJob", command.sha256())
            # A repeat gets the first answer even if what the spec named is gone by now.
            stored = await idempotency.find_response(connection, *key)
            if stored is None:
                row = await _resolved_row(connection, command)
                response = job_service_pb2.SubmitJobResponse(job=convert.job_to_proto(row))
                stored = await idempotency.store_response(connection, *key, response.SerializeToString())
                if stored is None:
                    await repository.insert_job(connection, row)
                    return response
            return job_service_pb2.SubmitJobResponse.FromString(stored)

        if request.validate_only:
            response = await in_transaction(self._engine, preview)
            response.job.job_id = ""
            return response
        return await in_transaction(self._engine, submit)

    async def GetJob(  # noqa: N802 - gRPC's name
        self, request: job_service_pb2.GetJobRequest, context: _Context
    ) -> job_service_pb2.GetJobResponse:
        """One job."""
        del context
        job_id = identifier(request.job_id, "job_id")
        async with self._engine.connect() as connection:
            row = await repository.get_job(connection, job_id)
        return job_service_pb2.GetJobResponse(job=convert.job_to_proto(row))

    async def ListJobs(  # noqa: N802 - gRPC's name
        self, request: job_service_pb2.ListJobsRequest, context: _Context
    ) -> job_service_pb2.ListJobsResponse:
        """Jobs of a project, newest first."""
        del context
        validated_value(ProjectName, request.project, "project")
        job_states = _state_names(list(request.states))
        query = ["ListJobs", request.project, job_states]
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        position = pages.decode(request.page_token, query, (str, str), "page_token")
        after = None if position is None else (_moment(position[0]), identifier(position[1], "page_token"))
        async with self._engine.connect() as connection:
            rows = await repository.list_jobs(connection, request.project, job_states, after, size + 1)
        page = rows[:size]
        token = ""
        if len(rows) > size:
            token = pages.encode(query, [page[-1]["created_at"].isoformat(), page[-1]["job_id"]])
        return job_service_pb2.ListJobsResponse(jobs=map(convert.job_to_proto, page), next_page_token=token)

    async def CancelJob(  # noqa: N802 - gRPC's name
        self, request: job_service_pb2.CancelJobRequest, context: _Context
    ) -> job_service_pb2.CancelJobResponse:
        """Asks a job to stop, once per request id."""
        del context
        command = convert.cancel_command(request)

        async def cancel(connection: AsyncConnection) -> job_service_pb2.CancelJobResponse:
            # The job's lock comes first: a repeat that arrives meanwhile then finds the stored response, not a final state.
            project = (await repository.get_job(connection, command.job_id, for_update=True))["project"]
            key = (project, command.request_id, "CancelJob", command.sha256())
            stored = await idempotency.find_response(connection, *key)
            if stored is None:
                row = await repository.cancel(connection, command.job_id, command.reason)
                response = job_service_pb2.CancelJobResponse(job=convert.job_to_proto(row))
                stored = await idempotency.store_response(connection, *key, response.SerializeToString())
                if stored is None:
                    return response
            return job_service_pb2.CancelJobResponse.FromString(stored)

        return await in_transaction(self._engine, cancel)

    async def WatchEvents(  # noqa: N802 - gRPC's name
        self, request: job_service_pb2.WatchEventsRequest, context: _Context
    ) -> AsyncIterator[job_service_pb2.WatchEventsResponse]:
        """Events in commit order."""
        del context
        scope = request.WhichOneof("scope")
        if scope == "job_id":
            value = identifier(request.job_id, "job_id")
            async with self._engine.connect() as connection:
                await repository.get_job(connection, value)
            condition = job_events.c.job_id == value
        elif scope == "project":
            value = validated_value(ProjectName, request.project, "project")
            condition = job_events.c.project == value
        else:
            raise invalid_field("scope", "is missing; expected job_id or project")
        query = ["WatchEvents", scope, value]
        position = pages.decode(request.start_cursor, query, (int,), "start_cursor")
        async for batch in watch.follow(
            self._engine,
            self._notifications,
            condition,
            0 if position is None else position[0],
            one_job=scope == "job_id",
            heartbeat_seconds=self._heartbeat_seconds,
        ):
            yield job_service_pb2.WatchEventsResponse(
                events=map(convert.event_to_proto, batch.events),
                cursor=pages.encode(query, [batch.position]),
                end_of_stream=batch.last,
            )


async def _resolved_row(connection: AsyncConnection, command: SubmitJob) -> dict[str, Any]:
    spec, inputs = await repository.resolve(connection, command.project, command.spec)
    return await repository.new_job_row(connection, command, spec, inputs)


def _state_names(values: list[int]) -> list[str]:
    known = {int(number): name.removeprefix("JOB_STATE_") for name, number in job_pb2.JobState.items() if number != 0}
    unknown = [index for index, value in enumerate(values) if value not in known]
    if unknown:
        raise invalid_fields(
            [FieldViolation(f"states[{index}]", f"is {values[index]}; expected a JobState") for index in unknown]
        )
    return sorted({known[value] for value in values})


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise invalid_field("page_token", "was not made by this server for this query") from None
