"""Who calls: a value made from a verified credential, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    """What a subject may do; the names are those of headway.projects.v1.Role without prefix."""

    VIEWER = "VIEWER"
    SUBMITTER = "SUBMITTER"
    MAINTAINER = "MAINTAINER"
    APPROVER = "APPROVER"
    ORG_ADMIN = "ORG_ADMIN"
    AUDITOR = "AUDITOR"
    WORKER = "WORKER"


PROJECT_ROLES = frozenset({Role.VIEWER, Role.SUBMITTER, Role.MAINTAINER, Role.APPROVER})
"""Roles that are held in one project."""
ORGANISATION_ROLES = frozenset({Role.ORG_ADMIN, Role.AUDITOR})
"""Roles that are held everywhere."""


class CredentialKind(StrEnum):
    """How a caller proved who they are; the names are those of headway.identity.v1.CredentialKind without prefix."""

    TOKEN = "TOKEN"  # noqa: S105 - a kind of credential, not one
    OIDC = "OIDC"
    CERTIFICATE = "CERTIFICATE"
    ATTEMPT = "ATTEMPT"


@dataclass(frozen=True, slots=True)
class AttemptBinding:
    """The one attempt that a worker's credential speaks for."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential was verified.

    Attributes:
        subject: `user:…`, `service:…`, `worker:…` or `attempt:JOB/NUMBER`; unique in the organisation.
        person: whom the subject stands for: people are told apart by it, whatever accounts they use.
        credential: how it was proved.
        credential_id: the token's id, or what else names the credential; never a secret.
        project_roles: by project.
        organisation_roles: ORG_ADMIN, AUDITOR or WORKER.
        attempt: for the credential of an attempt, which.
        expires_at: when the credential ends; None: never.
    """

    subject: str
    person: str
    credential: CredentialKind
    credential_id: str = ""
    project_roles: Mapping[str, Role] = field(default_factory=dict[str, Role])
    organisation_roles: frozenset[Role] = frozenset()
    attempt: AttemptBinding | None = None
    expires_at: datetime | None = None

    @property
    def org_admin(self) -> bool:
        """Whether they may do everything but a worker's writes."""
        return Role.ORG_ADMIN in self.organisation_roles

    @property
    def sees_every_project(self) -> bool:
        """Whether no project is hidden from them."""
        return self.org_admin or Role.AUDITOR in self.organisation_roles

    def visible_projects(self) -> frozenset[str] | None:
        """The projects whose jobs, data and quotas they may read; None: all. An approver sees no more than evidence."""
        if self.sees_every_project:
            return None
        return frozenset(project for project, role in self.project_roles.items() if role is not Role.APPROVER)

    def sees(self, project: str) -> bool:
        """Whether the project exists for them."""
        return self.sees_every_project or project in self.project_roles

    def role_in(self, project: str) -> Role | None:
        """The strongest of their roles that counts in a project."""
        if self.org_admin:
            return Role.ORG_ADMIN
        return self.project_roles.get(project) or (Role.AUDITOR if Role.AUDITOR in self.organisation_roles else None)
