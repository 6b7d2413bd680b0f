"""Asking for leases: any number in one transaction, each judged as if it were asked for by itself, after those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.fence import lock_jobs, stale
from control_plane.db.events import EventType, Happening, notify
from control_plane.db.histories import History, append_histories
from control_plane.db.tables import CHANNEL_SCHEDULER
from control_plane.errors import RefusedError
from control_plane.jobs import states
from control_plane.jobs.states import JobPhase, JobState
from scheduler.core.types import Resource, Shape

_KNOWN = text("SELECT lease_id::text, job_id::text FROM leases WHERE lease_id = ANY(CAST(:lease_ids AS uuid[]))")
# A job that asks again after its last lease was asked to yield goes on from where that one stood. A lease that has ended is
# known by when: its state would tempt the planner to look through all that have.
_STORE = text(
    """
    INSERT INTO leases (
        lease_id, job_id, project, phase, state, priority, max_run_seconds, accelerator_kind, accelerators, cpu_millis,
        memory_mib, members, spot, labels, topology, waiting_since
    )
    SELECT lease_id, job_id, project, phase, 'REQUESTED', priority, max_run_seconds, accelerator_kind, accelerators, cpu_millis,
        memory_mib, members, spot, labels::jsonb, topology::jsonb,
        coalesce(
            (
                SELECT CASE WHEN preempted_at IS NOT NULL AND outcome <> 'completed' THEN waiting_since END FROM leases AS last
                WHERE last.job_id = given.job_id AND ended_at IS NOT NULL AND granted_at IS NOT NULL
                ORDER BY ended_at DESC LIMIT 1
            ),
            now()
        )
    FROM unnest(
        CAST(:lease_ids AS uuid[]), CAST(:job_ids AS uuid[]), CAST(:projects AS text[]), CAST(:phases AS text[]),
        CAST(:priorities AS int[]), CAST(:max_run_seconds AS int[]), CAST(:kinds AS text[]), CAST(:accelerators AS int[]),
        CAST(:cpu_millis AS int[]), CAST(:memory_mib AS int[]), CAST(:members AS int[]), CAST(:spot AS boolean[]),
        CAST(:labels AS text[]), CAST(:topologies AS text[])
    ) WITH ORDINALITY AS given (
        lease_id, job_id, project, phase, priority, max_run_seconds, accelerator_kind, accelerators, cpu_millis,
        memory_mib, members, spot, labels, topology, place
    )
    ORDER BY place
    ON CONFLICT (lease_id) DO NOTHING
    RETURNING lease_id::text
    """
)


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A lease asked for.

    Attributes:
        lease_id: chosen by who asks, so that asking again asks for the same lease.
        job_id: the job that is to hold it.
        attempt: the attempt current when asking.
        phase: the phase that is to run under it.
        shape: what it holds.
        max_run_seconds: the longest it may be held.
    """

    lease_id: str
    job_id: str
    attempt: int
    phase: JobPhase
    shape: Shape
    max_run_seconds: int


async def request_leases(connection: AsyncConnection, requests: Sequence[LeaseRequest]) -> list[RefusedError | None]:
    """Stores requests for leases, once per lease id, and wakes the scheduler. A job still STARTING is RUNNING from then on.

    Args:
        connection: a connection in a transaction.
        requests: any number, those of one job in their order.

    Returns:
        Of each request, in order, why it was refused: there is no such job, the attempt is not its current one, or the job is
        final. None: it is stored, now or before.
    """
    named = {request.lease_id for request in requests}
    # A grant moves the attempt on, so a late repeat of a request is looked for before the fence.
    owners = {row.lease_id: row.job_id for row in await connection.execute(_KNOWN, {"lease_ids": sorted(named)})}
    asking = {request.job_id for request in requests if owners.get(request.lease_id) != request.job_id}
    jobs = await lock_jobs(connection, asking)
    refusals: list[RefusedError | None] = []
    new: dict[str, LeaseRequest] = {}
    for request in requests:
        known = owners.get(request.lease_id) == request.job_id
        refusal = None if known else stale(jobs.get(request.job_id), request.job_id, request.attempt)
        refusals.append(refusal)
        if refusal is None and request.lease_id not in owners:
            owners[request.lease_id] = request.job_id
            new[request.lease_id] = request
    if new:
        stored = {row.lease_id for row in await connection.execute(_STORE, _columns(list(new.values()), jobs))}
        await _append(connection, [request for lease_id, request in new.items() if lease_id in stored], jobs)
    return refusals


async def _append(connection: AsyncConnection, stored: Sequence[LeaseRequest], jobs: dict[str, RowMapping]) -> None:
    if not stored:
        return
    histories: dict[str, History] = {}
    for request in stored:
        job_id = request.job_id
        if job_id not in histories:
            histories[job_id] = history = History(job_id, JobState(jobs[job_id]["state"]))
            if history.state is JobState.STARTING:
                running = states.apply(JobState.STARTING, states.RUN)
                history.events.append((EventType.STATE_CHANGED, Happening(job_id, state=running)))
        detail = {
            "lease_id": request.lease_id,
            "accelerators": request.shape.accelerators,
            "accelerator_kind": request.shape.kind,
        }
        histories[job_id].events.append((EventType.LEASE_REQUESTED, Happening(job_id, detail, phase=request.phase)))
    await append_histories(connection, list(histories.values()))
    await notify(connection, CHANNEL_SCHEDULER)


def _columns(requests: Sequence[LeaseRequest], jobs: dict[str, RowMapping]) -> dict[str, list[Any]]:
    shapes = [request.shape for request in requests]
    return {
        "lease_ids": [request.lease_id for request in requests],
        "job_ids": [request.job_id for request in requests],
        "projects": [jobs[request.job_id]["project"] for request in requests],
        "phases": [str(request.phase) for request in requests],
        "priorities": [jobs[request.job_id]["priority"] for request in requests],
        "max_run_seconds": [request.max_run_seconds for request in requests],
        "kinds": [shape.kind for shape in shapes],
        "accelerators": [shape.member[Resource.ACCELERATORS] for shape in shapes],
        "cpu_millis": [shape.member[Resource.CPU_MILLIS] for shape in shapes],
        "memory_mib": [shape.member[Resource.MEMORY_MIB] for shape in shapes],
        "members": [shape.members for shape in shapes],
        "spot": [shape.spot for shape in shapes],
        "labels": [to_json(dict(shape.labels)).decode() for shape in shapes],
        "topologies": [_topology(shape) for shape in shapes],
    }


def _topology(shape: Shape) -> str | None:
    if shape.topology is None:
        return None
    return to_json({"level": shape.topology.level, "mode": str(shape.topology.mode)}).decode()
