"""JobService: everything that can be asked of jobs, from three hands."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.jobs.group_writer import GroupWriter
from control_plane.jobs.submit_servicer import JobSubmit
from control_plane.jobs.verbs_servicer import JobVerbs
from control_plane.jobs.watch_servicer import JobWatch
from control_plane.rpc.pages import Cursors
from control_plane.streams.guard import StreamGuard
from control_plane.streams.hub import EventHub
from governance.policies import TypePolicies


class JobServicer(JobSubmit, JobVerbs, JobWatch):
    """Submit jobs, steer them and follow them."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        writer: GroupWriter,
        policies: TypePolicies,
        currency: str,
        cursors: Cursors,
        hub: EventHub,
        guard: StreamGuard,
        heartbeat_seconds: float,
    ) -> None:
        JobSubmit.__init__(self, engine, writer, currency)
        JobVerbs.__init__(self, engine, writer, cursors, policies)
        JobWatch.__init__(self, engine, hub, guard, cursors, heartbeat_seconds)
