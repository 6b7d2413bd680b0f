"""The one table from what the domain refuses to what the wire says (AIP-193)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry import trace
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from control_plane.errors import FieldViolation, Reason, RefusedError
from control_plane.jobs.states import IllegalTransitionError

DOMAIN = "headway"

_CODES: dict[Reason, int] = {
    Reason.INVALID_FIELD: code_pb2.INVALID_ARGUMENT,
    Reason.MALFORMED_REQUEST: code_pb2.INVALID_ARGUMENT,
    Reason.REQUEST_ID_REUSED: code_pb2.ALREADY_EXISTS,
    Reason.JOB_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.DATASET_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.BASE_MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.ILLEGAL_TRANSITION: code_pb2.FAILED_PRECONDITION,
    Reason.STALE_ATTEMPT: code_pb2.FAILED_PRECONDITION,
    Reason.LEASE_NOT_HELD: code_pb2.FAILED_PRECONDITION,
    Reason.NAME_TAKEN: code_pb2.ALREADY_EXISTS,
    Reason.OBJECT_MISSING: code_pb2.FAILED_PRECONDITION,
    Reason.CURSOR_EXPIRED: code_pb2.OUT_OF_RANGE,
    Reason.INVALID_CURSOR: code_pb2.INVALID_ARGUMENT,
    Reason.DEPENDENCY_UNAVAILABLE: code_pb2.UNAVAILABLE,
    Reason.INTERNAL: code_pb2.INTERNAL,
    Reason.SLOW_READER: code_pb2.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: code_pb2.DEADLINE_EXCEEDED,
    Reason.SEQUENCE_GAP: code_pb2.FAILED_PRECONDITION,
    Reason.RESOURCE_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.EXCEEDS_MAXIMUM: code_pb2.INVALID_ARGUMENT,
    Reason.UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: code_pb2.PERMISSION_DENIED,
    Reason.RATE_LIMITED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.TOO_MANY_CALLS: code_pb2.RESOURCE_EXHAUSTED,
    Reason.PROJECT_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.ETAG_MISMATCH: code_pb2.ABORTED,
    Reason.STILL_NEEDED: code_pb2.FAILED_PRECONDITION,
    Reason.REQUEST_TOO_LARGE: code_pb2.RESOURCE_EXHAUSTED,
    Reason.UNKNOWN_METHOD: code_pb2.UNIMPLEMENTED,
}

_QUOTAS = frozenset({Reason.RATE_LIMITED, Reason.TOO_MANY_CALLS})

# A status is sent twice over, as text and as details in base64, and peers take 8 KiB of headers in all.
_MESSAGE_CHARACTERS = 800
_VALUE_CHARACTERS = 400
_VIOLATIONS_BYTES = 3_000

_log = structlog.get_logger()


def as_refusal(error: Exception) -> RefusedError:
    """What a caller may know of `error`. What they may not know is logged in full and named by the trace id."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, IllegalTransitionError):
        return RefusedError(
            Reason.ILLEGAL_TRANSITION,
            str(error),
            {
                "state": str(error.state),
                "transition": error.transition.name,
                "allowed_from": ",".join(sorted(error.transition.sources)),
            },
        )
    if isinstance(error, asyncio.TimeoutError):
        return RefusedError(Reason.DEADLINE_EXCEEDED, "the call's deadline passed; retry with the same request id")
    if _is_database_outage(error):
        _log.warning("rpc.database_unavailable", error=str(error))
        return RefusedError(
            Reason.DEPENDENCY_UNAVAILABLE,
            "the database does not answer; retry with the same request id",
            {"component": "postgres"},
        )
    trace_id = f"{trace.get_current_span().get_span_context().trace_id:032x}"
    _log.error("rpc.internal_error", exc_info=error, trace_id=trace_id)
    return RefusedError(
        Reason.INTERNAL, f"an internal error; its trace id {trace_id} finds it in the logs", {"trace_id": trace_id}
    )


def status_code(reason: Reason) -> int:
    """The number of the gRPC status code that a reason goes with."""
    return _CODES[reason]


def code_name(reason: Reason) -> str:
    """The name of the gRPC status code that a reason goes with."""
    return code_pb2.Code.Name(code_pb2.Code.ValueType(_CODES[reason]))


def to_status(refusal: RefusedError) -> status_pb2.Status:
    """The google.rpc.Status of a refusal: one ErrorInfo, and the details that go with its reason.

    It travels in a header, of which peers take few kilobytes: what is too long is cut, and said to be.
    """
    message = _cut(refusal.message, _MESSAGE_CHARACTERS)
    metadata = {name: _cut(value, _VALUE_CHARACTERS) for name, value in refusal.metadata.items()}
    status = status_pb2.Status(code=_CODES[refusal.reason], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=str(refusal.reason), domain=DOMAIN, metadata=metadata))
    for detail in _details(refusal, message, metadata):
        status.details.add().Pack(detail)
    return status


def _details(refusal: RefusedError, message: str, metadata: Mapping[str, str]) -> Iterator[Message]:
    if refusal.violations:
        yield _bad_request(refusal.violations)
    if refusal.reason is Reason.ILLEGAL_TRANSITION:
        yield error_details_pb2.PreconditionFailure(
            violations=[
                error_details_pb2.PreconditionFailure.Violation(
                    type="STATE", subject=metadata.get("state", ""), description=message
                )
            ]
        )
    if refusal.reason in _QUOTAS:
        yield error_details_pb2.QuotaFailure(
            violations=[
                error_details_pb2.QuotaFailure.Violation(
                    subject=metadata.get("subject", ""),
                    description=message,
                    api_service=DOMAIN,
                    quota_id=metadata.get("limit", ""),
                    quota_value=int(float(metadata.get("value", "0"))),
                )
            ]
        )
    if refusal.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=refusal.retry_after_seconds))
        yield retry


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    left = _VIOLATIONS_BYTES
    for number, violation in enumerate(violations):
        path, description = _cut(violation.path, _VALUE_CHARACTERS), _cut(violation.description, _VALUE_CHARACTERS)
        left -= len(path.encode()) + len(description.encode()) + 8
        if left < 0 and number:
            detail.field_violations.add(
                field=path, description=f"and {len(violations) - number:,} more fields are at fault; mend these first"
            )
            break
        detail.field_violations.add(field=path, description=description)
    return detail


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _is_database_outage(error: Exception) -> bool:
    """Whether the database cannot be reached or broke off, as opposed to having refused a statement."""
    if isinstance(error, PoolTimeoutError | ConnectionError | OSError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, OperationalError | InterfaceError):
        return True
    # Class 57: operator intervention (shutdown, crash recovery, starting up); 53: insufficient resources such as disk full.
    state = str(getattr(getattr(error, "orig", None), "sqlstate", "") or "")
    return state[:2] in {"57", "53", "08"}
