"""What a call to Headway can fail with, as one exception with everything the server said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_TOO_LARGE = re.compile(r"(SERVER|CLIENT): Received message larger than max \((\d+) vs\. (\d+)\)")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One fault of one field of a request."""

    field: str
    """Path of the field, such as "spec.fine_tune.training.steps"."""
    description: str
    """What was found, what was expected."""


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """A limit that the call ran into."""

    subject: str
    """Whom the limit is for."""
    description: str
    """The limit, and what there is of it."""


@dataclass(frozen=True, slots=True)
class Precondition:
    """What would have to be otherwise."""

    type: str
    """The kind of condition, such as "STATE"."""
    subject: str
    """What it is a condition of."""
    description: str
    """How it is, and how it would have to be."""


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
        retry_after_seconds: float | None = None,
        quotas: Iterable[QuotaViolation] = (),
        preconditions: Iterable[Precondition] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        """The gRPC status code."""
        self.message = message
        """One sentence for people."""
        self.reason = reason
        """A name of headway.errors.v1.ErrorReason without prefix; empty when it is not one of Headway's own refusals."""
        self.metadata: Mapping[str, str] = metadata or {}
        """What varies in the message, under the keys that the reason documents."""
        self.violations = tuple(violations)
        """Every field at fault."""
        self.retry_after_seconds = retry_after_seconds
        """When trying again may help, if the server knows."""
        self.quotas = tuple(quotas)
        """The limits that were reached."""
        self.preconditions = tuple(preconditions)
        """What would have to be otherwise."""

    @property
    def faults(self) -> tuple[str, list[str]]:
        """A sentence, and a line for each fault that the sentence does not name: together everything once."""
        lines = [f"{violation.field}: {violation.description}" for violation in self.violations]
        # What Headway says of a limit or a state is the sentence itself.
        others = [*self.quotas, *self.preconditions]
        lines += [f"{other.subject}: {other.description}" for other in others if other.description != self.message]
        # Headway's sentence lists several faults, for those who see nothing else; a long one is cut.
        start = self.message.find(f": {lines[0]}; ") if len(lines) > 1 else -1
        if start >= 0 and f": {'; '.join(lines)}".startswith(self.message[start:].removesuffix("...")):
            return self.message[:start], lines
        return self.message, [line for line in lines if line not in self.message]

    def __str__(self) -> str:
        sentence, lines = self.faults
        return "\n".join([f"{sentence} [{self.reason or self.code.name}]", *(f"  {line}" for line in lines)])


class ArgumentError(HeadwayError, ValueError):
    """An argument that no request can carry. Nothing was sent."""

    def __init__(self, argument: str, description: str) -> None:
        """Args:
        argument: its name.
        description: what was found, what was expected.
        """
        violation = FieldViolation(argument, description)
        super().__init__(grpc.StatusCode.INVALID_ARGUMENT, f"{argument}: {description}", violations=[violation])


def client_closed(address: str) -> HeadwayError:
    """The error of a call by a client that was closed."""
    return HeadwayError(grpc.StatusCode.CANCELLED, f"the client for {address} is closed; make another one for further calls")


def call_ended(address: str) -> HeadwayError:
    """The error of a call that was ended before its answer, but not by its caller."""
    return HeadwayError(
        grpc.StatusCode.CANCELLED, f"the call to {address} was ended, by the control plane or by closing the client"
    )


def from_rpc_error(error: grpc.RpcError, address: str) -> HeadwayError:
    """The error with its google.rpc details; one without them when there are none or they cannot be read.

    Args:
        error: what a sync or an aio call raised.
        address: whom the call was for; named when nobody answered.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return HeadwayError(grpc.StatusCode.UNKNOWN, f"the call to {address} failed: {error}")
    code, details = error.code(), error.details() or ""
    content = next((bytes(value) for key, value in _metadata_of(error) if key == _DETAILS_KEY), None)
    if content is None:
        return _from_transport(code, details, address)
    try:
        status = status_pb2.Status.FromString(content)
        return _from_status(code, status, details)
    except DecodeError:
        return _from_transport(code, details, address)


def from_status(status: status_pb2.Status) -> HeadwayError:
    """The error that a google.rpc.Status inside an answer tells of: one item of a batch, one job of a selection."""
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    return _from_status(code, status, "")


def _from_status(code: grpc.StatusCode, status: status_pb2.Status, details: str) -> HeadwayError:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    failure = error_details_pb2.PreconditionFailure()
    known: dict[str, Message] = {kind.DESCRIPTOR.full_name: kind for kind in (info, bad, retry, quota, failure)}
    for detail in status.details:
        if (message := known.get(detail.TypeName())) is not None:
            detail.Unpack(message)
    return HeadwayError(
        code,
        status.message or details,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=[FieldViolation(fault.field, fault.description) for fault in bad.field_violations],
        retry_after_seconds=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        quotas=[QuotaViolation(fault.subject, fault.description) for fault in quota.violations],
        preconditions=[Precondition(fault.type, fault.subject, fault.description) for fault in failure.violations],
    )


def _metadata_of(error: grpc.Call | grpc.aio.AioRpcError) -> Iterable[tuple[str, bytes]]:
    for key, value in error.trailing_metadata() or ():
        if isinstance(value, bytes):
            yield key, value


def _from_transport(code: grpc.StatusCode, details: str, address: str) -> HeadwayError:
    """What gRPC says by itself, in Headway's words."""
    if (found := _TOO_LARGE.search(details)) is not None:
        return _too_large(code, int(found[2]), int(found[3]), sent=found[1] == "SERVER")
    if code is grpc.StatusCode.UNAVAILABLE:
        return HeadwayError(code, f"the control plane at {address} does not answer ({details})")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return HeadwayError(code, f"the control plane at {address} did not answer in time")
    return HeadwayError(code, details or f"the call failed with {code.name}")


def _too_large(code: grpc.StatusCode, count: int, most: int, *, sent: bool) -> HeadwayError:
    """A message beyond what a server, or this client, takes at all; the server itself refuses what is beyond its methods'."""
    if not sent:
        message = f"the answer has {count:,} bytes; this client takes at most {most:,}, ask for less (page_size, summary)"
        return HeadwayError(code, message)
    return HeadwayError(
        code,
        f"the request has {count:,} bytes; the control plane takes no message of more than {most:,}, and most methods less: "
        "send less or split it",
        reason="REQUEST_TOO_LARGE",
        metadata={"bytes": str(count), "maximum": str(most)},
    )
