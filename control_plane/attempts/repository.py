"""What an attempt changes, each in its caller's transaction and behind the fence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, bindparam, func, null, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.fence import lock_current, lock_leased
from control_plane.db.events import EventType, append_event, notify
from control_plane.db.leases import OUTCOME_PAUSED, end_lease, end_open_leases
from control_plane.db.tables import CHANNEL_SCHEDULER, checkpoints, job_events, jobs, leases, outbox
from control_plane.errors import Reason, RefusedError
from control_plane.jobs import states
from control_plane.jobs.states import JobPhase, JobState
from scheduler.core.types import Resource, Shape


async def start_phase(connection: AsyncConnection, job_id: str, attempt: int, phase: JobPhase) -> None:
    """Records that a phase begins; the first moves the job to RUNNING. A repeat changes nothing."""
    job = await lock_current(connection, job_id, attempt)
    if await _recorded(connection, job_id, attempt, phase, EventType.PHASE_STARTED):
        return
    await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(phase=str(phase)))
    if JobState(job["state"]) is JobState.STARTING:
        running = states.apply(JobState.STARTING, states.RUN)
        await append_event(connection, job_id, EventType.STATE_CHANGED, state=running)
    await append_event(connection, job_id, EventType.PHASE_STARTED, phase=phase)


async def finish_phase(
    connection: AsyncConnection, job_id: str, attempt: int, phase: JobPhase, detail: Mapping[str, Any]
) -> None:
    """Records what a phase found, in the event and under the phase's name in the job's result. A repeat changes nothing."""
    await lock_current(connection, job_id, attempt)
    if await _recorded(connection, job_id, attempt, phase, EventType.PHASE_FINISHED):
        return
    found = bindparam("found", {phase.lower(): dict(detail)}, type_=JSONB)
    await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(result=jobs.c.result.op("||")(found)))
    await append_event(connection, job_id, EventType.PHASE_FINISHED, phase=phase, detail=detail)


async def _recorded(connection: AsyncConnection, job_id: str, attempt: int, phase: JobPhase, event_type: EventType) -> bool:
    query = select(job_events.c.event_id).where(
        job_events.c.job_id == job_id,
        job_events.c.attempt == attempt,
        job_events.c.phase == str(phase),
        job_events.c.type == str(event_type),
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def request_lease(
    connection: AsyncConnection,
    lease_id: str,
    job_id: str,
    attempt: int,
    phase: JobPhase,
    *,
    shape: Shape,
    max_run_seconds: int,
) -> None:
    """Stores a request for a lease, once per lease id."""
    # The grant moves the attempt on, so a late repeat of the request is looked for before the fence.
    known = await connection.execute(select(leases.c.lease_id).where(leases.c.lease_id == lease_id, leases.c.job_id == job_id))
    if known.first() is not None:
        return
    job = await lock_current(connection, job_id, attempt)
    stored = await connection.execute(
        insert(leases)
        .values(
            lease_id=lease_id,
            job_id=job_id,
            project=job["project"],
            phase=str(phase),
            state="REQUESTED",
            **_columns(shape),
            priority=job["priority"],
            max_run_seconds=max_run_seconds,
            waiting_since=_waiting_since(job_id),
        )
        .on_conflict_do_nothing(index_elements=["lease_id"])
    )
    if stored.rowcount == 1:
        await append_event(
            connection,
            job_id,
            EventType.LEASE_REQUESTED,
            phase=phase,
            detail={"lease_id": lease_id, "accelerators": shape.accelerators, "accelerator_kind": shape.kind},
        )
        await notify(connection, CHANNEL_SCHEDULER)


def _waiting_since(job_id: str) -> ColumnElement[datetime]:
    """Since when a job that asks now has waited: one whose last lease was preempted goes on from where that one stood."""
    last = (
        select(leases.c.waiting_since, leases.c.preempted_for, leases.c.outcome)
        .where(leases.c.job_id == job_id, leases.c.state == "ENDED", leases.c.granted_at.is_not(None))
        .order_by(leases.c.ended_at.desc())
        .limit(1)
        .subquery()
    )
    yielded = last.c.preempted_for.is_not(None) & (last.c.outcome != "completed")
    return func.coalesce(select(last.c.waiting_since).where(yielded).scalar_subquery(), func.now())


def _columns(shape: Shape) -> dict[str, Any]:
    """A shape as the columns of `leases` have it."""
    topology = shape.topology
    return {
        "accelerator_kind": shape.kind,
        "accelerators": shape.member[Resource.ACCELERATORS],
        "cpu_millis": shape.member[Resource.CPU_MILLIS],
        "memory_mib": shape.member[Resource.MEMORY_MIB],
        "members": shape.members,
        "spot": shape.spot,
        "labels": dict(shape.labels),
        "topology": null() if topology is None else {"level": topology.level, "mode": str(topology.mode)},
    }


async def renew_lease(
    connection: AsyncConnection, lease_id: str, job_id: str, attempt: int, lease_seconds: float
) -> tuple[datetime, float]:
    """Prolongs a lease that is held and has not expired; returns its new end and the seconds until then.

    Raises:
        RefusedError: it has ended, expired, or is not this attempt's.
    """
    renewed = (
        await connection.execute(
            update(leases)
            .where(
                leases.c.lease_id == lease_id,
                leases.c.job_id == job_id,
                leases.c.attempt == attempt,
                leases.c.state == "GRANTED",
                leases.c.expires_at > func.now(),
            )
            .values(expires_at=func.now() + text("make_interval(secs => :seconds)").bindparams(seconds=lease_seconds))
            .returning(leases.c.expires_at)
        )
    ).scalar_one_or_none()
    if renewed is None:
        state = (await connection.execute(select(leases.c.state).where(leases.c.lease_id == lease_id))).scalar_one_or_none()
        raise RefusedError(
            Reason.LEASE_NOT_HELD,
            f"lease {lease_id} is not held by attempt {attempt} of job {job_id} any more; stop the work under it",
            {"lease_id": lease_id, "state": state or "UNKNOWN"},
        )
    return renewed, lease_seconds


async def release_lease(
    connection: AsyncConnection, lease_id: str, job_id: str, attempt: int, outcome: str, reason: str = ""
) -> int:
    """Ends a lease, or withdraws its request; returns the accelerator-milliseconds it used. A repeat changes nothing.

    Args:
        connection: a connection in a transaction.
        lease_id: the lease.
        job_id: its job.
        attempt: the attempt that asks. What a later one holds is not its to give back.
        outcome: how the work under it ended, as `end_lease` says.
        reason: why, in words, when it was lost, preempted or paused.

    Raises:
        RefusedError: there is no such lease of this job, or a later attempt holds it.
    """
    owned = select(leases.c.state, leases.c.attempt).where(leases.c.lease_id == lease_id, leases.c.job_id == job_id)
    lease = (await connection.execute(owned)).one_or_none()
    if lease is not None and lease.state == "GRANTED" and lease.attempt > attempt:
        raise RefusedError(
            Reason.STALE_ATTEMPT,
            f"attempt {attempt} of job {job_id} may write no more: lease {lease_id} is held by attempt {lease.attempt}; stop",
            {"job_id": job_id, "attempt": str(attempt), "current_attempt": str(lease.attempt)},
        )
    if lease is None:
        raise RefusedError(
            Reason.LEASE_NOT_HELD,
            f"job {job_id} has no lease {lease_id}; release the lease that was asked for",
            {"lease_id": lease_id, "state": "UNKNOWN"},
        )
    await end_lease(connection, lease_id, outcome, reason)
    used = await connection.execute(select(leases.c.accelerator_ms).where(leases.c.lease_id == lease_id))
    return int(used.scalar_one())


async def commit_checkpoint(
    connection: AsyncConnection, job_id: str, attempt: int, *, step: int, manifest_uri: str, manifest_sha256: str
) -> None:
    """Makes a checkpoint the one to resume from. A step that an earlier attempt committed is replaced.

    Raises:
        RefusedError: the attempt is stale or holds no lease.
    """
    await lock_leased(connection, job_id, attempt)
    written = await connection.execute(
        insert(checkpoints)
        .values(
            job_id=job_id,
            step=step,
            attempt=attempt,
            manifest_uri=manifest_uri,
            manifest_sha256=manifest_sha256,
        )
        .on_conflict_do_update(
            index_elements=["job_id", "step"],
            set_={
                "attempt": attempt,
                "manifest_uri": manifest_uri,
                "manifest_sha256": manifest_sha256,
                "created_at": func.now(),
            },
            where=checkpoints.c.attempt < attempt,
        )
    )
    if written.rowcount == 0:  # this attempt committed it before
        return
    await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(checkpoint_step=step))
    held = update(leases).where(leases.c.job_id == job_id, leases.c.attempt == attempt, leases.c.state == "GRANTED")
    await connection.execute(held.values(checkpointed_at=func.now()))
    await append_event(
        connection,
        job_id,
        EventType.CHECKPOINT_COMMITTED,
        phase=JobPhase.TRAIN,
        detail={"step": step, "manifest_uri": manifest_uri},
    )


async def list_checkpoints(connection: AsyncConnection, job_id: str, before_step: int, limit: int) -> Sequence[RowMapping]:
    """A job's committed checkpoints, newest first; only those below `before_step`, if it is not 0."""
    query = select(checkpoints).where(checkpoints.c.job_id == job_id)
    if before_step:
        query = query.where(checkpoints.c.step < before_step)
    return (await connection.execute(query.order_by(checkpoints.c.step.desc()).limit(limit))).mappings().all()


