"""Jobs between the wire, the domain and the database."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from control_plane.errors import FieldViolation, invalid_fields
from control_plane.jobs.commands import JOB_NAME_MAX, PRIORITY_DEFAULT, CancelJob, SubmitJob
from control_plane.jobs.spec import FineTuneSpec, JobSpec, ProjectName
from control_plane.rpc import convert
from headway.jobs.v1 import job_event_pb2, job_pb2, job_service_pb2, job_spec_pb2
from headway_client import telemetry


def submit_command(request: job_service_pb2.SubmitJobRequest) -> SubmitJob:
    """The command a request asks for.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    request_id = convert.identifier(request.request_id, "request_id")
    convert.validated_value(ProjectName, request.project, "project")
    spec = spec_from_proto(request.spec)
    name = request.name or f"{spec.type} {spec.output_model}"
    priority = request.priority if request.HasField("priority") else PRIORITY_DEFAULT
    violations: list[FieldViolation] = []
    if not 1 <= len(name) <= JOB_NAME_MAX or not _printable(name):
        violations.append(FieldViolation("name", f"expected 1 to {JOB_NAME_MAX} printable characters"))
    if not 0 <= priority <= 1_000:
        violations.append(FieldViolation("priority", f"is {priority}; expected 0 to 1,000"))
    if violations:
        raise invalid_fields(violations)
    return SubmitJob(
        request_id=request_id,
        project=request.project,
        name=name,
        spec=spec,
        priority=priority,
        trace_parent=telemetry.traceparent(),
    )


def cancel_command(request: job_service_pb2.CancelJobRequest) -> CancelJob:
    """The command a request asks for.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    if len(request.reason) > 500 or "\x00" in request.reason:
        raise invalid_fields([FieldViolation("reason", "expected at most 500 characters, without NUL")])
    return CancelJob(
        request_id=convert.identifier(request.request_id, "request_id"),
        job_id=convert.identifier(request.job_id, "job_id"),
        reason=request.reason,
    )


def spec_from_proto(message: job_spec_pb2.JobSpec) -> JobSpec:
    """The spec on the wire, held against its limits.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    kind = message.WhichOneof("type")
    if kind is None:
        raise invalid_fields([FieldViolation("spec", "has no type; expected fine_tune to be set")])
    return convert.validated(FineTuneSpec, convert.to_fields(message.fine_tune), f"spec.{kind}")


def spec_to_proto(spec: JobSpec) -> job_spec_pb2.JobSpec:
    """The spec for the wire."""
    message = job_spec_pb2.JobSpec()
    message.fine_tune.SetInParent()
    convert.fill(message.fine_tune, spec)
    return message


def job_to_proto(row: Mapping[Any, Any]) -> job_pb2.Job:
    """A row of `jobs` for the wire."""
    job = job_pb2.Job(
        job_id=row["job_id"],
        project=row["project"],
        name=row["name"],
        spec=spec_to_proto(stored_spec(row["spec"])),
        spec_sha256=row["spec_sha256"],
        priority=row["priority"],
        state=job_pb2.JobState.Value(f"JOB_STATE_{row['state']}"),
        waiting_reason=row["waiting_reason"],
        attempt=row["attempt"],
        result=convert.struct(row["result"]),
        accelerator_seconds={kind: ms / 1_000 for kind, ms in row["accelerator_ms"].items()},
        trace_id=telemetry.trace_id_of(row["trace_parent"]),
        create_time=convert.timestamp(row["created_at"]),
        update_time=convert.timestamp(row["updated_at"]),
        end_time=convert.timestamp(row["ended_at"]),
        etag=str(row["version"]),
        checkpoint_step=row["checkpoint_step"],
    )
    if row["phase"] is not None:
        job.phase = job_pb2.JobPhase.Value(f"JOB_PHASE_{row['phase']}")
    if row["failure"] is not None:
        job.failure.CopyFrom(failure_to_proto(row["failure"]))
    return job


def stored_spec(content: Mapping[str, Any]) -> JobSpec:
    """The spec in a row of `jobs`. JSON has one kind of number, so 1 may stand for 1.0 there."""
    return FineTuneSpec.model_validate(content, strict=False)


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


def event_to_proto(row: Mapping[Any, Any]) -> job_event_pb2.JobEvent:
    """A row of `job_events` for the wire."""
    event = job_event_pb2.JobEvent(
        job_id=row["job_id"],
        project=row["project"],
        sequence=row["sequence"],
        type=job_event_pb2.JobEventType.Value(f"JOB_EVENT_TYPE_{row['type']}"),
        state=job_pb2.JobState.Value(f"JOB_STATE_{row['state']}"),
        attempt=row["attempt"],
        detail=convert.struct(row["detail"]),
        time=convert.timestamp(row["created_at"]),
    )
    if row["phase"] is not None:
        event.phase = job_pb2.JobPhase.Value(f"JOB_PHASE_{row['phase']}")
    return event


def _printable(text: str) -> bool:
    # Category C: controls, format characters such as the right-to-left override, surrogates, private use.
    return all(unicodedata.category(character)[0] != "C" for character in text)
