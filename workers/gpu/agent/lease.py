"""Keeping a lease alive, and knowing without being told when it is not held any more."""

from __future__ import annotations

import asyncio
import time

import structlog

from headway_client.errors import HeadwayError
from workers.control_plane import ControlPlane, fenced_off
from workers.gpu.agent.spec import AgentSpec

_FIRST_SECONDS = 10.0
"""How long the first renewal may take: until then only the scheduler knows when the lease ends."""
_CALL_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_MARGIN = 0.1
"""Share of the lease's time that local trust ends before the database's does, so that the runner is gone by then."""
_log = structlog.get_logger()


class LeaseKeeper:
    """Renews one lease at a third of its remaining time."""

    def __init__(self, control_plane: ControlPlane, spec: AgentSpec) -> None:
        self._control_plane = control_plane
        self._job_id = spec.context.job.job_id
        self._attempt = spec.grant.attempt
        self._lease_id = spec.grant.lease_id

    async def keep(self) -> str:
        """Renews until the lease is lost, and returns why it is.

        The time left is counted from before each call was made, on a clock that goes on while the machine sleeps.
        """
        trusted_until = _now() + _FIRST_SECONDS
        while True:
            asked = _now()
            if asked >= trusted_until:
                return "the lease could not be renewed before it expired"
            try:
                remaining = await self._renew(min(_CALL_SECONDS, trusted_until - asked))
            except HeadwayError as error:
                if fenced_off(error):
                    return error.message
                _log.warning("the lease is not renewed yet", error=str(error), seconds_left=round(trusted_until - _now(), 1))
                wait = _RETRY_SECONDS
            else:
                trusted_until = asked + remaining * (1 - _MARGIN)
                wait = remaining / 3
            await asyncio.sleep(max(0.0, min(wait, trusted_until - _now())))

    async def _renew(self, deadline_seconds: float) -> float:
        return await self._control_plane.renew_lease(
            self._job_id, self._attempt, self._lease_id, deadline_seconds=max(0.1, deadline_seconds)
        )


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
