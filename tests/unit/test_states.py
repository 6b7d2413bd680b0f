"""The job's state machine: its whole matrix, and that the wire, the domain and the database say the same words."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from control_plane.db.events import EventType
from control_plane.db.tables import jobs
from control_plane.errors import Reason, RefusedError
from control_plane.jobs import states
from control_plane.jobs.states import FINAL_STATES, FailureKind, IllegalTransitionError, JobPhase, JobState, Transition
from control_plane.rpc.status import to_status
from headway.errors.v1 import error_reason_pb2
from headway.jobs.v1 import job_event_pb2, job_pb2

Q, S, R, C = JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.CANCELLING
PG, PD = JobState.PAUSING, JobState.PAUSED
ALLOWED = {
    ("admit", Q): S,
    ("run", S): R,
    ("pause_unadmitted", Q): PD,
    ("pause", S): PG,
    ("pause", R): PG,
    ("confirm_pause", PG): PD,
    ("resume_unadmitted", PD): Q,
    ("resume", PG): R,
    ("resume", PD): R,
    ("cancel_unadmitted", Q): JobState.CANCELLED,
    ("cancel_unadmitted", PD): JobState.CANCELLED,
    ("cancel", S): C,
    ("cancel", R): C,
    ("cancel", PG): C,
    ("cancel", PD): C,
    ("succeed", R): JobState.SUCCEEDED,
    ("succeed", PG): JobState.SUCCEEDED,
    ("fail", S): JobState.FAILED,
    ("fail", R): JobState.FAILED,
    ("fail", PG): JobState.FAILED,
    ("fail", PD): JobState.FAILED,
    ("confirm_cancel", C): JobState.CANCELLED,
}


@pytest.mark.parametrize(("transition", "state"), list(itertools.product(states.TRANSITIONS, JobState)))
def test_every_state_and_transition(transition: Transition, state: JobState) -> None:
    expected = ALLOWED.get((transition.name, state))
    if expected is None:
        with pytest.raises(IllegalTransitionError, match=str(state)):
            states.apply(state, transition)
    else:
        assert states.apply(state, transition) is expected


@given(st.lists(st.sampled_from(states.TRANSITIONS), max_size=30))
def test_final_states_stay_final_on_any_walk(walk: list[Transition]) -> None:
    state = JobState.QUEUED
    for transition in walk:
        before = state
        try:
            state = states.apply(state, transition)
        except IllegalTransitionError:
            continue
        assert not before.final


@given(st.lists(st.sampled_from(states.TRANSITIONS), max_size=30))
def test_a_job_ends_in_success_only_from_under_way_and_a_cancel_is_never_lost(walk: list[Transition]) -> None:
    state, cancelling = JobState.QUEUED, False
    for transition in walk:
        try:
            state = states.apply(state, transition)
        except IllegalTransitionError:
            continue
        cancelling = cancelling or state in {JobState.CANCELLING, JobState.CANCELLED}
        assert cancelling == (state in {JobState.CANCELLING, JobState.CANCELLED})


def test_every_state_can_be_reached_and_every_open_one_left() -> None:
    reached = {JobState.QUEUED} | {transition.target for transition in states.TRANSITIONS}
    left = set().union(*(transition.sources for transition in states.TRANSITIONS))
    assert reached == set(JobState)
    assert left == set(JobState) - FINAL_STATES


@pytest.mark.parametrize(
    ("domain", "wire", "prefix"),
    [
        (JobState, job_pb2.JobState, "JOB_STATE_"),
        (JobPhase, job_pb2.JobPhase, "JOB_PHASE_"),
        (FailureKind, job_pb2.FailureKind, "FAILURE_KIND_"),
        (EventType, job_event_pb2.JobEventType, "JOB_EVENT_TYPE_"),
        (Reason, error_reason_pb2.ErrorReason, "ERROR_REASON_"),
    ],
)
def test_domain_and_wire_have_the_same_words(domain: Any, wire: Any, prefix: str) -> None:
    assert {f"{prefix}{word}" for word in domain} | {f"{prefix}UNSPECIFIED"} == set(wire.keys())


def test_the_database_knows_every_state() -> None:
    statement = str(CreateTable(jobs).compile(dialect=postgresql.dialect()))
    assert all(f"'{state}'" in statement for state in JobState)


def test_every_reason_has_a_code_and_one_error_info() -> None:
    for reason in Reason:
        status = to_status(RefusedError(reason, "said", {"state": "X"}))
        assert status.code != 0
        assert sum(detail.type_url.endswith("google.rpc.ErrorInfo") for detail in status.details) == 1
