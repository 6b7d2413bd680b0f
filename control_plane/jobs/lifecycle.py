"""The verbs: what each makes of a job, and how that is written for one job or for ten thousand.

A verb decides for each locked job by itself, from its row alone; what it decided for all of them is then written set by set. So
a call costs a handful of statements, whatever it is meant for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, and_, case, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.call import current_call
from control_plane.db.events import EventType, Happening, append_events, notify
from control_plane.db.tables import CHANNEL_OUTBOX, CHANNEL_SCHEDULER, jobs, leases, projects
from control_plane.errors import Reason, RefusedError
from control_plane.jobs import states
from control_plane.jobs.repository import job_not_found
from control_plane.jobs.selection import HOLDS_LEASE, LockedJob, Selection, among, lock, refusal_for
from control_plane.jobs.states import FINAL_STATES, IllegalTransitionError, JobState, Transition
from control_plane.jobs.submission import above_ceiling
from governance.policies import TypePolicies


@dataclass(frozen=True, slots=True)
class Signal:
    """What a job's workflow is to be told: a row of the outbox."""

    kind: str
    dedupe_key: str
    payload: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of a job.

    Attributes:
        event: what its history says.
        detail: of the event, beside reason and caller.
        state: its new state; None: unchanged.
        signal: what its workflow is told; None: nothing.
        values: columns of its row that change.
    """

    event: EventType = EventType.STATE_CHANGED
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])
    state: JobState | None = None
    signal: Signal | None = None
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])


Decide: TypeAlias = Callable[[LockedJob, str], Effect | None]
"""What a verb makes of a job, for a reason; None: it is so already. Raises what refuses it."""


@dataclass(frozen=True, slots=True)
class Verb:
    """Something that can be asked of jobs.

    Attributes:
        decide: what it makes of one.
        candidates: which jobs of a set or a filter it is meant for.
        priority: what it gives them, if it does; held against each project's ceiling.
    """

    decide: Decide
    candidates: ColumnElement[bool]
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job: the state it is in then, and why nothing was done if it was refused."""

    job_id: str
    state: JobState | None
    changed: bool
    refusal: Exception | None = None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of a selection."""

    jobs: Sequence[Outcome]
    more: bool


async def steer(connection: AsyncConnection, verb: Verb, selection: Selection, reason: str) -> Outcomes:
    """Applies a verb to the selected jobs that the caller may steer.

    Args:
        connection: a connection in a transaction.
        verb: what is asked of them.
        selection: which.
        reason: why, for their histories.
    """
    principal = current_call().principal
    locked, more = await lock(connection, selection, verb.candidates)
    ceilings = await _ceilings(connection, locked) if verb.priority is not None and not principal.org_admin else {}
    outcomes: list[Outcome] = []
    effects: list[tuple[LockedJob, Effect]] = []
    for job in locked:
        refusal = refusal_for(principal, job) or _over(verb.priority, job, ceilings)
        if refusal is not None:
            state = None if refusal.reason is Reason.JOB_NOT_FOUND else job.state
            outcomes.append(Outcome(job.job_id, state, changed=False, refusal=refusal))
            continue
        try:
            effect = verb.decide(job, reason)
        except (IllegalTransitionError, RefusedError) as error:
            outcomes.append(Outcome(job.job_id, job.state, changed=False, refusal=error))
            continue
        if effect is not None:
            effects.append((job, effect))
        state = job.state if effect is None or effect.state is None else effect.state
        outcomes.append(Outcome(job.job_id, state, changed=effect is not None))
    await write(connection, effects, reason)
    if selection.named:
        found = {outcome.job_id: outcome for outcome in outcomes}
        outcomes = [found.get(job_id) or _missing(job_id) for job_id in selection.job_ids]
    return Outcomes(outcomes, more)


def _missing(job_id: str) -> Outcome:
    return Outcome(job_id, None, changed=False, refusal=job_not_found(job_id))


async def write(connection: AsyncConnection, effects: Sequence[tuple[LockedJob, Effect]], reason: str) -> None:
    """Writes what was decided for locked jobs, with one event for each; wakes whoever acts on it."""
    if not effects:
        return
    await _set_values(connection, effects)
    await _send(connection, [(job, effect.signal) for job, effect in effects if effect.signal is not None])
    said = {"by": current_call().principal.subject} | ({"reason": reason} if reason else {})
    for event in EventType:
        happened = [
            Happening(job.job_id, {**effect.detail, **said}, effect.state) for job, effect in effects if effect.event is event
        ]
        await append_events(connection, event, happened)
    await notify(connection, CHANNEL_SCHEDULER)


async def _ceilings(connection: AsyncConnection, locked: Sequence[LockedJob]) -> Mapping[str, int]:
    query = select(projects.c.project, projects.c.priority_max).where(projects.c.project.in_({job.project for job in locked}))
    return {row.project: row.priority_max for row in await connection.execute(query)}


def _over(priority: int | None, job: LockedJob, ceilings: Mapping[str, int]) -> RefusedError | None:
    if priority is None or priority <= ceilings.get(job.project, priority):
        return None
    return above_ceiling(job.project, priority, ceilings[job.project], "priority")


async def _set_values(connection: AsyncConnection, effects: Sequence[tuple[LockedJob, Effect]]) -> None:
    """Sets columns; jobs that get the same values share a statement."""
    groups: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for job, effect in effects:
        if effect.values:
            groups.setdefault(tuple(sorted(effect.values.items())), []).append(job.job_id)
    for values, job_ids in groups.items():
        await connection.execute(update(jobs).where(among(jobs.c.job_id, job_ids)).values(**dict(values)))
        priority = dict(values).get("priority")
        if priority is not None:
            waiting = update(leases).where(among(leases.c.job_id, job_ids), leases.c.state == "REQUESTED")
            await connection.execute(waiting.values(priority=priority))


_SEND = text(
    """
    INSERT INTO outbox (kind, job_id, dedupe_key, payload, trace_parent, state)
    SELECT kind, job_id, dedupe_key, payload::jsonb, trace_parent, 'ready'
    FROM unnest(
        CAST(:kinds AS text[]), CAST(:job_ids AS uuid[]), CAST(:dedupe_keys AS text[]), CAST(:payloads AS text[]),
        CAST(:trace_parents AS text[])
    ) AS given (kind, job_id, dedupe_key, payload, trace_parent)
    """
)


async def _send(connection: AsyncConnection, signals: Sequence[tuple[LockedJob, Signal]]) -> None:
    if signals:
        parameters = {
            "kinds": [signal.kind for _, signal in signals],
            "job_ids": [job.job_id for job, _ in signals],
            "dedupe_keys": [signal.dedupe_key for _, signal in signals],
            "payloads": [json.dumps(dict(signal.payload)) for _, signal in signals],
            "trace_parents": [job.trace_parent for job, _ in signals],
        }
        await connection.execute(_SEND, parameters)
        await notify(connection, CHANNEL_OUTBOX)


def _in(*sources: Transition) -> ColumnElement[bool]:
    """That a job is in a state from which one of the transitions leads."""
    allowed = frozenset[JobState]().union(*(transition.sources for transition in sources))
    return jobs.c.state.in_(sorted(allowed))


def _cancel(job: LockedJob, reason: str) -> Effect | None:
    del reason  # the workflow ends all the same
    if job.state is JobState.CANCELLING:
        return None
    if job.admitted:
        target = states.apply(job.state, states.CANCEL)
        return Effect(state=target, signal=Signal("cancel_workflow", f"cancel/{job.job_id}"))
    return Effect(state=states.apply(job.state, states.CANCEL_UNADMITTED))


def _pause(job: LockedJob, reason: str) -> Effect | None:
    if job.state in states.PAUSE_STATES:
        return None
    if not job.admitted:
        return Effect(state=states.apply(job.state, states.PAUSE_UNADMITTED))
    target = states.apply(job.state, states.PAUSE)
    number = job.pauses + 1
    signal = Signal("signal_pause", f"pause/{job.job_id}/{number}", {"pause": number, "reason": reason})
    return Effect(state=target, signal=signal, values={"pauses": number})


def _resume(job: LockedJob, reason: str) -> Effect | None:
    del reason  # going on needs none
    if not job.admitted:
        return Effect(state=states.apply(job.state, states.RESUME_UNADMITTED))
    target = states.apply(job.state, states.RESUME)
    return Effect(state=target, signal=Signal("signal_resume", f"resume/{job.job_id}/{job.pauses}", {"pause": job.pauses}))


def _preempt(job: LockedJob, reason: str) -> Effect | None:
    if job.lease_id is None or job.state not in states.UNDER_WAY:
        raise RefusedError(
            Reason.LEASE_NOT_HELD,
            f"job {job.job_id} is {job.state} and holds no lease that could be taken; expected it to be in a leased phase",
            {"lease_id": job.lease_id or "", "state": str(job.state)},
        )
    if job.preempting:
        return None
    signal = Signal("signal_preempt", f"preempt/{job.lease_id}", {"lease_id": job.lease_id, "reason": reason})
    return Effect(EventType.PREEMPTION_REQUESTED, {"lease_id": job.lease_id}, signal=signal)


CANCEL = Verb(_cancel, _in(states.CANCEL, states.CANCEL_UNADMITTED))
PAUSE = Verb(_pause, _in(states.PAUSE, states.PAUSE_UNADMITTED))
RESUME = Verb(_resume, _in(states.RESUME, states.RESUME_UNADMITTED))
PREEMPT = Verb(_preempt, and_(jobs.c.state.in_(sorted(states.UNDER_WAY)), HOLDS_LEASE))


def reprioritize(priority: int, policies: TypePolicies) -> Verb:
    """The verb that gives jobs a priority, as far as the policy of their type lets it."""

    def decide(job: LockedJob, reason: str) -> Effect | None:
        del reason
        given = policies.settled(job.type, priority)
        return updated(job, {"priority": given}) if job.priority != given else None

    still_open = jobs.c.state.not_in(sorted(FINAL_STATES))
    filler = jobs.c.type.in_(sorted(policies.filler_types))
    given = case((filler, min(priority, policies.filler_priority_max)), else_=priority)
    return Verb(decide, and_(still_open, jobs.c.priority != given), priority)


def updated(job: LockedJob, values: Mapping[str, Any]) -> Effect:
    """The effect of new values of a job's name, priority or job set.

    Raises:
        RefusedError: the job is final, and a priority means nothing to it any more.
    """
    if "priority" in values and job.state.final:
        open_states = ",".join(state for state in JobState if not state.final)
        raise RefusedError(
            Reason.ILLEGAL_TRANSITION,
            f"cannot give a priority to a job that is {job.state}; expected one that is not final",
            {"state": str(job.state), "transition": "reprioritize", "allowed_from": open_states},
        )
    return Effect(EventType.UPDATED, values, values=values)


async def update_one(
    connection: AsyncConnection, job_id: str, values: Mapping[str, Any], etag: str, policies: TypePolicies
) -> None:
    """Changes a job's name, priority or job set.

    Args:
        connection: a connection in a transaction.
        job_id: the job.
        values: the new values by column.
        etag: the one it must still have; empty: any.
        policies: what a job's type does to its priority.

    Raises:
        RefusedError: there is no such job for the caller, or it may not be changed so.
    """
    principal = current_call().principal
    locked, _ = await lock(connection, Selection(job_ids=(job_id,)), None)
    if not locked:
        raise job_not_found(job_id)
    [job] = locked
    ceilings = {} if principal.org_admin else await _ceilings(connection, locked)
    if (refusal := refusal_for(principal, job) or _over(values.get("priority"), job, ceilings)) is not None:
        raise refusal
    if etag and etag != str(job.version):
        raise RefusedError(
            Reason.ETAG_MISMATCH,
            f"job.etag: is {etag}, but the job has changed and is at {job.version}; read it again, and repeat the change if it"
            " still makes sense",
            {"etag": str(job.version)},
        )
    if "priority" in values:
        values = {**values, "priority": policies.settled(job.type, values["priority"])}
    await write(connection, [(job, updated(job, values))], "")
