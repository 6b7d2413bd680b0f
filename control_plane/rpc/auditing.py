"""Every call that is denied or fails to change something is on record before its caller hears of it.

Successes are recorded in the transaction of their effect (`db/mutations.py`); a refusal has none, and is recorded here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import grpc

from control_plane.audit.record import Entry
from control_plane.audit.trail import AuditTrail
from control_plane.audit.writer import entry_of
from control_plane.errors import Reason
from control_plane.rpc.exchange import Exchange, Proceed
from control_plane.rpc.status import as_refusal, code_name

# Refused before anything of theirs was looked at; or so many at once that each cannot have a commit of its own.
_COUNTED = frozenset({Reason.RATE_LIMITED, Reason.TOO_MANY_CALLS, Reason.DEPENDENCY_UNAVAILABLE})
# Denials that a service utters itself, or that stand for one. Other refusals of reads have denied nothing.
_DENIALS = frozenset({Reason.PERMISSION_DENIED, Reason.UNKNOWN_METHOD})


class Auditing:
    """Records refusals, each for itself; of strangers, and of callers beyond their limits, how many there were."""

    name: ClassVar[str] = "auditing"
    after: ClassVar[frozenset[str]] = frozenset({"refusing"})

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest; if it is refused, the record comes before the reply."""
        try:
            response = await proceed(exchange)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            refusal = as_refusal(error)
            await self._record(exchange, refusal.reason)
            raise refusal from None
        if exchange.method.rule.heartbeat and exchange.call is not None and not exchange.call.audited:
            self._trail.count(_entry(exchange, "OK", ""))
        return response

    async def _record(self, exchange: Exchange, reason: Reason) -> None:
        entry = _entry(exchange, code_name(reason), str(reason))
        if exchange.call is None or reason in _COUNTED:
            self._trail.count(entry)
        elif exchange.denied or exchange.method.mutates or reason in _DENIALS:
            await self._trail.record(entry)


def _entry(exchange: Exchange, code: str, reason: str) -> Entry:
    call = exchange.call
    if call is None:
        return Entry(method=exchange.method.name, code=code, reason=reason, peer=exchange.peer)
    return entry_of(call, code, reason)
