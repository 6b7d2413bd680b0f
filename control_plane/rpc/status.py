"""The one table from what the domain refuses to what the wire says (AIP-193)."""

from __future__ import annotations

import asyncio

import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry import trace
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from control_plane.errors import Reason, RefusedError
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
}

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


def to_status(refusal: RefusedError) -> status_pb2.Status:
    """The google.rpc.Status of a refusal: one ErrorInfo, and the details that go with its reason."""
    info = error_details_pb2.ErrorInfo(reason=str(refusal.reason), domain=DOMAIN, metadata=dict(refusal.metadata))
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.PreconditionFailure] = [info]
    if refusal.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=violation.path, description=violation.description)
                    for violation in refusal.violations
                ]
            )
        )
    if refusal.reason is Reason.ILLEGAL_TRANSITION:
        details.append(
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type="STATE", subject=refusal.metadata["state"], description=refusal.message
                    )
                ]
            )
        )
    status = status_pb2.Status(code=_CODES[refusal.reason], message=refusal.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


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
