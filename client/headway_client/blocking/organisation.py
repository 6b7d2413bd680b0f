"""Projects, members, tokens, the audit log and webhooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cached_property

from headway.audit.v1 import audit_service_pb2 as audit
from headway.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from headway.identity.v1 import identity_service_pb2 as identity
from headway.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from headway.jobs.v1 import job_pb2
from headway.projects.v1 import project_service_pb2 as projects
from headway.projects.v1.project_service_pb2_grpc import ProjectServiceStub
from headway.webhooks.v1 import webhook_service_pb2 as webhooks
from headway.webhooks.v1.webhook_service_pb2_grpc import WebhookServiceStub
from headway_client import requests
from headway_client.arguments import build
from headway_client.blocking.calls import Calls


class OrganisationCalls(Calls):
    """The services that say who may do what, and who did."""

    @cached_property
    def _projects(self) -> ProjectServiceStub:
        return ProjectServiceStub(self._channel)

    @cached_property
    def _identity(self) -> IdentityServiceStub:
        return IdentityServiceStub(self._channel)

    @cached_property
    def _audit(self) -> AuditServiceStub:
        return AuditServiceStub(self._channel)

    @cached_property
    def _webhooks(self) -> WebhookServiceStub:
        return WebhookServiceStub(self._channel)

    # Who

    def who_am_i(self) -> identity.WhoAmIResponse:
        """Whom the server takes this client for, and what they may do."""
        return self._unary(self._identity.WhoAmI, identity.WhoAmIRequest())

    def create_token(
        self,
        name: str,
        role: projects.Role.ValueType,
        *,
        project: str = "",
        lifetime_seconds: int | None = None,
        request_id: str | None = None,
    ) -> identity.CreateTokenResponse:
        """Makes a token for a service of a project, or of the organisation. Its secret is in this answer and nowhere else."""
        request = requests.create_token(name, role, project, lifetime_seconds, request_id)
        return self._unary(self._identity.CreateToken, request)

    def list_tokens(self, project: str = "") -> Iterator[identity.Token]:
        """The tokens of a project or of the organisation, newest first, without their secrets."""
        for page in self._pages(self._identity.ListTokens, build(identity.ListTokensRequest, project=project)):
            yield from page.tokens

    def revoke_token(self, token_id: str, *, request_id: str | None = None) -> identity.Token:
        """Ends a token."""
        request = build(identity.RevokeTokenRequest, request_id=requests.new_id(request_id), token_id=token_id)
        return self._unary(self._identity.RevokeToken, request).token

    # Projects

    def create_project(
        self, name: str, *, title: str = "", priority_max: int | None = None, request_id: str | None = None
    ) -> projects.Project:
        """Creates a project."""
        request = requests.create_project(name, title, priority_max, request_id)
        return self._unary(self._projects.CreateProject, request).project

    def get_project(self, name: str) -> projects.Project:
        """One project."""
        return self._unary(self._projects.GetProject, build(projects.GetProjectRequest, name=name)).project

    def list_projects(self) -> Iterator[projects.Project]:
        """The projects one may see, by name."""
        for page in self._pages(self._projects.ListProjects, projects.ListProjectsRequest()):
            yield from page.projects

    def update_project(
        self,
        name: str,
        *,
        title: str | None = None,
        priority_max: int | None = None,
        etag: str = "",
        request_id: str | None = None,
    ) -> projects.Project:
        """Changes what is not None."""
        request = requests.update_project(name, title, priority_max, etag, request_id)
        return self._unary(self._projects.UpdateProject, request).project

    def delete_project(self, name: str, *, request_id: str | None = None) -> projects.Project:
        """Closes a project; what it made is kept."""
        request = build(projects.DeleteProjectRequest, request_id=requests.new_id(request_id), name=name)
        return self._unary(self._projects.DeleteProject, request).project

    def set_member(
        self, subject: str, role: projects.Role.ValueType, *, project: str = "", request_id: str | None = None
    ) -> projects.Member:
        """Gives a subject a role in a project, or without project in the organisation."""
        return self._unary(self._projects.SetMember, requests.set_member(subject, role, project, request_id)).member

    def remove_member(self, subject: str, *, project: str = "", request_id: str | None = None) -> None:
        """Takes a subject's role."""
        request = build(projects.RemoveMemberRequest, request_id=requests.new_id(request_id), project=project, subject=subject)
        self._unary(self._projects.RemoveMember, request)

    def list_members(self, project: str = "") -> Iterator[projects.Member]:
        """The members of a project or of the organisation, by subject."""
        for page in self._pages(self._projects.ListMembers, build(projects.ListMembersRequest, project=project)):
            yield from page.members

    # Audit

    def list_audit_records(
        self,
        *,
        project: str = "",
        principal: str = "",
        method: str = "",
        after_position: int = 0,
        refused_only: bool = False,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        newest_first: bool = False,
        page_size: int = 0,
    ) -> Iterator[audit.AuditRecord]:
        """Audit records in the order of their chain, or the newest first, fetched as they are consumed.

        What else is set narrows them down.
        """
        request = requests.list_audit_records(
            project=project,
            principal=principal,
            method=method,
            after_position=after_position,
            refused_only=refused_only,
            start_time=start_time,
            end_time=end_time,
            newest_first=newest_first,
            page_size=page_size,
        )
        for page in self._pages(self._audit.ListAuditRecords, request):
            yield from page.records

    def get_audit_head(self) -> audit.GetAuditHeadResponse:
        """The chain's newest link, to be kept elsewhere and compared with later."""
        return self._unary(self._audit.GetAuditHead, audit.GetAuditHeadRequest())

    # Webhooks

    def create_webhook(
        self,
        project: str,
        url: str,
        *,
        states: Iterable[job_pb2.JobState.ValueType] = (),
        job_set: str = "",
        budget_alerts: bool = False,
        request_id: str | None = None,
    ) -> webhooks.CreateWebhookResponse:
        """Adds an endpoint that hears of jobs that end. Its signing secret is in this answer and nowhere else."""
        request = requests.create_webhook(project, url, states, job_set, request_id, budget_alerts=budget_alerts)
        return self._unary(self._webhooks.CreateWebhook, request)

    def list_webhooks(self, project: str) -> Iterator[webhooks.Webhook]:
        """A project's endpoints, newest first."""
        for page in self._pages(self._webhooks.ListWebhooks, build(webhooks.ListWebhooksRequest, project=project)):
            yield from page.webhooks

    def delete_webhook(self, webhook_id: str, *, request_id: str | None = None) -> None:
        """Removes an endpoint; what was not delivered yet is dropped."""
        request = build(webhooks.DeleteWebhookRequest, request_id=requests.new_id(request_id), webhook_id=webhook_id)
        self._unary(self._webhooks.DeleteWebhook, request)

    def list_webhook_deliveries(self, webhook_id: str) -> Iterator[webhooks.WebhookDelivery]:
        """What was sent to an endpoint and what it answered, newest first."""
        request = build(webhooks.ListWebhookDeliveriesRequest, webhook_id=webhook_id)
        for page in self._pages(self._webhooks.ListWebhookDeliveries, request):
            yield from page.deliveries
