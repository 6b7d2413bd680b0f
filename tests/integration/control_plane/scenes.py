"""What each request of the role matrix is about: made for it alone, in the caller's project, in another, or nowhere."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api, new_id

FAR = 4_000_000_000
"""Seconds since 1970: a time that has not come."""


@dataclass(frozen=True)
class Row:
    """What is expected of one method where requests name one kind of thing."""

    rpc: str
    scope: str
    cells: dict[str, str]

    @property
    def places(self) -> tuple[str, ...]:
        """Where the object may be: in the caller's project (x's: not theirs), in another, or nowhere."""
        return ("own",) if self.scope == "none" else ("own", "other", "missing")

    def expected(self, role: str, place: str) -> str:
        """The cell, for an object in the caller's project, in another, or one that there is not."""
        cell = self.cells[role]
        if place == "own" or role in {"an", "k"}:
            return cell
        if self.scope == "attempt":
            return "F" if role == "w" else cell
        if role == "w":
            return "N" if cell == "✓" else cell
        # Who sees every project is refused as in their own, and finds what is not there missing like everybody.
        return cell if role in {"o", "a"} and place == "other" else "N"


@dataclass(frozen=True)
class Scene:
    """What a request is about, there for it alone.

    Attributes:
        project: PROJECT, another one, or none that there is.
        job_id: a job of it, in attempt 1; of nobody, if there is no such project.
        other_job_id: another one.
        lease_id: what its attempt holds.
        token_id: a token of it.
        webhook_id: a webhook of it.
        node: a worker, and a team, of this name.
        sha256: of bytes that were uploaded to it.
        manifest_uri: where a manifest could be.
    """

    project: str
    job_id: str
    other_job_id: str
    lease_id: str
    token_id: str
    webhook_id: str
    node: str
    sha256: str
    manifest_uri: str


BUDGET = (
    "INSERT INTO budgets (kind, scope, period, hard_micros, at_hard_limit, alert_percents, setter)"
    " VALUES (:kind, :scope, 'MONTH', 1, 'WARN', '{}', 'x')"
)
"""Gives a node a budget."""


def new_name() -> str:
    """A name that nothing has."""
    return f"n{uuid.uuid4().hex[:16]}"


# The state a job must be in for a verb to be of use.
_STATE_FOR = {
    "JobService/ResumeJob": "PAUSED",
    "JobService/PreemptJob": "RUNNING",
    "AttemptService/ConfirmPause": "PAUSING",
    "JobService/WatchEvents": "CANCELLED",
    "LogService/TailLogs": "CANCELLED",
    "LogService/StreamProgress": "CANCELLED",
}

_JOB = """
    INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, attempt, submitter, job_set,
        admitted_at, ended_at, event_sequence)
    SELECT CAST(:job_id AS uuid), CAST(:project AS text), 'a job', type, spec, spec_sha256, inputs, 500, CAST(:state AS text),
        1, CAST(:submitter AS text), 'sweep', now(), CASE CAST(:state AS text) WHEN 'CANCELLED' THEN now() END, 1
    FROM jobs WHERE job_id = CAST(:template AS uuid)
"""


