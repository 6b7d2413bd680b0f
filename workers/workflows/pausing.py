"""Whether a job is to hold still, as its signals say. Their numbers make them harmless when they are repeated."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workers.workflows.contracts import JobInput, PauseOrder, ResumeOrder


class Pauses:
    """The pauses of one job's workflow: the newest asked for, and the newest that ended."""

    def __init__(self, job: JobInput) -> None:
        self._ended = 0
        self.newest = job.pause
        """Its number; 0 before the first."""
        self.reason = ""
        """Why it was asked for."""

    def ask(self, order: PauseOrder) -> None:
        """Takes the signal `pause`."""
        if order.pause > self.newest:
            self.newest, self.reason = order.pause, order.reason

    def end(self, order: ResumeOrder) -> None:
        """Takes the signal `resume`."""
        self._ended = max(self._ended, order.pause)

    @property
    def hold(self) -> bool:
        """Whether the job is to hold still."""
        return self.newest > self._ended

    def over(self, pause: int) -> bool:
        """Whether this pause has ended."""
        return self._ended >= pause
