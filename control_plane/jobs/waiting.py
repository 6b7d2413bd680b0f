"""Why a job waits, in words: derived from what the scheduler says of all that is alike, never stored by job.

The scheduler keeps reasons by project, class of priority and shape, for queued jobs and for lease requests apart. This is the
one place that says which of them are a job's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Case, ColumnElement, ScalarSelect, case, func, literal, select

from control_plane.db.scheduling_tables import waiting_reasons
from control_plane.db.tables import jobs, leases
from control_plane.jobs.states import UNDER_WAY, JobState
from control_plane.jobs.workflows import RUN_TYPES, waiting_without_workflow
from scheduler.core.types import CLASS_FLOORS


def _priority_class(priority: ColumnElement[int]) -> Case[int]:
    floors = sorted(CLASS_FLOORS.items(), reverse=True)
    return case(*((priority >= floor, int(priority_class)) for priority_class, floor in floors), else_=0)


def _words(kind: str, waiting: Any) -> ScalarSelect[str]:
    """The newest words of the group that a row of `jobs` or `leases` belongs to; none if nothing of it waits."""
    return (
        select(waiting_reasons.c.reasons[0]["words"].astext)
        .where(
            waiting_reasons.c.kind == kind,
            waiting_reasons.c.project == waiting.c.project,
            waiting_reasons.c.priority_class == _priority_class(waiting.c.priority),
            waiting_reasons.c.shape == waiting.c.shape,
        )
        .order_by(waiting_reasons.c.since.desc())
        .limit(1)
        .correlate(waiting)
        .scalar_subquery()
    )


_requested = leases.alias("requested")
_words_of_request = (
    select(_words("lease", _requested))
    .where(_requested.c.job_id == jobs.c.job_id, _requested.c.state == "REQUESTED")
    .order_by(_requested.c.requested_at, _requested.c.lease_id)
    .limit(1)
    .correlate(jobs)
    .scalar_subquery()
)
# One word in the text stands for the type.
_before, _after = waiting_without_workflow("\0").split("\0")

WAITING_REASON: ColumnElement[str] = func.coalesce(
    case(
        (
            jobs.c.state == JobState.QUEUED,
            case(
                (jobs.c.type.not_in(sorted(RUN_TYPES)), literal(_before).concat(jobs.c.type).concat(_after)),
                else_=_words("job", jobs),
            ),
        ),
        (jobs.c.state.in_(sorted(UNDER_WAY)), _words_of_request),
    ),
    "",
)
"""Of a row of `jobs`: why it waits; empty if it does not, or if no round has looked at it yet."""
