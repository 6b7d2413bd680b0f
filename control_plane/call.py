"""The call that is being served: who makes it, and what the audit log will say of it.

An interceptor sets it for the task that serves the call, so that it reaches whatever the call does without being handed through
every signature. Background tasks have none.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from control_plane.identity.principal import Principal


@dataclass(slots=True)
class Call:
    """One call under way.

    Attributes:
        method: full name, such as `headway.jobs.v1.JobService/SubmitJob`.
        principal: who calls.
        request_id: the client's, if the request has one; else empty.
        trace_id: 32 hex digits, or empty.
        peer: the address it came from.
        project: the project concerned, once that is known; for the audit log.
        object: the resource acted on, once that is known; for the audit log.
        audited: a record of this call has been written in its transaction.
    """

    method: str
    principal: Principal
    request_id: str = ""
    trace_id: str = ""
    peer: str = ""
    project: str = ""
    object: str = ""
    audited: bool = False


_current: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    """The call this task serves.

    Raises:
        LookupError: it serves none.
    """
    return _current.get()


def serve_call(call: Call) -> None:
    """Makes `call` the one this task serves."""
    _current.set(call)
