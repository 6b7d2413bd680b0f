"""Projects, members, tokens, the audit log and webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

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
from headway_client.aio.calls import Calls
from headway_client.arguments import build

if TYPE_CHECKING:
    from headway.audit.v1.audit_service_pb2_grpc import AuditServiceAsyncStub
    from headway.identity.v1.identity_service_pb2_grpc import IdentityServiceAsyncStub
    from headway.projects.v1.project_service_pb2_grpc import ProjectServiceAsyncStub
    from headway.webhooks.v1.webhook_service_pb2_grpc import WebhookServiceAsyncStub


class OrganisationCalls(Calls):
    """The services that say who may do what, and who did."""

    @cached_property
    def _projects(self) -> ProjectServiceAsyncStub:
        return ProjectServiceStub(self._channel)

    @cached_property
    def _identity(self) -> IdentityServiceAsyncStub:
        return IdentityServiceStub(self._channel)

    @cached_property
    def _audit(self) -> AuditServiceAsyncStub:
        return AuditServiceStub(self._channel)

    @cached_property
    def _webhooks(self) -> WebhookServiceAsyncStub:
        return WebhookServiceStub(self._channel)

    # Who

    async def who_am_i(self) -> identity.WhoAmIResponse:
        """Whom the server takes this client for, and what they may do."""
        return await self._unary(self._identity.WhoAmI, identity.WhoAmIRequest())

    async def create_token(
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
        return await self._unary(self._identity.CreateToken, request)

    async def list_tokens(self, project: str = "") -> AsyncIterator[identity.Token]:
        """The tokens of a project or of the organisation, newest first, without their secrets."""
        async for page in self._pages(self._identity.ListTokens, build(identity.ListTokensRequest, project=project)):
            for item in page.tokens:
                yield item

    async def revoke_token(self, token_id: str, *, request_id: str | None = None) -> identity.Token:
        """Ends a token."""
        request = build(identity.RevokeTokenRequest, request_id=requests.new_id(request_id), token_id=token_id)
        return (await self._unary(self._identity.RevokeToken, request)).token

    # Projects

    async def create_project(
        self, name: str, *, title: str = "", priority_max: int | None = None, request_id: str | None = None
    ) -> projects.Project:
        """Creates a project."""
        request = requests.create_project(name, title, priority_max, request_id)
        return (await self._unary(self._projects.CreateProject, request)).project

    async def get_project(self, name: str) -> projects.Project:
        """One project."""
        return (await self._unary(self._projects.GetProject, build(projects.GetProjectRequest, name=name))).project

    async def list_projects(self) -> AsyncIterator[projects.Project]:
        """The projects one may see, by name."""
        async for page in self._pages(self._projects.ListProjects, projects.ListProjectsRequest()):
            for item in page.projects:
                yield item

    async def update_project(
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
        return (await self._unary(self._projects.UpdateProject, request)).project

    async def delete_project(self, name: str, *, request_id: str | None = None) -> projects.Project:
        """Closes a project; what it made is kept."""
        request = build(projects.DeleteProjectRequest, request_id=requests.new_id(request_id), name=name)
        return (await self._unary(self._projects.DeleteProject, request)).project

    async def set_member(
        self, subject: str, role: projects.Role.ValueType, *, project: str = "", request_id: str | None = None
    ) -> projects.Member:
        """Gives a subject a role in a project, or without project in the organisation."""
        return (await self._unary(self._projects.SetMember, requests.set_member(subject, role, project, request_id))).member

    async def remove_member(self, subject: str, *, project: str = "", request_id: str | None = None) -> None:
        """Takes a subject's role."""
        request = build(projects.RemoveMemberRequest, request_id=requests.new_id(request_id), project=project, subject=subject)
        await self._unary(self._projects.RemoveMember, request)

    async def list_members(self, project: str = "") -> AsyncIterator[projects.Member]:
        """The members of a project or of the organisation, by subject."""
        async for page in self._pages(self._projects.ListMembers, build(projects.ListMembersRequest, project=project)):
            for item in page.members:
                yield item

    # Audit

    async def list_audit_records(
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
    ) -> AsyncIterator[audit.AuditRecord]:
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
        async for page in self._pages(self._audit.ListAuditRecords, request):
            for item in page.records:
                yield item

    async def get_audit_head(self) -> audit.GetAuditHeadResponse:
        """The chain's newest link, to be kept elsewhere and compared with later."""
        return await self._unary(self._audit.GetAuditHead, audit.GetAuditHeadRequest())

    # Webhooks

    async def create_webhook(
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
        return await self._unary(self._webhooks.CreateWebhook, request)

    async def list_webhooks(self, project: str) -> AsyncIterator[webhooks.Webhook]:
        """A project's endpoints, newest first."""
        async for page in self._pages(self._webhooks.ListWebhooks, build(webhooks.ListWebhooksRequest, project=project)):
            for item in page.webhooks:
                yield item

    async def delete_webhook(self, webhook_id: str, *, request_id: str | None = None) -> None:
        """Removes an endpoint; what was not delivered yet is dropped."""
        request = build(webhooks.DeleteWebhookRequest, request_id=requests.new_id(request_id), webhook_id=webhook_id)
        await self._unary(self._webhooks.DeleteWebhook, request)

    async def list_webhook_deliveries(self, webhook_id: str) -> AsyncIterator[webhooks.WebhookDelivery]:
        """What was sent to an endpoint and what it answered, newest first."""
        request = build(webhooks.ListWebhookDeliveriesRequest, webhook_id=webhook_id)
        async for page in self._pages(self._webhooks.ListWebhookDeliveries, request):
            for item in page.deliveries:
                yield item
