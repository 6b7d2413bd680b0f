"""What the simulation knows of a job and the scheduler does not: how long it really runs, and what of that is safe."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.types import Micros, QueuedJob, Request, Shape
from scheduler.simulation.timeline import Appointment


@dataclass(slots=True, eq=False)
class Job:
    """A job that is not final. Times in microseconds."""

    job_id: str
    set_name: str
    queue: str
    shape: Shape
    priority: int
    submitted: Micros
    declared: int
    """Longest run time that is left to ask for."""
    work: int
    """Run time that it really still needs."""
    checkpoint_every: int | None = None
    on_demand: bool = True
    """Whether it writes a checkpoint when it is asked to yield."""
    prepare: int | None = None
    """From admission to request; None: admitted before it came."""
    attempt: int = 0
    """Requests made."""
    request_id: str | None = None
    """The last of them: what it waits for, or runs under."""

    def queued(self) -> QueuedJob:
        """As it waits for admission."""
        return QueuedJob(self.job_id, self.queue, self.shape, self.priority, self.submitted)

    def request(self) -> Request:
        """Its next request."""
        self.attempt += 1
        self.request_id = f"{self.job_id}.{self.attempt}"
        return Request(
            self.request_id, self.job_id, self.queue, self.shape, self.priority, self.submitted, max(1, self.declared)
        )

    def keep(self, progress: int) -> None:
        """So much of its work is done and safe; the next request is for the rest."""
        self.work -= progress
        self.declared = max(1, self.declared - progress)


@dataclass(slots=True)
class Run:
    """A job while it has a lease."""

    job: Job
    lease_id: str
    granted: Micros
    end: Appointment | None
    """Its end, or that it yields; None once its node is silent."""
    checkpoint: Appointment | None = None
    """The next one."""
    checkpointed: Micros | None = None
    asked: Micros | None = None
    """When it was asked to yield."""
    stopped: Micros | None = None
    """When its node fell silent."""

    def progress(self, now: Micros) -> int:
        """What it has done under this lease, safe or not."""
        worked_until = min(now, self.stopped if self.stopped is not None else now)
        if self.asked is not None and self.job.on_demand:
            worked_until = min(worked_until, self.asked)
        return min(self.job.work, worked_until - self.granted)

    def safe(self) -> int:
        """What its last checkpoint holds of that."""
        return 0 if self.checkpointed is None else self.checkpointed - self.granted
