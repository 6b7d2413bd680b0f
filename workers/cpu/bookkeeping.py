"""Activities that only tell the control plane something: leases and the job's end."""

from __future__ import annotations

import structlog
from temporalio import activity

from headway_client.errors import HeadwayError
from workers.activities import translated
from workers.control_plane import LEASE_NOT_HELD, ControlPlane
from workers.workflows.contracts import ConfirmPause, FinishedJob, FinishJob, ReleaseLease, RequestLease

_log = structlog.get_logger()


class BookkeepingActivities:
    """The activities `request_lease`, `release_lease`, `confirm_pause` and `finish_job`. All are safe to repeat."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane

    @activity.defn
    async def request_lease(self, request: RequestLease) -> None:
        """Asks for a lease; the grant arrives as a signal."""
        with translated(request.context):
            await self._control_plane.request_lease(request.context, request.lease_id, request.phase)

    @activity.defn
    async def release_lease(self, release: ReleaseLease) -> None:
        """Gives a lease back, or withdraws its request."""
        with translated(release.context):
            try:
                await self._control_plane.release_lease(release.context, release.lease_id, release.outcome, release.reason)
            except HeadwayError as error:
                if error.reason != LEASE_NOT_HELD:
                    raise
                # The request never arrived, so there is nothing to give back.
                _log.info("no such lease to release", lease_id=release.lease_id)

    @activity.defn
    async def confirm_pause(self, confirm: ConfirmPause) -> None:
        """Says that the job holds still."""
        with translated(confirm.context):
            state = await self._control_plane.confirm_pause(confirm.context, confirm.pause)
            _log.info("job holds still", state=state, pause=confirm.pause)

    @activity.defn
    async def finish_job(self, finish: FinishJob) -> FinishedJob:
        """Moves the job to its final state."""
        with translated(finish.context):
            state = await self._control_plane.finish_job(finish.context, finish.state, finish.failure)
            _log.info("job finished", state=state, kind=finish.failure.kind.value if finish.failure else None)
            return FinishedJob(state=state)
