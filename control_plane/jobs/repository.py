"""Jobs in PostgreSQL. Every function works on a connection in its caller's transaction."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.events import EventType, append_event, notify
from control_plane.db.tables import (
    CHANNEL_EVENTS_WRITTEN,
    CHANNEL_OUTBOX,
    CHANNEL_SCHEDULER,
    base_models,
    datasets,
    job_events,
    jobs,
    outbox,
)
from control_plane.errors import FieldViolation, Reason, RefusedError
from control_plane.jobs import states
from control_plane.jobs.commands import SubmitJob
from control_plane.jobs.spec import JobSpec, canonical_sha256
from control_plane.jobs.states import JobState


async def resolve(connection: AsyncConnection, project: str, spec: JobSpec) -> tuple[JobSpec, dict[str, str]]:
    """The spec with its dataset pinned to a hash, and where its inputs are.

    Raises:
        RefusedError: the project has no such dataset, or there is no such base model.
    """
    query = (
        select(datasets.c.sha256, datasets.c.uri)
        .where(datasets.c.project == project, datasets.c.name == spec.dataset.name)
        .order_by(datasets.c.created_at.desc(), datasets.c.sha256)
        .limit(1)
    )
    if spec.dataset.sha256:
        query = query.where(datasets.c.sha256 == spec.dataset.sha256)
    dataset = (await connection.execute(query)).one_or_none()
    if dataset is None:
        pinned = f" with sha256 {spec.dataset.sha256}" if spec.dataset.sha256 else ""
        raise RefusedError(
            Reason.DATASET_NOT_FOUND,
            f"spec.fine_tune.dataset.name: project {project} has no dataset {spec.dataset.name!r}{pinned}; add it with "
            "`headway dataset add`, or list what there is with `headway dataset list`",
            {"dataset": spec.dataset.name, "project": project},
            [FieldViolation("spec.fine_tune.dataset.name", f"is {spec.dataset.name!r}; expected a dataset of the project")],
        )
    base_model = (
        await connection.execute(select(base_models.c.sha256, base_models.c.uri).where(base_models.c.name == spec.base_model))
    ).one_or_none()
    if base_model is None:
        raise RefusedError(
            Reason.BASE_MODEL_NOT_FOUND,
            f"spec.fine_tune.base_model: there is no base model {spec.base_model!r}; register it with "
            "`headway base-model add`, or list what there is with `headway base-model list`",
            {"base_model": spec.base_model},
            [FieldViolation("spec.fine_tune.base_model", f"is {spec.base_model!r}; expected a registered base model")],
        )
    pinned_spec = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"sha256": dataset.sha256})})
    return pinned_spec, {
        "dataset_uri": dataset.uri,
        "base_model_uri": base_model.uri,
        "base_model_sha256": base_model.sha256,
    }


async def new_job_row(
    connection: AsyncConnection, command: SubmitJob, spec: JobSpec, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """The row of a job about to be stored: complete, so that the response can be stored beside it."""
    now: datetime = (await connection.execute(select(func.now()))).scalar_one()
    return {
        "job_id": str(uuid.uuid4()),
        "project": command.project,
        "name": command.name,
        "type": spec.type,
        "spec": spec.model_dump(mode="json"),
        "spec_sha256": canonical_sha256(spec),
        "inputs": dict(inputs),
        "priority": command.priority,
        "state": str(JobState.QUEUED),
        "phase": None,
        "waiting_reason": "",
        "attempt": 0,
        # Inserted with its first event already counted.
        "event_sequence": 1,
        "checkpoint_step": 0,
        "failure": None,
        "result": {},
        "accelerator_ms": {},
        "trace_parent": command.trace_parent,
        "created_at": now,
        "updated_at": now,
        "ended_at": None,
        "version": 1,
    }


async def insert_job(connection: AsyncConnection, row: Mapping[Any, Any]) -> None:
    """Stores a job, its first event and the intent to start its workflow: all three or none."""
    await connection.execute(insert(jobs).values(**row))
    await connection.execute(
        insert(job_events).values(
            job_id=row["job_id"],
            project=row["project"],
            sequence=1,
            type=str(EventType.SUBMITTED),
            state=row["state"],
            attempt=0,
            detail={"priority": row["priority"], "spec_sha256": row["spec_sha256"]},
        )
    )
    await connection.execute(
        insert(outbox).values(
            kind="start_workflow",
            job_id=row["job_id"],
            dedupe_key=f"start/{row['job_id']}",
            trace_parent=row["trace_parent"],
            state="held",
        )
    )
    await notify(connection, CHANNEL_EVENTS_WRITTEN)
    await notify(connection, CHANNEL_SCHEDULER)


async def get_job(connection: AsyncConnection, job_id: str, *, for_update: bool = False) -> RowMapping:
    """The job's row.

    Raises:
        RefusedError: there is none.
    """
    query = select(jobs).where(jobs.c.job_id == job_id)
    if for_update:
        query = query.with_for_update()
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise job_not_found(job_id)
    return row


def job_not_found(job_id: str) -> RefusedError:
    """The refusal for a job that is not there, and equally for one the caller may not see."""
    return RefusedError(Reason.JOB_NOT_FOUND, f"there is no job {job_id}", {"job_id": job_id})


async def list_jobs(
    connection: AsyncConnection,
    project: str,
    job_states: Sequence[str],
    after: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[RowMapping]:
    """Rows of a project's jobs, newest first, beginning after the (created_at, job_id) given."""
    query = select(jobs).where(jobs.c.project == project)
    if job_states:
        query = query.where(jobs.c.state.in_(job_states))
    if after is not None:
        created_at, job_id = after
        query = query.where(or_(jobs.c.created_at < created_at, and_(jobs.c.created_at == created_at, jobs.c.job_id < job_id)))
    query = query.order_by(jobs.c.created_at.desc(), jobs.c.job_id.desc()).limit(limit)
    return (await connection.execute(query)).mappings().all()


async def cancel(connection: AsyncConnection, job_id: str, reason: str) -> RowMapping:
    """Moves a job towards its end: CANCELLED if nothing runs for it yet, else CANCELLING with the workflow told.

    A job that is CANCELLING already stays so. Returns the row afterwards.

    Raises:
        RefusedError: there is no such job.
        IllegalTransitionError: it is final.
    """
    job = await get_job(connection, job_id, for_update=True)
    state = JobState(job["state"])
    if state is JobState.CANCELLING:
        return job
    if state is JobState.QUEUED:
        target = states.apply(state, states.CANCEL_QUEUED)
        await connection.execute(
            update(outbox)
            .where(outbox.c.job_id == job_id, outbox.c.kind == "start_workflow", outbox.c.state == "held")
            .values(state="done", done_at=func.now(), last_error="void: cancelled before admission")
        )
    else:
        target = states.apply(state, states.CANCEL)
        await connection.execute(
            insert(outbox).values(
                kind="cancel_workflow",
                job_id=job_id,
                dedupe_key=f"cancel/{job_id}",
                trace_parent=job["trace_parent"],
                state="ready",
            )
        )
        await notify(connection, CHANNEL_OUTBOX)
    await append_event(connection, job_id, EventType.STATE_CHANGED, state=target, detail={"reason": reason})
    await notify(connection, CHANNEL_SCHEDULER)
    return await get_job(connection, job_id)
