"""How jobs end: any number in one transaction, each judged as if it ended by itself, after those before it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.fence import lock_jobs, stale
from control_plane.db.events import EventType, Happening, notify
from control_plane.db.histories import History, append_histories
from control_plane.db.leases import Ending, close_leases, settle_leases
from control_plane.db.tables import CHANNEL_SCHEDULER
from control_plane.errors import RefusedError
from control_plane.jobs import states
from control_plane.jobs.states import IllegalTransitionError, JobState

_OPEN_LEASES = text(
    """
    SELECT lease_id::text, job_id::text FROM leases
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND state <> 'ENDED' ORDER BY job_id, lease_id
    """
)
_FAILURES = text(
    """
    UPDATE jobs SET failure = given.failure::jsonb
    FROM unnest(CAST(:job_ids AS uuid[]), CAST(:failures AS text[])) AS given (job_id, failure)
    WHERE jobs.job_id = given.job_id
    """
)
# What was still to be dispatched for them has lost its object.
_WITHDRAW = text(
    "UPDATE outbox SET state = 'done', done_at = now() WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND state <> 'done'"
)


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ends.

    Attributes:
        job_id: the job.
        attempt: the attempt current at the end.
        state: SUCCEEDED, FAILED or CANCELLED, as its workflow says.
        failure: why, when FAILED.
    """

    job_id: str
    attempt: int
    state: JobState
    failure: Mapping[str, Any] | None = None


async def finish_job(connection: AsyncConnection, end: JobEnd) -> JobState:
    """As `finish_jobs`, for one job.

    Raises:
        RefusedError, IllegalTransitionError: as there.
    """
    [outcome] = await finish_jobs(connection, [end])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def finish_jobs(
    connection: AsyncConnection, ends: Sequence[JobEnd]
) -> list[JobState | RefusedError | IllegalTransitionError]:
    """Moves jobs to their final states and ends the leases that they still hold or ask for; wakes the scheduler.

    A repeat changes nothing. A job that was asked to stop ends as CANCELLED, whatever its workflow made of itself.

    Args:
        connection: a connection in a transaction.
        ends: any number.

    Returns:
        Of each, in order, the state the job is in then; or why nothing was changed: there is no such job, the attempt is not
        its current one, or it cannot end so from where it stands.
    """
    jobs = await lock_jobs(connection, {end.job_id for end in ends})
    reached = {job_id: JobState(job["state"]) for job_id, job in jobs.items()}
    outcomes: list[JobState | RefusedError | IllegalTransitionError] = []
    final: dict[str, JobEnd] = {}
    for end in ends:
        refusal = stale(jobs.get(end.job_id), end.job_id, end.attempt, open_only=False)
        if refusal is not None:
            outcomes.append(refusal)
            continue
        if not reached[end.job_id].final:
            try:
                reached[end.job_id], failure = _target(reached[end.job_id], end)
            except IllegalTransitionError as error:
                outcomes.append(error)
                continue
            final[end.job_id] = JobEnd(end.job_id, end.attempt, reached[end.job_id], failure)
        outcomes.append(reached[end.job_id])
    if final:
        await _write(connection, final, {job_id: JobState(jobs[job_id]["state"]) for job_id in final})
    return outcomes


def _target(current: JobState, end: JobEnd) -> tuple[JobState, Mapping[str, Any] | None]:
    """The final state, and the failure that is to be kept.

    Raises:
        IllegalTransitionError: the job cannot end so from where it stands.
    """
    if current is JobState.CANCELLING:
        return states.apply(current, states.CONFIRM_CANCEL), None
    if end.state is JobState.SUCCEEDED:
        return states.apply(current, states.SUCCEED), end.failure
    if end.state is JobState.CANCELLED:
        # The workflow was cancelled from outside (by an operator, in Temporal): the job still ends by its own rules.
        return states.apply(states.apply(current, states.CANCEL), states.CONFIRM_CANCEL), end.failure
    return states.apply(current, states.FAIL), end.failure


async def _write(connection: AsyncConnection, final: Mapping[str, JobEnd], before: Mapping[str, JobState]) -> None:
    job_ids = list(final)
    histories = {job_id: History(job_id, before[job_id]) for job_id in job_ids}
    still_open = (await connection.execute(_OPEN_LEASES, {"job_ids": job_ids})).all()
    endings = [Ending(row.lease_id, _outcome(final[row.job_id].state)) for row in still_open]
    closed = await close_leases(connection, endings) if endings else []
    for lease in closed:
        history = histories[lease.job_id]
        history.events.append((EventType.LEASE_ENDED, lease.ended))
        if lease.granted_kind is not None:
            history.used_ms[lease.granted_kind] = history.used_ms.get(lease.granted_kind, 0) + lease.used_ms
    failures = {job_id: end.failure for job_id, end in final.items() if end.failure is not None}
    if failures:
        told = [json.dumps(dict(failure)) for failure in failures.values()]
        await connection.execute(_FAILURES, {"job_ids": list(failures), "failures": told})
    for job_id, end in final.items():
        detail = {} if end.failure is None else {"kind": end.failure["kind"], "message": end.failure["message"]}
        histories[job_id].events.append((EventType.STATE_CHANGED, Happening(job_id, detail, state=end.state)))
    await append_histories(connection, list(histories.values()))
    await connection.execute(_WITHDRAW, {"job_ids": job_ids})
    await settle_leases(connection, closed)
    await notify(connection, CHANNEL_SCHEDULER)


def _outcome(state: JobState) -> str:
    return {JobState.SUCCEEDED: "completed", JobState.CANCELLED: "cancelled"}.get(state, "failed")
