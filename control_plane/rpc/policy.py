"""Who may call what: one row for every method, and none that is not in the contract.

A method without a row is denied. `docs/reference/roles.md` is made of this table. What a row cannot know (a priority above the
project's ceiling, a role above one's own) the service behind it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from control_plane.identity.principal import Role

_EVIDENCE = frozenset({Role.VIEWER, Role.SUBMITTER, Role.MAINTAINER, Role.APPROVER, Role.ORG_ADMIN, Role.AUDITOR})
_READERS = _EVIDENCE - {Role.APPROVER}
_FOLLOWERS = _READERS - {Role.AUDITOR}
_SUBMITTERS = frozenset({Role.SUBMITTER, Role.MAINTAINER, Role.ORG_ADMIN})
_MAINTAINERS = frozenset({Role.MAINTAINER, Role.ORG_ADMIN})
_ADMINS = frozenset({Role.ORG_ADMIN})
_OVERSEERS = frozenset({Role.ORG_ADMIN, Role.AUDITOR})
_WORKERS = frozenset({Role.WORKER})
_NOBODY: frozenset[Role] = frozenset()

_KIB = 2**10
_MIB = 2**20


class Kind(StrEnum):
    """What an identifier in a request names."""

    PROJECT = "project"
    JOB = "job"
    TOKEN = "token"  # noqa: S105 - the word
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a request something is named: a path of fields, joined by dots."""

    kind: Kind
    path: str


class Unnamed(StrEnum):
    """What a request means that names none of its places."""

    INCOMPLETE = "incomplete"
    """Nothing: it is refused."""
    VISIBLE = "visible"
    """All the caller may see; they must hold a role of the row somewhere, and the service filters."""
    ORGANISATION = "organisation"
    """The organisation; the row's organisation-wide roles may."""


class AttemptUse(StrEnum):
    """What the credential of an attempt is good for in a method."""

    NONE = "none"
    READS = "reads"
    """Its own job."""
    WRITES = "writes"
    """Its own job and attempt; and nothing else is good for this method."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the policy.

    Attributes:
        roles: who may: roles held in the project concerned, or in the organisation.
        places: where the request names what it is about; empty: it is about the organisation.
        unnamed: what it means if none of the places is filled in.
        own: roles that may where the job was submitted by the caller.
        attempt: what an attempt's credential may.
        access: everyone without a credential; anyone with one; or those of the roles.
        heartbeat: it is called all the time to say that nothing has changed: successes are counted together in the audit log.
        bytes_max: the longest request, or message of a request stream.
        judges_text: its service holds every text of the request to a pattern without NUL, so the chain need not look for one.
    """

    roles: frozenset[Role] = _NOBODY
    places: tuple[Place, ...] = ()
    unnamed: Unnamed = Unnamed.INCOMPLETE
    own: frozenset[Role] = _NOBODY
    attempt: AttemptUse = AttemptUse.NONE
    access: Literal["everyone", "anyone", "roles"] = "roles"
    heartbeat: bool = False
    bytes_max: int = 2 * _MIB
    judges_text: bool = False

    @property
    def of_organisation(self) -> bool:
        """Whether only organisation-wide roles can count."""
        return not self.places and self.access == "roles" and self.unnamed is not Unnamed.VISIBLE


def _project(path: str) -> tuple[Place, ...]:
    return (Place(Kind.PROJECT, path),)


def _job(path: str) -> tuple[Place, ...]:
    return (Place(Kind.JOB, path),)


_EVERYONE = Rule(access="everyone", bytes_max=4 * _KIB)
_ANYONE = Rule(access="anyone", bytes_max=4 * _KIB)
_ATTEMPT = Rule(places=_job("job_id"), attempt=AttemptUse.WRITES)
_STEER = Rule(
    _MAINTAINERS,
    (Place(Kind.JOB, "job_id"), Place(Kind.PROJECT, "selection.project")),
    Unnamed.VISIBLE,
    own=frozenset({Role.SUBMITTER}),
)

DENIED = Rule()
"""The row of a method that has none: nobody may."""

REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

