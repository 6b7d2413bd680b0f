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


ADMIT = Transition("admit", frozenset({JobState.QUEUED}), JobState.STARTING, Actor.SCHEDULER)
RUN = Transition("run", frozenset({JobState.STARTING}), JobState.RUNNING, Actor.WORKER)
CANCEL_QUEUED = Transition("cancel_queued", frozenset({JobState.QUEUED}), JobState.CANCELLED, Actor.CLIENT)
CANCEL = Transition("cancel", frozenset({JobState.STARTING, JobState.RUNNING}), JobState.CANCELLING, Actor.CLIENT)
SUCCEED = Transition("succeed", frozenset({JobState.RUNNING}), JobState.SUCCEEDED, Actor.WORKER)
FAIL = Transition("fail", frozenset({JobState.STARTING, JobState.RUNNING}), JobState.FAILED, Actor.WORKER)
# A job that was asked to stop ends as CANCELLED however its workflow ended meanwhile.
CONFIRM_CANCEL = Transition("confirm_cancel", frozenset({JobState.CANCELLING}), JobState.CANCELLED, Actor.WORKER)

TRANSITIONS: tuple[Transition, ...] = (ADMIT, RUN, CANCEL_QUEUED, CANCEL, SUCCEED, FAIL, CONFIRM_CANCEL)


class IllegalTransitionError(Exception):
    """The state does not allow the transition."""

    def __init__(self, state: JobState, transition: Transition) -> None:
        self.state = state
        self.transition = transition
        allowed = ", ".join(sorted(transition.sources))
        super().__init__(f"cannot {transition.name.replace('_', ' ')} a job that is {state}; expected it to be {allowed}")


def apply(state: JobState, transition: Transition) -> JobState:
    """The state after `transition`.

    Raises:
        IllegalTransitionError: `state` is not among the transition's sources.
    """
    if state not in transition.sources:
        raise IllegalTransitionError(state, transition)
    return transition.target
