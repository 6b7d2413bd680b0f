"""The jobs that a verb is meant for: one, those named by id, those of a job set, or those that a filter lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, RowMapping, String, and_, any_, bindparam, cast, exists, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.call import current_call
from control_plane.db.tables import jobs, leases, outbox
from control_plane.errors import FieldViolation, Reason, RefusedError, invalid_field, invalid_fields
from control_plane.identity.principal import Principal, Role
from control_plane.jobs import filters
from control_plane.jobs.filters import Filter
from control_plane.jobs.repository import job_not_found
from control_plane.jobs.spec import ProjectName, ResourceName
from control_plane.jobs.states import JobState
from control_plane.rpc.convert import identifier, validated_value
from headway.jobs.v1 import job_service_pb2 as pb

IDS_MAX = 1_000
JOBS_MAX = 10_000
"""Most jobs that one call acts on."""

_STEERERS = frozenset({Role.MAINTAINER, Role.ORG_ADMIN})


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs, before anybody looked; exactly one of `job_ids`, `job_set` and `said` is set."""

    job_ids: tuple[str, ...] = ()
    project: str = ""
    job_set: str = ""
    said: Filter | None = None

    @property
    def named(self) -> bool:
        """Whether each job was named, and so is answered for."""
        return bool(self.job_ids)


@dataclass(frozen=True, slots=True)
class LockedJob:
    """What a verb decides on. Its row is locked until the transaction ends."""

    job_id: str
    project: str
    type: str
    submitter: str
    state: JobState
    priority: int
    pauses: int
    version: int
    trace_parent: str
    admitted: bool
    """Whether it has a workflow, or is about to."""
    lease_id: str | None
    """The lease it holds."""
    preempting: bool
    """Whether that lease was asked back already."""


def selection_of(request: pb.JobSelection, path: str = "selection") -> Selection:
    """What a request selects.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    given = [name for name in ("job_ids", "job_set", "filter") if getattr(request, name)]
    if len(given) != 1:
        raise invalid_field(path, f"has {' and '.join(given) or 'none'} of job_ids, job_set and filter; expected exactly one")
    if given == ["job_ids"]:
        if request.project:
            raise invalid_field(f"{path}.project", "goes with job_set and filter; expected to be empty with job_ids")
        return Selection(job_ids=_job_ids(request.job_ids, f"{path}.job_ids"))
    validated_value(ProjectName, request.project, f"{path}.project")
    if given == ["job_set"]:
        validated_value(ResourceName, request.job_set, f"{path}.job_set")
        return Selection(project=request.project, job_set=request.job_set)
    said = filters.parse(request.filter, f"{path}.filter")
    if said is None:
        raise invalid_field(f"{path}.filter", "is blank; expected to say which jobs are meant")
    return Selection(project=request.project, said=said)


def _job_ids(asked: Sequence[str], path: str) -> tuple[str, ...]:
    if len(asked) > IDS_MAX:
        raise invalid_field(path, f"holds {len(asked):,}; expected at most {IDS_MAX:,}")
    seen: set[str] = set()
    violations: list[FieldViolation] = []
    for index, value in enumerate(asked):
        try:
            job_id = identifier(value, f"{path}[{index}]")
        except RefusedError as error:
            violations += error.violations
            continue
        if job_id in seen:
            violations.append(FieldViolation(f"{path}[{index}]", f"names job {job_id} again; expected each once"))
        seen.add(job_id)
    if violations:
        raise invalid_fields(violations)
    return tuple(asked_id.lower() for asked_id in asked)


def refusal_for(principal: Principal, job: LockedJob) -> RefusedError | None:
    """Why the caller may not steer a job; None if they may. The same rule as the policy's, which sees single jobs only."""
    if not principal.sees(job.project):
        return job_not_found(job.job_id)
    role = principal.role_in(job.project)
    if role in _STEERERS or (role is Role.SUBMITTER and job.submitter == principal.subject):
        return None
    return RefusedError(
        Reason.PERMISSION_DENIED,
        f"job {job.job_id} was submitted by {job.submitter or 'nobody known'}: only its submitter and the maintainers of"
        f" project {job.project} may steer it; ask one of them",
        {"method": current_call().method, "role_required": str(Role.MAINTAINER)},
    )


async def lock(
    connection: AsyncConnection, selection: Selection, candidates: ColumnElement[bool] | None
) -> tuple[list[LockedJob], bool]:
    """Locks the selected jobs that exist for the caller, in order of id; returns them, and whether more match.

    Args:
        connection: a connection in a transaction.
        selection: which jobs.
        candidates: what of a set or a filter's jobs the verb is meant for; those named are not held against it.
    """
    principal = current_call().principal
    if selection.named:
        condition = among(jobs.c.job_id, selection.job_ids)
        visible = principal.visible_projects()
        if visible is not None:
            condition = and_(condition, jobs.c.project.in_(sorted(visible)))
    else:
        condition = _condition(selection, candidates, principal)
    # Locked first and read afterwards: a statement that waited for a lock still sees the other tables as they were before.
    query = select(jobs.c.job_id).where(condition).order_by(jobs.c.job_id).limit(JOBS_MAX + 1).with_for_update()
    job_ids = (await connection.execute(query)).scalars().all()
    if not job_ids:
        return [], False
    rows = (await connection.execute(_DETAILS.where(among(jobs.c.job_id, job_ids[:JOBS_MAX])))).mappings()
    return [_locked(row) for row in rows], len(job_ids) > JOBS_MAX


def among(column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    """That a column has one of many values, which travel as one array."""
    return column == any_(bindparam(None, list(values), ARRAY(column.type)))


def _condition(selection: Selection, candidates: ColumnElement[bool] | None, principal: Principal) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = [jobs.c.project == selection.project]
    if selection.said is None:
        conditions += [jobs.c.job_set == selection.job_set, jobs.c.job_set != ""]
    else:
        conditions.append(filters.condition(selection.said))
    if candidates is not None:
        conditions.append(candidates)
    if principal.role_in(selection.project) not in _STEERERS:
        conditions.append(jobs.c.submitter == principal.subject)
    return and_(*conditions)


_HELD_LEASE = (
    select(leases.c.lease_id)
    .where(leases.c.job_id == jobs.c.job_id, leases.c.state == "GRANTED")
    .limit(1)
    # Said, for inside another subquery it would be some job's lease.
    .correlate(jobs)
    .scalar_subquery()
)
HOLDS_LEASE: ColumnElement[bool] = exists().where(leases.c.job_id == jobs.c.job_id, leases.c.state == "GRANTED")
_DETAILS = select(
    jobs.c.job_id,
    jobs.c.project,
    jobs.c.type,
    jobs.c.submitter,
    jobs.c.state,
    jobs.c.priority,
    jobs.c.pauses,
    jobs.c.version,
    jobs.c.trace_parent,
    jobs.c.admitted_at.is_not(None).label("admitted"),
    _HELD_LEASE.label("lease_id"),
    exists().where(outbox.c.dedupe_key == literal("preempt/") + cast(_HELD_LEASE, String)).label("preempting"),
).order_by(jobs.c.job_id)


def _locked(row: RowMapping) -> LockedJob:
    fields: dict[str, Any] = {**row, "state": JobState(row["state"])}
    return LockedJob(**fields)