class Stage:
    """Makes scenes, in a database where much is there already."""

    def __init__(self, api: Api, template: str, other_project: str) -> None:
        """Args:
        api: an admin.
        template: a job whose spec all others have.
        other_project: beside PROJECT.
        """
        self._api = api
        self._template = template
        self._other_project = other_project

    async def scene(self, row: Row, place: str, submitter: str) -> Scene:
        """Something for one request to be about."""
        project = {"own": PROJECT, "other": self._other_project, "missing": "nowhere"}[place]
        sha256, uri = self._api.put(PROJECT if place == "missing" else project, b"bytes\n")
        scene = Scene(project, *(new_id() for _ in range(5)), node=new_name(), sha256=sha256, manifest_uri=uri)
        if place != "missing":
            await self._fill(scene, row, submitter)
        return scene

    async def _fill(self, scene: Scene, row: Row, submitter: str) -> None:
        sql: Callable[..., Awaitable[Any]] = self._api.sql
        state = _STATE_FOR.get(row.rpc, "RUNNING")
        for job_id in (scene.job_id, scene.other_job_id):
            await sql(_JOB, job_id=job_id, project=scene.project, state=state, submitter=submitter, template=self._template)
        await sql(
            "INSERT INTO job_events (job_id, project, sequence, type, state, attempt)"
            " VALUES (:job_id, :project, 1, 'SUBMITTED', :state, 1)",
            job_id=scene.job_id,
            project=scene.project,
            state=state,
        )
        await sql(
            "INSERT INTO workers (name, incarnation, accelerator_kind, accelerators) VALUES (:node, :job_id, 'cpu', 1)",
            node=scene.node,
            job_id=scene.job_id,
        )
        await sql("INSERT INTO queue_nodes (kind, name) VALUES ('TEAM', :node)", node=scene.node)
        # A team that has one is not deleted.
        if row.rpc != "QuotaService/DeleteQuota":
            await sql(BUDGET, kind="TEAM", scope=scene.node)
        match row.rpc:
            case "QuotaService/DeletePrice":
                await sql(
                    "INSERT INTO prices (kind, spot, valid_from, micros_per_hour, setter)"
                    " VALUES ('cpu', false, to_timestamp(:far), 1, 'x') ON CONFLICT DO NOTHING",
                    far=FAR,
                )
            case "AttemptService/ConfirmPause":
                await sql("UPDATE jobs SET pauses = 1 WHERE job_id = :job_id", job_id=scene.job_id)
            case "RegistryService/RecordMirror" | "RegistryService/GetModelVersion":
                await sql(
                    "INSERT INTO model_versions"
                    " (project, model, version, job_id, manifest_uri, manifest_sha256, lineage, metrics)"
                    " VALUES (:project, 'assistant', :version, :job_id, '', '', '{}', '{}')",
                    project=scene.project,
                    version=1 + int(scene.job_id[:7], 16),
                    job_id=scene.job_id,
                )
            case "IdentityService/RevokeToken":
                await sql(
                    "INSERT INTO tokens (token_id, project, name, role, secret_sha256, creator)"
                    " VALUES (:token_id, :project, 'some', 'VIEWER', '', 'somebody')",
                    token_id=scene.token_id,
                    project=scene.project,
                )
            case "ProjectService/RemoveMember":
                await sql(
                    "INSERT INTO members (project, subject, role, grantor) VALUES (:project, :subject, 'VIEWER', 'x')",
                    project=scene.project,
                    subject=f"user:{scene.token_id}",
                )
                await sql(
                    "INSERT INTO organisation_members (subject, role, grantor) VALUES (:subject, 'AUDITOR', 'x')",
                    subject=f"user:{scene.token_id}",
                )
            case "ProjectService/DeleteProject":
                await sql("INSERT INTO projects (project, creator) VALUES ('to-be-deleted', 'x') ON CONFLICT DO NOTHING")
            case "WebhookService/DeleteWebhook" | "WebhookService/ListWebhookDeliveries":
                await sql(
                    "INSERT INTO webhooks (webhook_id, project, url, states, creator)"
                    " VALUES (:webhook_id, :project, 'https://x', '{}', 'somebody')",
                    webhook_id=scene.webhook_id,
                    project=scene.project,
                )
            case "AttemptService/RequestLease":
                pass
            case _:
                await sql(
                    "INSERT INTO leases (lease_id, job_id, project, phase, state, accelerators, accelerator_kind, priority,"
                    " max_run_seconds, attempt, worker, granted_kind, granted_at, expires_at)"
                    " VALUES (:lease_id, :job_id, :project, 'TRAIN', 'GRANTED', 1, 'cpu', 500, 60, 1, 'w', 'cpu', now(),"
                    " now() + interval '10 minutes')",
                    lease_id=scene.lease_id,
                    job_id=scene.job_id,
                    project=scene.project,
                )
