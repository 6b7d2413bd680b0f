"""SubmitJob, BatchSubmitJobs and GetJob: in, and looked at."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.budgets.estimates import job_costs
from control_plane.call import current_call
from control_plane.jobs import convert, preview, repository, submit_requests
from control_plane.jobs.group_writer import GroupWriter
from control_plane.rpc.convert import identifier
from headway.jobs.v1 import job_service_pb2 as pb
from headway.jobs.v1 import job_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class JobSubmit(job_service_pb2_grpc.JobServiceServicer):
    """The RPCs that bring jobs in."""

    def __init__(self, engine: AsyncEngine, writer: GroupWriter, currency: str) -> None:
        self._engine = engine
        self._writer = writer
        self._currency = currency

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: _Context) -> pb.SubmitJobResponse:  # noqa: N802 - gRPC's name
        """Accepts a job, once per request id."""
        del context
        submission = submit_requests.single(request, current_call())
        stored = await self._writer.store(submission)
        if not request.validate_only:
            # Bytes, which the chain sends as they are: a repeat gets the first answer to the last bit.
            return cast("pb.SubmitJobResponse", stored)
        response = pb.SubmitJobResponse.FromString(stored)
        spec = submit_requests.resolved_spec(submission)
        response.plan.CopyFrom(await preview.plan(self._engine, request.project, spec, self._currency))
        return response

    async def BatchSubmitJobs(  # noqa: N802 - gRPC's name
        self, request: pb.BatchSubmitJobsRequest, context: _Context
    ) -> pb.BatchSubmitJobsResponse:
        """Accepts many jobs, once per request id."""
        del context
        stored = await self._writer.store(submit_requests.batch(request, current_call()))
        return cast("pb.BatchSubmitJobsResponse", stored)

    async def GetJob(self, request: pb.GetJobRequest, context: _Context) -> pb.GetJobResponse:  # noqa: N802 - gRPC's name
        """One job."""
        del context
        job_id = identifier(request.job_id, "job_id")
        async with self._engine.connect() as connection:
            row = await repository.get_job(connection, job_id)
            # What was never admitted cost nothing.
            costs = await job_costs(connection, [job_id]) if row["admitted_at"] is not None else []
        return pb.GetJobResponse(job=convert.job_to_proto(row), cost=convert.cost_to_proto(costs[0]) if costs else None)
