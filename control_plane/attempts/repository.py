"""What an attempt changes, each in its caller's transaction and behind the fence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.fence import lock_current, lock_leased, refuse_foreign_manifest
from control_plane.attempts.retention import Retained, RetentionPolicy, released
from control_plane.db.events import EventType, append_event, notify
from control_plane.db.leases import OUTCOME_PAUSED, end_lease, end_open_leases
from control_plane.db.tables import CHANNEL_SCHEDULER, checkpoints, job_events, jobs, leases, model_versions
from control_plane.errors import Reason, RefusedError
from control_plane.jobs import states
from control_plane.jobs.states import JobPhase, JobState


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
    connection: AsyncConnection,
    job_id: str,
    attempt: int,
    policy: RetentionPolicy,
    *,
    step: int,
    manifest_uri: str,
    manifest_sha256: str,
    metric: float | None,
) -> None:
    """Makes a checkpoint the one to resume from, and releases what the policy keeps no more.

    A step that an earlier attempt committed is replaced.

    Raises:
        RefusedError: the attempt is stale or holds no lease, or the manifest is not its project's.
    """
    job = await lock_leased(connection, job_id, attempt)
    refuse_foreign_manifest(job, manifest_uri, manifest_sha256, "checkpoint.manifest_uri")
    written = await connection.execute(
        insert(checkpoints)
        .values(
            job_id=job_id,
            step=step,
            attempt=attempt,
            manifest_uri=manifest_uri,
            manifest_sha256=manifest_sha256,
            metric=metric,
        )
        .on_conflict_do_update(
            index_elements=["job_id", "step"],
            set_={
                "attempt": attempt,
                "manifest_uri": manifest_uri,
                "manifest_sha256": manifest_sha256,
                "metric": metric,
                "created_at": func.now(),
                "resumed_at": None,
            },
            where=checkpoints.c.attempt < attempt,
        )
    )
    if written.rowcount == 0:  # this attempt committed it before
        return
    await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(checkpoint_step=step))
    held = update(leases).where(leases.c.job_id == job_id, leases.c.attempt == attempt, leases.c.state == "GRANTED")
    await connection.execute(held.values(checkpointed_at=func.now()))
    detail: dict[str, Any] = {"step": step, "manifest_uri": manifest_uri}
    if steps := await _release_checkpoints(connection, job_id, job["project"], policy):
        detail["released_steps"] = steps
    await append_event(connection, job_id, EventType.CHECKPOINT_COMMITTED, phase=JobPhase.TRAIN, detail=detail)


async def _release_checkpoints(connection: AsyncConnection, job_id: str, project: str, policy: RetentionPolicy) -> list[int]:
    """Forgets the checkpoints that nothing keeps; returns their steps. Their bytes go when the store is next collected.

    The caller's transaction holds the job for its current attempt, which alone may be reading them.
    """
    referenced = (
        select(model_versions.c.version)
        .where(model_versions.c.project == project, model_versions.c.manifest_sha256 == checkpoints.c.manifest_sha256)
        .exists()
    )
    columns = (checkpoints.c.step, checkpoints.c.metric, checkpoints.c.resumed_at.is_not(None), referenced)
    rows = await connection.execute(select(*columns).where(checkpoints.c.job_id == job_id))
    steps = released([Retained(*row) for row in rows], policy)
    if steps:
        await connection.execute(checkpoints.delete().where(checkpoints.c.job_id == job_id, checkpoints.c.step.in_(steps)))
    return steps


async def list_checkpoints(connection: AsyncConnection, job_id: str, before_step: int, limit: int) -> Sequence[RowMapping]:
    """A job's committed checkpoints, newest first; only those below `before_step`, if it is not 0."""
    query = select(checkpoints).where(checkpoints.c.job_id == job_id)
    if before_step:
        query = query.where(checkpoints.c.step < before_step)
    return (await connection.execute(query.order_by(checkpoints.c.step.desc()).limit(limit))).mappings().all()


async def record_resume(
    connection: AsyncConnection, job_id: str, attempt: int, step: int, damaged_steps: Sequence[int]
) -> None:
    """Records where an attempt goes on from; what failed verification is never offered again. A repeat changes nothing.

    An attempt may do so more than once: its runner may find damage in what it was given.
    """
    await lock_leased(connection, job_id, attempt)
    detail = {"step": step, "damaged_steps": list(damaged_steps)}
    if await _last_resume(connection, job_id, attempt) == detail:
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
    proven = update(checkpoints).where(checkpoints.c.job_id == job_id, checkpoints.c.step == step)
    await connection.execute(proven.values(resumed_at=func.now()))
    await append_event(
        connection,
        job_id,
        EventType.RESUMED,
        phase=JobPhase.TRAIN,
        detail=detail,
    )


async def _last_resume(connection: AsyncConnection, job_id: str, attempt: int) -> Any:
    query = select(job_events.c.detail).where(
        job_events.c.job_id == job_id, job_events.c.attempt == attempt, job_events.c.type == str(EventType.RESUMED)
    )
    return (await connection.execute(query.order_by(job_events.c.sequence.desc()).limit(1))).scalar_one_or_none()


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
