"""What a watcher follows: one job, a job set, a project, or everything it may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, and_, true

from control_plane.db.tables import job_events


@dataclass(frozen=True, slots=True)
class JobScope:
    """One job."""

    job_id: str

    @property
    def condition(self) -> ColumnElement[bool]:
        """Selects its events."""
        return job_events.c.job_id == self.job_id

    @property
    def query(self) -> list[Any]:
        """What its cursors are bound to, as JSON values."""
        return ["job", self.job_id]


@dataclass(frozen=True, slots=True)
class JobSetScope:
    """Every job of a job set."""

    project: str
    job_set: str

    @property
    def condition(self) -> ColumnElement[bool]:
        """Selects its events: a job's belong to the set that it was in then."""
        return and_(job_events.c.project == self.project, job_events.c.job_set == self.job_set)

    @property
    def query(self) -> list[Any]:
        """What its cursors are bound to, as JSON values."""
        return ["job_set", self.project, self.job_set]


@dataclass(frozen=True, slots=True)
class ProjectScope:
    """Every job of a project."""

    project: str

    @property
    def condition(self) -> ColumnElement[bool]:
        """Selects its events."""
        return job_events.c.project == self.project

    @property
    def query(self) -> list[Any]:
        """What its cursors are bound to, as JSON values."""
        return ["project", self.project]


@dataclass(frozen=True, slots=True)
class VisibleScope:
    """Every job of the projects that a caller sees.

    Attributes:
        projects: which; None: all.
    """

    projects: frozenset[str] | None

    @property
    def condition(self) -> ColumnElement[bool]:
        """Selects its events."""
        return true() if self.projects is None else job_events.c.project.in_(sorted(self.projects))

    @property
    def query(self) -> list[Any]:
        """What its cursors are bound to. Roles come and go, and the cursor with what was seen stays good."""
        return ["visible"]


WatchScope: TypeAlias = JobScope | JobSetScope | ProjectScope | VisibleScope


def scopes_of(job_id: str, project: str, job_set: str) -> tuple[WatchScope, ...]:
    """Every scope that one event belongs to, but for those of callers who see some projects only."""
    scopes = (JobScope(job_id), ProjectScope(project), VisibleScope(None))
    return (*scopes, JobSetScope(project, job_set)) if job_set else scopes
