"""What a call to Headway can fail with, as one exception with everything the server said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One fault of one field of a request."""

    field: str
    """Path of the field, such as "spec.fine_tune.training.steps"."""
    description: str
    """What was found, what was expected."""


class HeadwayError(Exception):
    """A call that was refused or did not reach the server."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        """The gRPC status code."""
        self.message = message
        """One sentence for people."""
        self.reason = reason
        """A name of headway.errors.v1.ErrorReason without prefix; empty when the answer is not from Headway itself."""
        self.metadata: Mapping[str, str] = metadata or {}
        """What varies in the message, under the keys that the reason documents."""
        self.violations = tuple(violations)
        """Every field at fault."""

    def __str__(self) -> str:
        lines = [f"{self.message} [{self.reason or self.code.name}]"]
        lines += [f"  {violation.field}: {violation.description}" for violation in self.violations]
        return "\n".join(lines)


def from_rpc_error(error: grpc.RpcError, address: str) -> HeadwayError:
    """The error with its google.rpc details; one without them when there are none or they cannot be read.

    Args:
        error: what a sync or an aio call raised.
        address: whom the call was for; named when nobody answered.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return HeadwayError(grpc.StatusCode.UNKNOWN, f"the call to {address} failed: {error}")
    code, details = error.code(), error.details() or ""
    try:
        answer = _answer_of(error)
    except DecodeError:
        answer = None
    if answer is None:
        return HeadwayError(code, _transport_message(code, details, address))
    status, info, violations = answer
    return HeadwayError(
        code, status.message or details, reason=info.reason, metadata=dict(info.metadata), violations=violations
    )


def _answer_of(
    error: grpc.Call | grpc.aio.AioRpcError,
) -> tuple[status_pb2.Status, error_details_pb2.ErrorInfo, list[FieldViolation]] | None:
    content = next((bytes(value) for key, value in _metadata_of(error) if key == _DETAILS_KEY), None)
    if content is None:
        return None
    status = status_pb2.Status.FromString(content)
    info = error_details_pb2.ErrorInfo()
    violations: list[FieldViolation] = []
    for detail in status.details:
        if detail.TypeName() == "google.rpc.ErrorInfo":
            detail.Unpack(info)
        elif detail.TypeName() == "google.rpc.BadRequest":
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            violations += [FieldViolation(fault.field, fault.description) for fault in bad_request.field_violations]
    return status, info, violations


def _metadata_of(error: grpc.Call | grpc.aio.AioRpcError) -> Iterable[tuple[str, bytes]]:
    for key, value in error.trailing_metadata() or ():
        if isinstance(value, bytes):
            yield key, value


def _transport_message(code: grpc.StatusCode, details: str, address: str) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the control plane at {address} does not answer ({details})"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the control plane at {address} did not answer in time"
    return details or f"the call failed with {code.name}"
