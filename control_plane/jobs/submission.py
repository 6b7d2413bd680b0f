"""A request for jobs on its way into the database: what was asked, what each became, and what is answered.

A submission is one call, with one job or with a thousand. Everything about it that needs no database is done before it is
queued; the group writer then looks up what it names, settles each job, and commits many submissions at once.
"""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from control_plane.call import Call
from control_plane.capacity.largest import Demand, LargestNodes
from control_plane.db.idempotency import RequestKey
from control_plane.errors import FieldViolation, Reason, RefusedError
from control_plane.jobs.commands import PRIORITY_DEFAULT
from control_plane.jobs.resolve import Found, Reference, locations, pinned, pinned_json, references_of, resources_of
from control_plane.jobs.spec import JobSpec, RetrainSpec, canonical_json
from governance.policies import TypePolicies, start_by


# Neither this nor what it becomes is frozen: a batch makes thousands, and a frozen one costs three times as much to make.
@dataclass(slots=True)
class NewJob:
    """A job asked for, valid in itself.

    Attributes:
        name: for people.
        spec: as asked, defaults filled in.
        priority: as asked; None: the default.
        path: what its fields' paths begin with, such as "items[3]."; empty for a single one.
        references: what the spec names.
        demand: what each of its leases will hold.
        content: the spec's canonical JSON.
    """

    name: str
    spec: JobSpec
    priority: int | None
    path: str = ""
    references: tuple[Reference, ...] = field(init=False)
    demand: Demand = field(init=False)
    content: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.content = canonical_json(self.spec)
        self.references = references_of(self.spec)
        _, resources = resources_of(self.spec)
        self.demand = Demand(resources.accelerator_kind, resources.accelerators)


@dataclass(slots=True)
class StoredJob:
    """A job as it is stored; what is not here has the value that every new job begins with."""

    job_id: uuid.UUID
    name: str
    type: str
    spec_json: str
    spec_sha256: str
    inputs: Mapping[str, Any]
    priority: int
    created_at: datetime
    start_by: datetime | None = None
    """The latest start that keeps its deadline; None: it has none."""


Outcome: TypeAlias = "StoredJob | RefusedError"


@dataclass(slots=True)
class Submission:
    """One call that submits.

    Attributes:
        call: who asks; its record is written with the jobs.
        key: what a repeat is recognised by; None for a dry run, which stores nothing.
        project: the project that will own the jobs.
        jobs: what is asked for. An item that is refused already stands as its refusal.
        respond: the response's bytes, from the outcome of every item.
        job_set: where to put them; empty: nowhere.
        trace_parent: the trace they begin in.
        rerun_of: the job they repeat, if they do.
        atomic: whether one refusal refuses all.
        outcomes: what became of each item; filled in by the writer.
    """

    call: Call
    key: RequestKey | None
    project: str
    jobs: Sequence[NewJob | RefusedError]
    respond: Callable[[Sequence[Outcome]], bytes]
    job_set: str = ""
    trace_parent: str = ""
    rerun_of: str | None = None
    atomic: bool = True
    outcomes: list[Outcome] = field(default_factory=list["StoredJob | RefusedError"])


@dataclass(frozen=True, slots=True)
class ProjectRules:
    """What a project says of new jobs."""

    priority_max: int
    """The highest priority its members may give."""


def settle(
    new: NewJob,
    project: str,
    rules: ProjectRules,
    found: Mapping[Reference, Found],
    largest: LargestNodes,
    policies: TypePolicies,
    now: datetime,
    *,
    org_admin: bool,
) -> Outcome:
    """The job to store for one that was asked for, or why there is none.

    Args:
        new: what was asked for.
        project: its project.
        rules: that project's.
        found: what specs of the project name, as far as it exists.
        largest: nodes.
        policies: what its type does to its priority.
        now: the transaction's time.
        org_admin: whether the caller may go above the project's ceiling.
    """
    priority = min(PRIORITY_DEFAULT, rules.priority_max) if new.priority is None else new.priority
    if priority > rules.priority_max and not org_admin:
        return above_ceiling(project, priority, rules.priority_max, f"{new.path}priority")
    if not all(reference in found for reference in new.references):
        try:
            pinned(project, new.spec, found, f"{new.path}spec")
        except RefusedError as refusal:  # it names whatever is missing
            return refusal
    if not largest.holds(new.demand):
        path, _ = resources_of(new.spec, f"{new.path}spec")
        return largest.refusal(new.demand, path)
    content = pinned_json(new.spec, new.content, found)
    return StoredJob(
        job_id=new_job_id(),
        name=new.name,
        type=new.spec.type,
        spec_json=content.decode(),
        spec_sha256=hashlib.sha256(content).hexdigest(),
        inputs=locations(new.spec, found),
        priority=policies.settled(new.spec.type, priority),
        created_at=now,
        start_by=_start_by(new.spec, now),
    )


def _start_by(spec: JobSpec, now: datetime) -> datetime | None:
    if not isinstance(spec, RetrainSpec):
        return None
    return start_by(now, spec.min_interval_seconds, spec.fine_tune.resources.max_run_seconds)


def above_ceiling(project: str, priority: int, ceiling: int, path: str) -> RefusedError:
    """The refusal of a priority that the project's members may not give."""
    found = f"is {priority}; the ceiling of project {project} is {ceiling}, and only an organisation's admin may go above"
    metadata = {"role_required": "ORG_ADMIN", "project": project, "maximum": str(ceiling)}
    return RefusedError(Reason.PERMISSION_DENIED, f"{path}: {found}", metadata, [FieldViolation(path, found)])


def new_job_id() -> uuid.UUID:
    """A UUID that begins with the time (version 7, RFC 9562 §5.7), so that new rows stand together in every index."""
    milliseconds = time.time_ns() // 1_000_000
    chance = random.getrandbits(74)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | (chance >> 62) << 64 | 2 << 62 | chance & (1 << 62) - 1)
