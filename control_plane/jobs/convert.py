"""Jobs between the wire, the domain and the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from control_plane.budgets.estimates import JobCost
from control_plane.jobs.spec_wire import spec_to_proto
from control_plane.jobs.submission import StoredJob, Submission
from control_plane.jobs.workflows import waiting_without_workflow
from control_plane.rpc import convert
from governance.estimates import Range
from headway.jobs.v1 import job_pb2, job_service_pb2, plan_pb2
from headway_client import telemetry


def job_to_proto(row: Mapping[Any, Any]) -> job_pb2.Job:
    """A row of `jobs` for the wire."""
    job = summary_to_proto(row)
    job.spec.CopyFrom(spec_to_proto(row["spec"]))
    job.result.CopyFrom(convert.struct(row["result"]))
    return job


def summary_to_proto(row: Mapping[Any, Any]) -> job_pb2.Job:
    """A row of `jobs` for a list that people look at, which needs neither spec nor result."""
    job = job_pb2.Job(
        job_id=row["job_id"],
        project=row["project"],
        name=row["name"],
        spec_sha256=row["spec_sha256"],
        priority=row["priority"],
        state=job_pb2.JobState.Value(f"JOB_STATE_{row['state']}"),
        waiting_reason=row["waiting_reason"],
        attempt=row["attempt"],
        accelerator_seconds={kind: ms / 1_000 for kind, ms in row["accelerator_ms"].items()},
        trace_id=telemetry.trace_id_of(row["trace_parent"]),
        create_time=convert.timestamp(row["created_at"]),
        update_time=convert.timestamp(row["updated_at"]),
        end_time=convert.timestamp(row["ended_at"]),
        etag=str(row["version"]),
        checkpoint_step=row["checkpoint_step"],
        submitter=row["submitter"],
        job_set=row["job_set"],
        rerun_of=row["rerun_of"] or "",
    )
    if row["phase"] is not None:
        job.phase = job_pb2.JobPhase.Value(f"JOB_PHASE_{row['phase']}")
    if row["failure"] is not None:
        job.failure.CopyFrom(failure_to_proto(row["failure"]))
    return job


def stored_to_proto(submission: Submission, stored: StoredJob) -> job_pb2.Job:
    """A job that is being stored, as it will be read."""
    created = convert.timestamp(stored.created_at)
    return job_pb2.Job(
        job_id=str(stored.job_id),
        project=submission.project,
        name=stored.name,
        spec=spec_to_proto(from_json(stored.spec_json)),
        spec_sha256=stored.spec_sha256,
        priority=stored.priority,
        state=job_pb2.JOB_STATE_QUEUED,
        waiting_reason=waiting_without_workflow(stored.type),
        result=convert.struct({}),
        trace_id=telemetry.trace_id_of(submission.trace_parent),
        create_time=created,
        update_time=created,
        etag="1",
        submitter=submission.call.principal.subject,
        job_set=submission.job_set,
        rerun_of=submission.rerun_of or "",
    )


def failure_to_proto(failure: Mapping[str, Any]) -> job_pb2.Failure:
    """A stored failure for the wire."""
    return job_pb2.Failure(
        kind=job_pb2.FailureKind.Value(f"FAILURE_KIND_{failure['kind']}"),
        message=failure["message"],
        violations=[job_pb2.Violation(**violation) for violation in failure["violations"]],
        violation_count=failure["violation_count"],
    )


def failure_from_proto(failure: job_pb2.Failure) -> dict[str, Any]:
    """A failure as it is stored."""
    return {
        "kind": job_pb2.FailureKind.Name(failure.kind).removeprefix("FAILURE_KIND_"),
        "message": failure.message,
        "violations": [
            {"path": fault.path, "line": fault.line, "code": fault.code, "message": fault.message}
            for fault in failure.violations
        ],
        "violation_count": failure.violation_count,
    }


def cost_to_proto(cost: JobCost) -> job_service_pb2.JobCost:
    """What a job was foretold to cost and did cost, as a message."""
    return job_service_pb2.JobCost(
        estimated_held_ms=_interval(cost.held_ms),
        estimated_micros=_interval(cost.micros),
        held_ms=cost.used_ms,
        charged_micros=cost.charged_micros,
        reserved_micros=cost.reserved_micros,
        open_leases=cost.open_reservations,
        held_variance_ms=None if cost.held_variance is None else cost.held_variance.difference,
        variance_micros=None if cost.money_variance is None else cost.money_variance.difference,
    )


def _interval(estimate: Range | None) -> plan_pb2.Interval | None:
    return None if estimate is None else plan_pb2.Interval(low=estimate.low, high=estimate.high)
