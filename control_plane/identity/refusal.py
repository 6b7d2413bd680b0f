"""The one refusal of every credential that is not believed."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.errors import Reason, RefusedError

_MESSAGE = "the credential is missing or not valid; send exactly one valid `authorization: Bearer …`, or a client certificate"


@dataclass(slots=True)
class UnauthenticatedError(RefusedError):
    """Nobody that we know calls.

    Attributes:
        cause: what was wrong, for the log and the audit log. It never goes into a reply, where it would teach an attacker.
    """

    cause: str = ""


def unauthenticated(cause: str) -> UnauthenticatedError:
    """The refusal, with its cause for the log: equal on the wire whatever the cause."""
    return UnauthenticatedError(Reason.UNAUTHENTICATED, _MESSAGE, cause=cause)