POLICY: Mapping[str, Rule] = {
    "grpc.health.v1.Health/Check": _EVERYONE,
    "grpc.health.v1.Health/List": _EVERYONE,
    "grpc.health.v1.Health/Watch": _EVERYONE,
    REFLECTION: Rule(_ADMINS, bytes_max=4 * _KIB),
    "headway.attempts.v1.AttemptService/BatchFinishJobs": Rule(_WORKERS),
    "headway.attempts.v1.AttemptService/BatchRequestLeases": Rule(_WORKERS),
    "headway.attempts.v1.AttemptService/CommitCheckpoint": _ATTEMPT,
    "headway.attempts.v1.AttemptService/ConfirmPause": _ATTEMPT,
    "headway.attempts.v1.AttemptService/FinishJob": _ATTEMPT,
    "headway.attempts.v1.AttemptService/FinishPhase": _ATTEMPT,
    "headway.attempts.v1.AttemptService/ListCheckpoints": _ATTEMPT,
    "headway.attempts.v1.AttemptService/RecordResume": _ATTEMPT,
    "headway.attempts.v1.AttemptService/ReleaseLease": _ATTEMPT,
    "headway.attempts.v1.AttemptService/RenewLease": Rule(
        places=_job("job_id"), attempt=AttemptUse.WRITES, heartbeat=True, bytes_max=4 * _KIB
    ),
    "headway.attempts.v1.AttemptService/RequestLease": _ATTEMPT,
    "headway.attempts.v1.AttemptService/StartPhase": _ATTEMPT,
    "headway.audit.v1.AuditService/GetAuditHead": Rule(_OVERSEERS, bytes_max=4 * _KIB),
    "headway.audit.v1.AuditService/ListAuditRecords": Rule(_MAINTAINERS | _OVERSEERS, _project("project"), Unnamed.VISIBLE),
    "headway.capacity.v1.CapacityService/DeleteWorker": Rule(_ADMINS),
    "headway.capacity.v1.CapacityService/ListWorkers": Rule(access="anyone"),
    "headway.capacity.v1.CapacityService/RegisterNodePool": Rule(_WORKERS, heartbeat=True),
    "headway.capacity.v1.CapacityService/RegisterWorker": Rule(_WORKERS, heartbeat=True, bytes_max=4 * _KIB),
    "headway.datasets.v1.DatasetService/CreateUpload": Rule(_SUBMITTERS, _project("project")),
    "headway.datasets.v1.DatasetService/ListDatasets": Rule(_READERS, _project("project")),
    "headway.datasets.v1.DatasetService/RegisterDataset": Rule(_SUBMITTERS, _project("dataset.project")),
    "headway.identity.v1.IdentityService/CreateToken": Rule(_MAINTAINERS, _project("project"), Unnamed.ORGANISATION),
    "headway.identity.v1.IdentityService/IssueAttemptToken": Rule(_WORKERS, bytes_max=4 * _KIB),
    "headway.identity.v1.IdentityService/ListTokens": Rule(_MAINTAINERS, _project("project"), Unnamed.ORGANISATION),
    "headway.identity.v1.IdentityService/RevokeToken": Rule(_MAINTAINERS, (Place(Kind.TOKEN, "token_id"),)),
    "headway.identity.v1.IdentityService/WhoAmI": _ANYONE,
    "headway.jobs.v1.JobService/BatchSubmitJobs": Rule(_SUBMITTERS, _project("project"), bytes_max=4 * _MIB, judges_text=True),
    "headway.jobs.v1.JobService/CancelJob": _STEER,
    "headway.jobs.v1.JobService/DiffJobs": Rule(_READERS, _job("job_id") + _job("other_job_id")),
    "headway.jobs.v1.JobService/GetJob": Rule(_READERS, _job("job_id"), attempt=AttemptUse.READS),
    "headway.jobs.v1.JobService/GetJobSet": Rule(_READERS, _project("project")),
    "headway.jobs.v1.JobService/ListJobSets": Rule(_READERS, _project("project")),
    "headway.jobs.v1.JobService/ListJobs": Rule(_READERS, _project("project"), Unnamed.VISIBLE),
    "headway.jobs.v1.JobService/PauseJob": _STEER,
    "headway.jobs.v1.JobService/PreemptJob": _STEER,
    "headway.jobs.v1.JobService/ReprioritizeJob": _STEER,
    "headway.jobs.v1.JobService/RerunJob": Rule(_MAINTAINERS, _job("job_id"), own=frozenset({Role.SUBMITTER})),
    "headway.jobs.v1.JobService/ResumeJob": _STEER,
    "headway.jobs.v1.JobService/SubmitJob": Rule(_SUBMITTERS, _project("project"), judges_text=True),
    "headway.jobs.v1.JobService/UpdateJob": Rule(_MAINTAINERS, _job("job.job_id"), own=frozenset({Role.SUBMITTER})),
    "headway.jobs.v1.JobService/WatchEvents": Rule(
        _READERS,
        (Place(Kind.JOB, "job_id"), Place(Kind.PROJECT, "project"), Place(Kind.PROJECT, "job_set.project")),
        Unnamed.VISIBLE,
        attempt=AttemptUse.READS,
    ),
    "headway.logs.v1.LogService/AppendLogs": Rule(places=_job("job_id"), attempt=AttemptUse.WRITES, heartbeat=True),
    "headway.logs.v1.LogService/StreamProgress": Rule(_FOLLOWERS, _job("job_id")),
    "headway.logs.v1.LogService/TailLogs": Rule(_FOLLOWERS, _job("job_id")),
    "headway.projects.v1.ProjectService/CreateProject": Rule(_ADMINS),
    "headway.projects.v1.ProjectService/DeleteProject": Rule(_ADMINS),
    "headway.projects.v1.ProjectService/GetProject": Rule(_EVIDENCE, _project("name")),
    "headway.projects.v1.ProjectService/ListMembers": Rule(_READERS, _project("project"), Unnamed.ORGANISATION),
    "headway.projects.v1.ProjectService/ListProjects": Rule(_EVIDENCE, (), Unnamed.VISIBLE),
    "headway.projects.v1.ProjectService/RemoveMember": Rule(_MAINTAINERS, _project("project"), Unnamed.ORGANISATION),
    "headway.projects.v1.ProjectService/SetMember": Rule(_MAINTAINERS, _project("member.project"), Unnamed.ORGANISATION),
    "headway.projects.v1.ProjectService/UpdateProject": Rule(_MAINTAINERS, _project("name")),
    "headway.quotas.v1.QuotaService/DeleteBudget": Rule(_ADMINS, _project("project"), Unnamed.ORGANISATION),
    "headway.quotas.v1.QuotaService/DeletePrice": Rule(_ADMINS),
    "headway.quotas.v1.QuotaService/DeleteQuota": Rule(_ADMINS, _project("project"), Unnamed.ORGANISATION),
    "headway.quotas.v1.QuotaService/GetBudget": Rule(_READERS, _project("project"), Unnamed.VISIBLE),
    "headway.quotas.v1.QuotaService/GetQuota": Rule(_READERS, _project("project"), Unnamed.VISIBLE),
    "headway.quotas.v1.QuotaService/GetReport": Rule(_READERS, _project("project"), Unnamed.VISIBLE),
    "headway.quotas.v1.QuotaService/GetUsage": Rule(_READERS, _project("project")),
    "headway.quotas.v1.QuotaService/ListBudgets": Rule(_READERS, (), Unnamed.VISIBLE),
    "headway.quotas.v1.QuotaService/ListLedgerEntries": Rule(_READERS, _project("project"), Unnamed.ORGANISATION),
    "headway.quotas.v1.QuotaService/ListPrices": Rule(_READERS, (), Unnamed.VISIBLE),
    "headway.quotas.v1.QuotaService/ListQuotas": Rule(_READERS, (), Unnamed.VISIBLE),
    "headway.quotas.v1.QuotaService/SetBudget": Rule(_ADMINS, _project("budget.project"), Unnamed.ORGANISATION),
    "headway.quotas.v1.QuotaService/SetPrice": Rule(_ADMINS),
    "headway.quotas.v1.QuotaService/SetQuota": Rule(_ADMINS, _project("quota.project"), Unnamed.ORGANISATION),
    "headway.registry.v1.RegistryService/GetModelVersion": Rule(_EVIDENCE, _project("project")),
    "headway.registry.v1.RegistryService/ListBaseModels": Rule(_EVIDENCE, (), Unnamed.VISIBLE),
    "headway.registry.v1.RegistryService/ListModelVersions": Rule(_EVIDENCE, _project("project")),
    "headway.registry.v1.RegistryService/RecordMirror": _ATTEMPT,
    "headway.registry.v1.RegistryService/RegisterBaseModel": Rule(_ADMINS),
    "headway.registry.v1.RegistryService/RegisterModelVersion": _ATTEMPT,
    "headway.scheduler.v1.SchedulerService/CordonNode": Rule(_ADMINS),
    "headway.scheduler.v1.SchedulerService/DrainNode": Rule(_ADMINS),
    "headway.scheduler.v1.SchedulerService/ExplainJob": Rule(_READERS, _job("job_id"), attempt=AttemptUse.READS),
    "headway.scheduler.v1.SchedulerService/ExplainQueue": Rule(_READERS, _project("project")),
    "headway.scheduler.v1.SchedulerService/GetSnapshot": Rule(_OVERSEERS),
    "headway.scheduler.v1.SchedulerService/Simulate": Rule(_SUBMITTERS, _project("submission.project"), Unnamed.ORGANISATION),
    "headway.scheduler.v1.SchedulerService/UncordonNode": Rule(_ADMINS),
    "headway.webhooks.v1.WebhookService/CreateWebhook": Rule(_MAINTAINERS, _project("webhook.project")),
    "headway.webhooks.v1.WebhookService/DeleteWebhook": Rule(_MAINTAINERS, (Place(Kind.WEBHOOK, "webhook_id"),)),
    "headway.webhooks.v1.WebhookService/ListWebhookDeliveries": Rule(_READERS, (Place(Kind.WEBHOOK, "webhook_id"),)),
    "headway.webhooks.v1.WebhookService/ListWebhooks": Rule(_READERS, _project("project")),
}

BYTES_MAX = max(rule.bytes_max for rule in POLICY.values())
"""The longest message that any method takes."""


def policy(reflection: Literal["org_admins", "everyone"]) -> Mapping[str, Rule]:
    """The policy of a server.

    Args:
        reflection: who may ask for the contract; "everyone" is every caller with a credential.
    """
    return POLICY if reflection == "org_admins" else {**POLICY, REFLECTION: _ANYONE}
