"""What a watcher knows of one job, folded from its events and measurements. Pure: no clock, no terminal, no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from google.protobuf.json_format import MessageToDict

from headway.jobs.v1 import job_event_pb2 as events
from headway.jobs.v1 import job_pb2
from headway.logs.v1 import log_record_pb2

FINAL_STATES = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})
PHASES = tuple(number for number in job_pb2.JobPhase.values() if number != job_pb2.JOB_PHASE_UNSPECIFIED)


def state_name(state: job_pb2.JobState.ValueType) -> str:
    """Without prefix, such as "RUNNING"."""
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")


def phase_name(number: int) -> str:
    """In lower case without prefix, such as "train", as in Job.result; the number of a phase this client does not know."""
    known = job_pb2.JobPhase.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("JOB_PHASE_").lower() if known is not None else str(number)


class Standing(Enum):
    """How far a phase has come."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """It was running when the job ended."""


@dataclass
class PhaseView:
    """One phase. Times in Unix seconds by the server's clock."""

    standing: Standing = Standing.PENDING
    start_time: float = 0.0
    end_time: float = 0.0
    detail: Mapping[str, object] = field(default_factory=dict[str, object])
    """What it found; the keys of Job.result."""
    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    first_measured: tuple[float, int] | None = None
    """Time and step of the current attempt's first measurement."""
    last_measured: tuple[float, int] | None = None

    @property
    def seconds_per_step(self) -> float | None:
        """By the current attempt's measurements; None before the second."""
        if self.first_measured is None or self.last_measured is None:
            return None
        steps = self.last_measured[1] - self.first_measured[1]
        return (self.last_measured[0] - self.first_measured[0]) / steps if steps > 0 else None

    def remaining_seconds(self, now: float) -> float | None:
        """Until its last step, as far as can be told."""
        per_step = self.seconds_per_step
        if per_step is None or self.last_measured is None:
            return None
        return max(0.0, (self.total_steps - self.step) * per_step - (now - self.last_measured[0]))


class JobView:
    """One job as it stands."""

    def __init__(self, job: job_pb2.Job) -> None:
        self.job = job
        """As last fetched; `state` and the phases may be ahead of it."""
        self.state = job.state
        self.attempt = 0
        self.lease_phase: job_pb2.JobPhase.ValueType = job_pb2.JOB_PHASE_UNSPECIFIED
        """The phase for which a lease was asked for and not yet granted."""
        self.checkpoint_step = 0
        self.notice = ""
        """The last thing that did not go as planned."""
        self.phases: dict[int, PhaseView] = {phase: PhaseView() for phase in PHASES}

    @property
    def waits(self) -> bool:
        """Whether it waits for the scheduler."""
        return self.state == job_pb2.JOB_STATE_QUEUED or self.lease_phase != job_pb2.JOB_PHASE_UNSPECIFIED

    def apply_event(self, event: events.JobEvent) -> None:
        """Takes one event into account. Events come in order, each once."""
        self.state = event.state or self.state
        self.attempt = max(self.attempt, event.attempt)
        time = event.time.ToNanoseconds() / 1e9
        detail = MessageToDict(event.detail)
        match event.type:
            case events.JOB_EVENT_TYPE_PHASE_STARTED:
                self._phase_started(event.phase, time)
            case events.JOB_EVENT_TYPE_PHASE_FINISHED:
                phase = self.phases.setdefault(event.phase, PhaseView(start_time=time))
                phase.standing, phase.end_time, phase.detail = Standing.DONE, time, detail
            case events.JOB_EVENT_TYPE_LEASE_REQUESTED:
                self.lease_phase = event.phase
            case events.JOB_EVENT_TYPE_LEASE_GRANTED | events.JOB_EVENT_TYPE_LEASE_ENDED:
                self._stop_waiting(event.phase)
            case events.JOB_EVENT_TYPE_CHECKPOINT_COMMITTED:
                self.checkpoint_step = int(detail.get("step", self.checkpoint_step))
            case events.JOB_EVENT_TYPE_ATTEMPT_LOST:
                self.notice = f"attempt {event.attempt} was lost; the next goes on from its last checkpoint"
            case events.JOB_EVENT_TYPE_RESUMED:
                self.notice = f"attempt {event.attempt} went on from step {int(detail.get('step', 0))}"
            case _:
                pass
        if self.state in FINAL_STATES:
            self._end(time)

    def apply_progress(self, record: log_record_pb2.LogRecord) -> None:
        """Takes one measurement into account."""
        progress = record.progress
        phase = next((view for number, view in self.phases.items() if phase_name(number) == progress.phase), None)
        if phase is None:
            return
        time = record.time.ToNanoseconds() / 1e9
        phase.step, phase.total_steps = progress.step, progress.total_steps
        phase.metrics = {**phase.metrics, **progress.metrics}
        went_back = phase.last_measured is not None and progress.step <= phase.last_measured[1]
        if phase.first_measured is None or went_back:
            phase.first_measured = (time, progress.step)
        phase.last_measured = (time, progress.step)

    def _phase_started(self, number: int, time: float) -> None:
        self._stop_waiting(number)
        phase = self.phases.setdefault(number, PhaseView())
        # A phase that is tried again has been going on since its first start.
        phase.start_time = phase.start_time or time
        phase.standing = Standing.RUNNING
        phase.first_measured = phase.last_measured = None

    def _stop_waiting(self, number: int) -> None:
        # The lease of one phase may end after the next one's was asked for.
        if number == self.lease_phase:
            self.lease_phase = job_pb2.JOB_PHASE_UNSPECIFIED

    def _end(self, time: float) -> None:
        for phase in self.phases.values():
            if phase.standing is Standing.RUNNING:
                phase.standing, phase.end_time = Standing.STOPPED, time
        self.lease_phase = job_pb2.JOB_PHASE_UNSPECIFIED
