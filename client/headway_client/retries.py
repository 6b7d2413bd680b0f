"""When a call may be made again, and how long to wait before.

Two answers invite a retry: UNAVAILABLE, and RESOURCE_EXHAUSTED with a google.rpc.RetryInfo, which says how long to wait. Only
a call that the contract says is safe to repeat is made again: its method has an idempotency level, and if its request has a
request id, one is set. Every attempt sends the same request, so the same id.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from headway.audit.v1 import audit_service_pb2
from headway.capacity.v1 import capacity_service_pb2
from headway.datasets.v1 import dataset_service_pb2
from headway.identity.v1 import identity_service_pb2
from headway.jobs.v1 import job_service_pb2
from headway.logs.v1 import log_service_pb2
from headway.projects.v1 import project_service_pb2
from headway.quotas.v1 import quota_service_pb2
from headway.registry.v1 import registry_service_pb2
from headway.scheduler.v1 import scheduler_service_pb2
from headway.webhooks.v1 import webhook_service_pb2
from headway_client.errors import HeadwayError

_FILES = (
    audit_service_pb2,
    capacity_service_pb2,
    dataset_service_pb2,
    identity_service_pb2,
    job_service_pb2,
    log_service_pb2,
    project_service_pb2,
    quota_service_pb2,
    registry_service_pb2,
    scheduler_service_pb2,
    webhook_service_pb2,
)
# Every method has a request type of its own, so the request says which method it is for.
_SAFE_REQUESTS = frozenset(
    method.input_type.full_name
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
)


def is_safe_to_repeat(request: object) -> bool:
    """Whether sending `request`, a message, twice has the effect of sending it once."""
    if not isinstance(request, Message) or request.DESCRIPTOR.full_name not in _SAFE_REQUESTS:
        return False
    field = request.DESCRIPTOR.fields_by_name.get("request_id")
    return field is None or bool(getattr(request, field.name))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How persistent a client is. Seconds throughout."""

    attempts_max: int = 11
    """Attempts of one unary call: with the waits below for 7 to 13 seconds, and a control plane is back in 3 to 5."""
    backoff_seconds: float = 0.1
    """The wait before the first retry; it doubles, with jitter, up to the maximum."""
    backoff_seconds_max: float = 2.0
    stream_silence_seconds_max: float = 60.0
    """How long a broken stream is reopened before its error is raised. A message from the server starts the time anew."""
    stream_call_seconds: float = 300.0
    """Deadline of one call of a stream; the stream goes on in a new call, so that a server that hangs is left."""


def backoff(policy: RetryPolicy) -> Iterator[float]:
    """Endless waits in seconds, each between half and all of a step that doubles up to the maximum."""
    step = policy.backoff_seconds
    while True:
        # Jitter spreads the clients of a restarted server; it protects nothing, so it need not be unpredictable.
        yield step * random.uniform(0.5, 1.0)  # noqa: S311  see above
        step = min(step * 2, policy.backoff_seconds_max)


class UnaryRetry:
    """The attempts of one unary call within one deadline."""

    def __init__(self, policy: RetryPolicy, request: object, deadline_seconds: float) -> None:
        self._end = time.monotonic() + deadline_seconds
        self._attempts_left = policy.attempts_max if is_safe_to_repeat(request) else 1
        self._waits = backoff(policy)

    def remaining_seconds(self) -> float:
        """What is left of the deadline for the attempt that begins now."""
        self._attempts_left -= 1
        return max(0.001, self._end - time.monotonic())

    def wait_seconds(self, error: HeadwayError) -> float | None:
        """How long to wait before the next attempt; None if there is none."""
        wait = next(self._waits)
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_seconds is not None:
            # Not before the server wants it; the jitter comes on top, so that those who wait do not come back at once.
            wait += error.retry_after_seconds
        elif error.code is not grpc.StatusCode.UNAVAILABLE:
            return None
        if self._attempts_left == 0:
            return None
        return wait if time.monotonic() + wait < self._end else None
