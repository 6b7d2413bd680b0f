"""Running a job again: its resolved spec, with the changes that a mask names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from control_plane.call import Call
from control_plane.db.mutations import request_key
from control_plane.errors import FieldViolation, RefusedError, invalid_fields
from control_plane.jobs import convert
from control_plane.jobs.spec import JobSpec
from control_plane.jobs.spec_wire import forget_chosen, spec_from_proto, spec_to_proto
from control_plane.jobs.submission import NewJob, Outcome, Submission
from control_plane.jobs.submit_requests import job_set_violations, name_violation, priority_violation
from control_plane.rpc.convert import identifier
from headway.jobs.v1 import job_service_pb2 as pb
from headway.jobs.v1 import job_spec_pb2
from headway_client import telemetry

PATHS_MAX = 100

_PIN_OF: Mapping[str, str] = {"name": "sha256", "model": "version", "alias": "version"}
"""What pins a reference, by the field that makes it another reference."""


def submission(request: pb.RerunJobRequest, original: Mapping[Any, Any], call: Call) -> Submission:
    """The submission that a RerunJob asks for.

    Args:
        request: the request.
        original: the row of the job to run again.
        call: who asks.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    violations = [*job_set_violations(request.job_set, "job_set")]
    request_id = identifier(request.request_id, "request_id")
    if request.name and (fault := name_violation(request.name, "name")):
        violations.append(fault)
    priority = request.priority if request.HasField("priority") else int(original["priority"])
    if fault := priority_violation(priority, "priority"):
        violations.append(fault)
    if violations:
        raise invalid_fields(violations)
    spec = changed_spec(spec_to_proto(original["spec"]), request.spec, list(request.spec_mask.paths))
    job = NewJob(request.name or original["name"], spec, priority)
    rerun = Submission(
        call=call,
        key=request_key(call, original["project"], request_id, content_sha256(request)),
        project=original["project"],
        jobs=[job],
        respond=lambda _: b"",
        job_set=request.job_set or original["job_set"],
        trace_parent=telemetry.traceparent(),
        rerun_of=original["job_id"],
    )

    def respond(outcomes: list[Outcome]) -> bytes:
        [outcome] = outcomes
        if isinstance(outcome, RefusedError):
            raise outcome
        return pb.RerunJobResponse(job=convert.stored_to_proto(rerun, outcome)).SerializeToString()

    rerun.respond = lambda outcomes: respond(list(outcomes))
    return rerun


def content_sha256(request: Message) -> str:
    """Identifies what a request asks for: all of it but its id, in hex."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()


def changed_spec(spec: job_spec_pb2.JobSpec, changes: job_spec_pb2.JobSpec, paths: list[str]) -> JobSpec:
    """A spec with changes, held against its limits. A path without a new value goes back to its default.

    Args:
        spec: the resolved spec; it is changed.
        changes: the new values.
        paths: which fields change, below the spec.

    Raises:
        RefusedError: a path is none of the spec's type, a value is not covered by a path, or the new spec breaks its limits.
    """
    if len(paths) > PATHS_MAX:
        raise invalid_fields([FieldViolation("spec_mask", f"has {len(paths)} paths; expected at most {PATHS_MAX}")])
    kind = str(spec.WhichOneof("type"))
    violations = [
        FieldViolation(f"spec_mask.paths[{index}]", fault)
        for index, path in enumerate(paths)
        if (fault := _fault(spec.DESCRIPTOR, path, kind))
    ]
    if not violations:
        rest = job_spec_pb2.JobSpec()
        rest.CopyFrom(changes)
        for path in paths:
            _clear(rest, path.split("."))
        violations = [
            FieldViolation(f"spec.{leaf}", "has a value and is not in spec_mask; expected it to be named there, or left out")
            for leaf in _leaves(rest)
        ]
    if violations:
        raise invalid_fields(violations)
    if paths:
        # What the platform chose for the old spec need not be what it chooses for the new one.
        forget_chosen(spec)
    for path in paths:
        _change(spec, changes, path.split("."), set(paths))
    return spec_from_proto(spec)


def _fault(descriptor: Descriptor, path: str, kind: str) -> str:
    """What is wrong with a path of the mask; empty if nothing is."""
    names = path.split(".") if len(path) <= 200 else []
    if names[:1] != [kind] or len(names) < 2:
        shown = path if len(path) <= 60 else path[:57] + "..."
        return f"is {shown!r}; expected a path of the job's type, such as {kind}.resources.max_run_seconds"
    for depth, name in enumerate(names):
        field = descriptor.fields_by_name.get(name)
        here = ".".join(names[: depth + 1])
        if field is None:
            return f"{here} is no field of the spec; expected one of {', '.join(sorted(descriptor.fields_by_name))}"
        if depth == len(names) - 1:
            return ""
        if field.message_type is None or field.is_repeated:
            return f"{here} has no fields of its own; expected the path to end there"
        descriptor = field.message_type
    return ""


def _clear(message: Message, names: list[str]) -> None:
    *above, last = names
    for name in above:
        if not message.HasField(name):
            return
        message = getattr(message, name)
    message.ClearField(last)


def _change(spec: Message, changes: Message, names: list[str], paths: set[str]) -> None:
    """Copies the value at a path, or clears it if there is none."""
    *above, last = names
    source: Message | None = changes
    for name in above:
        spec = getattr(spec, name)
        source = getattr(source, name) if source is not None and source.HasField(name) else None
    field = spec.DESCRIPTOR.fields_by_name[last]
    spec.ClearField(last)
    if source is not None and any(found is field for found, _ in source.ListFields()):
        _copy(last, spec, source)
    pin = _PIN_OF.get(last)
    if pin is not None and pin in spec.DESCRIPTOR.fields_by_name and ".".join([*above, pin]) not in paths:
        # Another reference means what it means now.
        spec.ClearField(pin)


def _copy(name: str, target: Message, source: Message) -> None:
    field, value = source.DESCRIPTOR.fields_by_name[name], getattr(source, name)
    if field.is_repeated or field.message_type is not None:
        getattr(target, name).MergeFrom(value)
    else:
        setattr(target, name, value)


def _leaves(message: Message, above: str = "") -> Iterator[str]:
    """The paths of what is set in a message."""
    for field, value in message.ListFields():
        if field.message_type is not None and not field.is_repeated:
            yield from _leaves(value, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}"
