"""The job's life as data: states, phases and the transitions between states.

docs/explanation/job-lifecycle.md draws the same table. States are stored by their value.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands; the names are those of headway.jobs.v1.JobState without prefix."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class JobPhase(StrEnum):
    """What a running job is doing; the names are those of headway.jobs.v1.JobPhase without prefix."""

    PREPARE = "PREPARE"
    TRAIN = "TRAIN"
    EVALUATE = "EVALUATE"
    GATE = "GATE"
    PACKAGE = "PACKAGE"
    REGISTER = "REGISTER"


class LeaseState(StrEnum):
    """Where a lease stands."""

    REQUESTED = "REQUESTED"
    GRANTED = "GRANTED"
    ENDED = "ENDED"


class FailureKind(StrEnum):
    """Why a job failed; the names are those of headway.jobs.v1.FailureKind without prefix."""

    INVALID_DATASET = "INVALID_DATASET"
    INTEGRITY = "INTEGRITY"
    INVALID_BASE_MODEL = "INVALID_BASE_MODEL"
    USER_ERROR = "USER_ERROR"
    NUMERIC = "NUMERIC"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    GATE_REFUSED = "GATE_REFUSED"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    RUN_TIME_EXCEEDED = "RUN_TIME_EXCEEDED"
    PLATFORM = "PLATFORM"


class Actor(StrEnum):
    """Who may make a transition."""

    CLIENT = "CLIENT"
    SCHEDULER = "SCHEDULER"
    WORKER = "WORKER"


@dataclass(frozen=True, slots=True)
class Transition:
    """One legal change of state: from any of `sources` to `target`, made by `actor`."""

    name: str
    sources: frozenset[JobState]
    target: JobState
    actor: Actor

    @property
    def verb(self) -> str:
        """What it does, for people."""
        return self.name.removesuffix("_unadmitted").replace("_", " ")


_UNADMITTED = frozenset({JobState.QUEUED, JobState.PAUSED})
UNDER_WAY = frozenset({JobState.STARTING, JobState.RUNNING})
PAUSE_STATES = frozenset({JobState.PAUSING, JobState.PAUSED})

ADMIT = Transition("admit", frozenset({JobState.QUEUED}), JobState.STARTING, Actor.SCHEDULER)
RUN = Transition("run", frozenset({JobState.STARTING}), JobState.RUNNING, Actor.WORKER)
PAUSE_UNADMITTED = Transition("pause_unadmitted", frozenset({JobState.QUEUED}), JobState.PAUSED, Actor.CLIENT)
PAUSE = Transition("pause", UNDER_WAY, JobState.PAUSING, Actor.CLIENT)
CONFIRM_PAUSE = Transition("confirm_pause", frozenset({JobState.PAUSING}), JobState.PAUSED, Actor.WORKER)
RESUME_UNADMITTED = Transition("resume_unadmitted", frozenset({JobState.PAUSED}), JobState.QUEUED, Actor.CLIENT)
# A resume that comes before the pause is confirmed takes it back.
RESUME = Transition("resume", PAUSE_STATES, JobState.RUNNING, Actor.CLIENT)
CANCEL_UNADMITTED = Transition("cancel_unadmitted", _UNADMITTED, JobState.CANCELLED, Actor.CLIENT)
CANCEL = Transition("cancel", UNDER_WAY | PAUSE_STATES, JobState.CANCELLING, Actor.CLIENT)
# The last phase may end before the pause reaches it.
SUCCEED = Transition("succeed", frozenset({JobState.RUNNING, JobState.PAUSING}), JobState.SUCCEEDED, Actor.WORKER)
FAIL = Transition("fail", UNDER_WAY | PAUSE_STATES, JobState.FAILED, Actor.WORKER)
# A job that was asked to stop ends as CANCELLED however its workflow ended meanwhile.
CONFIRM_CANCEL = Transition("confirm_cancel", frozenset({JobState.CANCELLING}), JobState.CANCELLED, Actor.WORKER)

TRANSITIONS: tuple[Transition, ...] = (
    ADMIT,
    RUN,
    PAUSE_UNADMITTED,
    PAUSE,
    CONFIRM_PAUSE,
    RESUME_UNADMITTED,
    RESUME,
    CANCEL_UNADMITTED,
    CANCEL,
    SUCCEED,
    FAIL,
    CONFIRM_CANCEL,
)


class IllegalTransitionError(Exception):
    """The state does not allow the transition."""

    def __init__(self, state: JobState, transition: Transition) -> None:
        self.state = state
        self.transition = transition
        allowed = ", ".join(sorted(transition.sources))
        super().__init__(f"cannot {transition.verb} a job that is {state}; expected it to be {allowed}")


def apply(state: JobState, transition: Transition) -> JobState:
    """The state after `transition`.

    Raises:
        IllegalTransitionError: `state` is not among the transition's sources.
    """
    if state not in transition.sources:
        raise IllegalTransitionError(state, transition)
    return transition.target
