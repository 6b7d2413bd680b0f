"""Why a job waits, and what of a project does. Nothing is planned anew: the scheduler wrote down why, and this reads it.

So the answer costs the same however much waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.budgets.standing import demoting_scope
from control_plane.jobs.repository import job_not_found
from control_plane.jobs.workflows import RUN_TYPES
from control_plane.rpc.convert import timestamp
from control_plane.scheduling import lines
from control_plane.scheduling.cluster import read_cluster
from control_plane.scheduling.queues import queue_state
from control_plane.scheduling.reasons import Sees, no_workflow, reason_messages, reason_of
from control_plane.scheduling.shapes import class_number, shape_message
from governance.budgets import Scope, ScopeKind
from governance.policies import TypePolicies
from headway.jobs.v1 import job_pb2
from headway.scheduler.v1 import scheduler_service_pb2 as pb
from headway.scheduler.v1 import wait_reason_pb2
from scheduler.core.reasons import NotEvaluated
from scheduler.core.types import Limits
from scheduler.shapes import shape_of

LINES_MAX = 1_000

_WAITING_FOR = {"job": pb.WAITING_FOR_ADMISSION, "lease": pb.WAITING_FOR_LEASE}
_ADMITTED = text(
    "SELECT count(*) FROM jobs WHERE project = :project AND state IN ('STARTING','RUNNING','PAUSING','PAUSED','CANCELLING')"
)


async def explain_job(
    connection: AsyncConnection, job_id: str, history_size: int, sees: Sees, limits: Limits, policies: TypePolicies
) -> pb.ExplainJobResponse:
    """Why a job waits.

    Args:
        connection: one whose transaction sees one moment.
        job_id: which.
        history_size: most changes of reasons.
        sees: whether the caller may see a project.
        limits: the scheduler's.
        policies: what a job's type does to its priority.

    Raises:
        RefusedError: there is no such job.
    """
    found = await lines.find_waiter(connection, job_id)
    if found is None:
        raise job_not_found(job_id)
    row, waiter = found
    response = pb.ExplainJobResponse(
        job_id=job_id,
        project=row["project"],
        state=job_pb2.JobState.Value(f"JOB_STATE_{row['state']}"),
        waiting_since=None if waiter is None else timestamp(waiter.since),
        start_by=None if waiter is None else timestamp(row["start_by"]),
        raised_time=None if waiter is None else timestamp(row["raised_at"]),
    )
    if waiter is None:
        return response
    response.waiting_for = _WAITING_FOR[waiter.kind]
    response.priority_class = class_number(waiter.priority_class)
    response.priority = waiter.priority
    response.demoted_by = await _demoted_by(connection, waiter.project)
    response.filler = policies.is_filler(waiter.job_type)
    response.shape.CopyFrom(shape_message(shape_of(waiter.shape)))
    response.ahead, response.line_length = await lines.place_in_line(connection, waiter, limits.aging_micros)
    response.ahead_counted_max = lines.COUNTED_MAX
    if waiter.kind == "job" and waiter.job_type not in RUN_TYPES:
        response.reasons.extend(reason_messages([no_workflow(waiter.job_type)], sees))
        response.reasons_time.CopyFrom(response.waiting_since)
        return response
    # One more than asked for: the newest is what holds now, whatever the history's size.
    rows = await lines.history(connection, waiter, max(1, history_size))
    response.history.extend(_change(change, sees) for change in rows[:history_size])
    if rows and rows[0]["reasons"]:
        now = _change(rows[0], sees)
        response.reasons.extend(now.reasons)
        response.reasons_time.CopyFrom(now.time)
    else:
        # It came since the last round.
        response.reasons.extend(reason_messages([NotEvaluated()], sees))
        response.reasons_time.CopyFrom(response.waiting_since)
    return response


async def _demoted_by(connection: AsyncConnection, project: str) -> str:
    scope = await demoting_scope(connection, project)
    match scope:
        case None:
            return ""
        case Scope(kind=ScopeKind.PROJECT, name=name):
            return name
        case Scope(kind=ScopeKind.TEAM, name=name):
            return f"team {name}"
        case _:
            return "the organisation"


def _change(row: Mapping[Any, Any], sees: Sees) -> wait_reason_pb2.WaitReasonChange:
    return wait_reason_pb2.WaitReasonChange(
        time=timestamp(row["since"]), reasons=reason_messages(map(reason_of, row["reasons"]), sees)
    )


async def explain_queue(
    connection: AsyncConnection, project: str, sees: Sees, limits: Limits, half_life_micros: int
) -> pb.ExplainQueueResponse:
    """What of a project waits and why, what it holds and what it has.

    Args:
        connection: one whose transaction sees one moment.
        project: which.
        sees: whether the caller may see a project.
        limits: the scheduler's.
        half_life_micros: of past use.
    """
    waiting = await lines.lines_of(connection, project, limits.aging_micros, LINES_MAX)
    reasons = await lines.newest_reasons(connection, project)
    admitted: int = (await connection.execute(_ADMITTED, {"project": project})).scalar_one()
    cluster = await read_cluster(connection, limits, half_life_micros, [project])
    counts = tuple(sum(line["count"] for line in waiting if line["kind"] == kind) for kind in ("job", "lease"))
    path = cluster.tree.path(cluster.tree.leaf(project))
    return pb.ExplainQueueResponse(
        project=project,
        lines=[_line(line, reasons, sees) for line in waiting],
        path=[queue_state(cluster, node, {project: (counts[0], counts[1])}) for node in path],
        jobs_admitted=admitted,
        demoted_by=await _demoted_by(connection, project),
    )


def _line(line: Mapping[Any, Any], known: Mapping[tuple[str, int, str], Mapping[Any, Any]], sees: Sees) -> pb.WaitingLine:
    stored = known.get((line["kind"], line["priority_class"], line["shape"]))
    since: datetime | None = None
    if line["job_type"]:
        reasons = [no_workflow(line["job_type"])]
    elif stored is not None and stored["reasons"]:
        reasons, since = list(map(reason_of, stored["reasons"])), stored["since"]
    else:
        reasons = [NotEvaluated()]
    return pb.WaitingLine(
        waiting_for=_WAITING_FOR[line["kind"]],
        priority_class=class_number(line["priority_class"]),
        shape=shape_message(shape_of(line["shape"])),
        count=line["count"],
        head_job_id=line["head"],
        oldest_time=timestamp(line["oldest"]),
        reasons=reason_messages(reasons, sees),
        reasons_time=timestamp(since),
    )