async def record_resume(
    connection: AsyncConnection, job_id: str, attempt: int, step: int, damaged_steps: Sequence[int]
) -> None:
    """Records where an attempt goes on from; what failed verification is never offered again. A repeat changes nothing."""
    await lock_leased(connection, job_id, attempt)
    if await _recorded(connection, job_id, attempt, JobPhase.TRAIN, EventType.RESUMED):
        return
    if damaged_steps:
        await connection.execute(
            checkpoints.delete().where(
                checkpoints.c.job_id == job_id,
                checkpoints.c.step.in_(damaged_steps),
                checkpoints.c.attempt < attempt,
            )
        )
    await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(checkpoint_step=step))
    await append_event(
        connection,
        job_id,
        EventType.RESUMED,
        phase=JobPhase.TRAIN,
        detail={"step": step, "damaged_steps": list(damaged_steps)},
    )


async def confirm_pause(connection: AsyncConnection, job_id: str, attempt: int, pause: int) -> JobState:
    """Moves a job whose workflow holds still to PAUSED, and ends what leases it still has; returns the state it is in then.

    A repeat changes nothing, nor does the confirmation of a pause that was taken back, or that another one followed.
    """
    job = await lock_current(connection, job_id, attempt, open_only=False)
    current = JobState(job["state"])
    if current is not JobState.PAUSING or job["pauses"] != pause:
        return current
    await end_open_leases(connection, job_id, OUTCOME_PAUSED, "the job is paused")
    paused = states.apply(current, states.CONFIRM_PAUSE)
    await append_event(connection, job_id, EventType.STATE_CHANGED, state=paused)
    await notify(connection, CHANNEL_SCHEDULER)
    return paused


