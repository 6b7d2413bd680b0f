"""What the domain refuses, and why. Transport turns these into statuses (`rpc/status.py`); nothing here knows gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why a call was refused; the names are those of headway.errors.v1.ErrorReason without prefix."""

    INVALID_FIELD = "INVALID_FIELD"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    DATASET_NOT_FOUND = "DATASET_NOT_FOUND"
    BASE_MODEL_NOT_FOUND = "BASE_MODEL_NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    ILLEGAL_TRANSITION = "ILLEGAL_TRANSITION"
    STALE_ATTEMPT = "STALE_ATTEMPT"
    LEASE_NOT_HELD = "LEASE_NOT_HELD"
    NAME_TAKEN = "NAME_TAKEN"
    OBJECT_MISSING = "OBJECT_MISSING"
    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    INVALID_CURSOR = "INVALID_CURSOR"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    INTERNAL = "INTERNAL"
    SLOW_READER = "SLOW_READER"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    EXCEEDS_MAXIMUM = "EXCEEDS_MAXIMUM"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RATE_LIMITED = "RATE_LIMITED"
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    PROJECT_NOT_FOUND = "PROJECT_NOT_FOUND"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    STILL_NEEDED = "STILL_NEEDED"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    UNKNOWN_METHOD = "UNKNOWN_METHOD"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field at fault: its path in the request and what was expected."""

    path: str
    description: str


@dataclass(slots=True)
class RefusedError(Exception):
    """A call that is refused for a reason its caller can act on.

    Attributes:
        reason: the contract's reason.
        message: one sentence: what was wrong, where, what was expected, what to do.
        metadata: what varies in the message, so that nobody parses prose.
        violations: the fields at fault, for INVALID_FIELD.
        retry_after_seconds: when trying again may help; None: nobody knows.
    """

    reason: Reason
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    violations: Sequence[FieldViolation] = ()
    retry_after_seconds: float | None = None

    def __str__(self) -> str:
        return self.message


def invalid_fields(violations: Sequence[FieldViolation]) -> RefusedError:
    """The refusal of a request whose fields break their limits; every violation is named."""
    listed = "; ".join(f"{violation.path}: {violation.description}" for violation in violations)
    return RefusedError(Reason.INVALID_FIELD, f"the request is not valid: {listed}", violations=tuple(violations))


def invalid_field(path: str, description: str) -> RefusedError:
    """As `invalid_fields`, for one field."""
    return invalid_fields([FieldViolation(path, description)])
