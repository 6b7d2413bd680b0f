"""Requests that submit, as submissions; and what is answered to them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence

from google.protobuf.message import Message

from control_plane.call import Call
from control_plane.db.mutations import request_key
from control_plane.errors import FieldViolation, RefusedError, invalid_fields
from control_plane.jobs import convert
from control_plane.jobs.commands import JOB_NAME_MAX, PRIORITY_DEFAULT
from control_plane.jobs.spec import JobSpec, ProjectName, ResourceName, default_name, stored_spec
from control_plane.jobs.spec_wire import spec_from_proto
from control_plane.jobs.submission import NewJob, Outcome, StoredJob, Submission
from control_plane.jobs.workflows import waiting_without_workflow
from control_plane.rpc.convert import identifier, validated_value
from control_plane.rpc.status import to_status
from headway.jobs.v1 import job_service_pb2 as pb
from headway.jobs.v1 import job_spec_pb2
from headway_client import telemetry

ITEMS_MAX = 1_000
"""Most jobs in a batch."""
PRIORITY_MAX = 1_000


def single(request: pb.SubmitJobRequest, call: Call) -> Submission:
    """The submission that a SubmitJob asks for.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    violations = [*_headers(request.request_id, request.project, request.job_set)]
    priority = request.priority if request.HasField("priority") else None
    job = _new_job(request.name, request.spec, priority, "", violations)
    if job is None or violations:
        raise invalid_fields(violations)
    submission = Submission(
        call=call,
        key=None,
        project=request.project,
        jobs=[job],
        respond=lambda outcomes: b"",
        job_set=request.job_set,
        trace_parent=telemetry.traceparent(),
    )
    if request.validate_only:
        submission.respond = lambda outcomes: _preview(submission, outcomes).SerializeToString()
        return submission
    submission.key = request_key(call, request.project, request.request_id.lower(), _sha256(request.job_set, [job], ""))
    submission.respond = lambda outcomes: _accepted(submission, outcomes).SerializeToString()
    return submission


def batch(request: pb.BatchSubmitJobsRequest, call: Call) -> Submission:
    """The submission that a BatchSubmitJobs asks for.

    Raises:
        RefusedError: with every field that breaks its limits; those of single items only if the batch is atomic.
    """
    violations = [*_headers(request.request_id, request.project, request.job_set)]
    if not 1 <= len(request.items) <= ITEMS_MAX:
        violations.append(FieldViolation("items", f"holds {len(request.items)}; expected 1 to {ITEMS_MAX:,}"))
        raise invalid_fields(violations)
    jobs: list[NewJob | RefusedError] = []
    for index, item in enumerate(request.items):
        faults: list[FieldViolation] = []
        priority = item.priority if item.HasField("priority") else None
        job = _new_job(item.name, item.spec, priority, f"items[{index}].", faults)
        jobs.append(invalid_fields(faults) if job is None or faults else job)
        if not request.partial_success:
            violations += faults
    if violations:
        raise invalid_fields(violations)
    content = _sha256(request.job_set, jobs, "partial" if request.partial_success else "atomic")
    return Submission(
        call=call,
        key=request_key(call, request.project, request.request_id.lower(), content),
        project=request.project,
        jobs=jobs,
        respond=lambda outcomes: _batch_response(outcomes).SerializeToString(),
        job_set=request.job_set,
        trace_parent=telemetry.traceparent(),
        atomic=not request.partial_success,
    )


def resolved_spec(submission: Submission) -> JobSpec:
    """The spec of a single submission that was accepted, as it would be stored."""
    return stored_spec(json.loads(_stored(submission.outcomes[0]).spec_json))


def name_violation(name: str, path: str) -> FieldViolation | None:
    """What is wrong with a job's name, if anything is."""
    if 1 <= len(name) <= JOB_NAME_MAX and ((name.isascii() and name.isprintable()) or _printable(name)):
        return None
    return FieldViolation(path, f"expected 1 to {JOB_NAME_MAX} printable characters")


def priority_violation(priority: int, path: str) -> FieldViolation | None:
    """What is wrong with a priority, if anything is."""
    if 0 <= priority <= PRIORITY_MAX:
        return None
    return FieldViolation(path, f"is {priority}; expected 0 to {PRIORITY_MAX:,}")


def job_set_violations(job_set: str, path: str) -> Sequence[FieldViolation]:
    """What is wrong with a job set's name; nothing with none."""
    if not job_set:
        return ()
    try:
        validated_value(ResourceName, job_set, path)
    except RefusedError as error:
        return error.violations
    return ()


def _new_job(
    name: str, spec: job_spec_pb2.JobSpec, priority: int | None, path: str, violations: list[FieldViolation]
) -> NewJob | None:
    """One job asked for; None if its spec breaks its limits. What is wrong is added to `violations`."""
    if name and (fault := name_violation(name, f"{path}name")):
        violations.append(fault)
    if priority is not None and (fault := priority_violation(priority, f"{path}priority")):
        violations.append(fault)
    try:
        checked = spec_from_proto(spec, f"{path}spec")
    except RefusedError as error:
        violations += error.violations
        return None
    return NewJob(name or default_name(checked), checked, priority, path)


def _headers(request_id: str, project: str, job_set: str) -> Sequence[FieldViolation]:
    violations: list[FieldViolation] = []
    for check in (
        lambda: identifier(request_id, "request_id"),
        lambda: validated_value(ProjectName, project, "project"),
    ):
        try:
            check()
        except RefusedError as error:
            violations += error.violations
    return [*violations, *job_set_violations(job_set, "job_set")]


def _sha256(job_set: str, jobs: Sequence[NewJob | RefusedError], mode: str) -> str:
    """Identifies what is asked for: defaults spelled out or left out make no difference."""
    digest = hashlib.sha256(f"{mode}\n{job_set}\n".encode())
    for job in jobs:
        if isinstance(job, NewJob):
            digest.update(f"{PRIORITY_DEFAULT if job.priority is None else job.priority}\n{job.name}\n".encode())
            digest.update(job.content)
        else:
            digest.update(str(job).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _accepted(submission: Submission, outcomes: Sequence[Outcome]) -> pb.SubmitJobResponse:
    job = _stored(outcomes[0])
    return pb.SubmitJobResponse(job=convert.stored_to_proto(submission, job), warnings=_warnings(job.type))


def _preview(submission: Submission, outcomes: Sequence[Outcome]) -> pb.SubmitJobResponse:
    response = _accepted(submission, outcomes)
    response.job.job_id = ""
    return response


def _stored(outcome: Outcome) -> StoredJob:
    if isinstance(outcome, RefusedError):  # an atomic submission answers only if nothing was refused
        raise outcome
    return outcome


def _warnings(job_type: str) -> list[str]:
    warning = waiting_without_workflow(job_type)
    return [warning] if warning else []


def _batch_response(outcomes: Sequence[Outcome]) -> Message:
    results = [
        pb.BatchResult(status=to_status(outcome))
        if isinstance(outcome, RefusedError)
        else pb.BatchResult(job_id=str(outcome.job_id), spec_sha256=outcome.spec_sha256)
        for outcome in outcomes
    ]
    accepted = sum(isinstance(outcome, StoredJob) for outcome in outcomes)
    return pb.BatchSubmitJobsResponse(results=results, accepted_count=accepted)


def _printable(text: str) -> bool:
    # Category C: controls, format characters such as the right-to-left override, surrogates, private use.
    return all(unicodedata.category(character)[0] != "C" for character in text)