async def finish_job(
    connection: AsyncConnection, job_id: str, attempt: int, state: JobState, failure: Mapping[str, Any] | None
) -> JobState:
    """Moves a job to its final state and ends the leases it still holds; returns the state it is in then.

    A repeat changes nothing. A job that was asked to stop ends as CANCELLED, whatever its workflow made of itself.
    """
    job = await lock_current(connection, job_id, attempt, open_only=False)
    current = JobState(job["state"])
    if current.final:
        return current
    if current is JobState.CANCELLING:
        target, failure = states.apply(current, states.CONFIRM_CANCEL), None
    elif state is JobState.SUCCEEDED:
        target = states.apply(current, states.SUCCEED)
    elif state is JobState.CANCELLED:
        # The workflow was cancelled from outside (by an operator, in Temporal): the job still ends by its own rules.
        target = states.apply(states.apply(current, states.CANCEL), states.CONFIRM_CANCEL)
    else:
        target = states.apply(current, states.FAIL)
    outcome = {JobState.SUCCEEDED: "completed", JobState.CANCELLED: "cancelled"}.get(target, "failed")
    await end_open_leases(connection, job_id, outcome)
    if failure is not None:
        await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(failure=dict(failure)))
    detail = {} if failure is None else {"kind": failure["kind"], "message": failure["message"]}
    await append_event(connection, job_id, EventType.STATE_CHANGED, state=target, detail=detail)
    # What was still to be dispatched for it has lost its object.
    await connection.execute(
        update(outbox).where(outbox.c.job_id == job_id, outbox.c.state != "done").values(state="done", done_at=func.now())
    )
    await notify(connection, CHANNEL_SCHEDULER)
    return target
