"""IdentityService: who is calling, and the tokens that services call with."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import grpc
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.attempts.fence import refuse_stale
from control_plane.call import current_call
from control_plane.db.mutations import audited, once
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.identity import tokens
from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.identity.directory import may_speak_for
from control_plane.identity.principal import AttemptBinding, Principal, Role
from control_plane.identity.roles import TOKEN_ROLES, require_may_give, role_number, role_of
from control_plane.identity.service_tokens import new_secret, secret_sha256
from control_plane.jobs.references import project_not_found
from control_plane.jobs.spec import ProjectName, ResourceName, canonical_sha256
from control_plane.projects.repository import find_project, require_open
from control_plane.rpc.convert import identifier, timestamp, validated_value
from control_plane.rpc.pages import Cursors, page_size
from headway.identity.v1 import identity_service_pb2 as pb
from headway.identity.v1 import identity_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_LIFETIME_SECONDS = 7_776_000
_LIFETIME_SECONDS_MIN = 60
_LIFETIME_SECONDS_MAX = 31_536_000


class IdentityServicer(identity_service_pb2_grpc.IdentityServiceServicer):
    """The caller, and tokens."""

    def __init__(
        self, engine: AsyncEngine, cursors: Cursors, attempt_tokens: AttemptTokens, attempt_token_seconds: float
    ) -> None:
        self._engine = engine
        self._cursors = cursors
        self._attempt_tokens = attempt_tokens
        self._attempt_token_seconds = attempt_token_seconds

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: _Context) -> pb.WhoAmIResponse:  # noqa: N802 - gRPC's name
        """Who the server takes the caller for."""
        del request, context
        caller = current_call().principal
        return pb.WhoAmIResponse(
            subject=caller.subject,
            credential_kind=pb.CredentialKind.Value(f"CREDENTIAL_KIND_{caller.credential}"),
            project_roles={project: role_number(role) for project, role in caller.project_roles.items()},
            organisation_roles=sorted(role_number(role) for role in caller.organisation_roles),
            expire_time=timestamp(caller.expires_at),
        )

    async def CreateToken(self, request: pb.CreateTokenRequest, context: _Context) -> pb.CreateTokenResponse:  # noqa: N802 - gRPC's name
        """Makes a token, once per request id. What is kept for repeats is without its secret."""
        del context
        request_id = identifier(request.request_id, "request_id")
        project = _scope(request.project)
        name = validated_value(ResourceName, request.name, "name")
        role = role_of(request.role, "role", TOKEN_ROLES[bool(project)])
        lifetime = request.lifetime_seconds if request.HasField("lifetime_seconds") else _LIFETIME_SECONDS
        if not _LIFETIME_SECONDS_MIN <= lifetime <= _LIFETIME_SECONDS_MAX:
            raise invalid_field(
                "lifetime_seconds", f"is {lifetime}; expected {_LIFETIME_SECONDS_MIN} to {_LIFETIME_SECONDS_MAX:,}"
            )
        call = current_call()
        require_may_give(call.principal, project, role)
        token_id = str(uuid.uuid4())
        secret = new_secret(token_id)

        async def create(connection: AsyncConnection) -> pb.CreateTokenResponse:
            if project:
                await require_open(connection, project)
            call.object = token_id
            row = await tokens.create_token(
                connection,
                token_id,
                project,
                name,
                role,
                secret_sha256(secret),
                # The person, not the account: what a service does counts as done by whoever made its token.
                call.principal.person,
                timedelta(seconds=lifetime),
            )
            return pb.CreateTokenResponse(token=_token(row), secret=secret)

        sha256 = canonical_sha256(
            {"method": "CreateToken", "project": project, "name": name, "role": str(role), "lifetime_seconds": lifetime}
        )
        return await once(
            self._engine,
            project,
            request_id,
            sha256,
            pb.CreateTokenResponse,
            create,
            stored=lambda response: pb.CreateTokenResponse(token=response.token),
        )

    async def ListTokens(self, request: pb.ListTokensRequest, context: _Context) -> pb.ListTokensResponse:  # noqa: N802 - gRPC's name
        """The tokens of a project, or of the organisation, newest first."""
        del context
        size = page_size(request.page_size, default=50, maximum=1_000)
        project = _scope(request.project)
        require_may_give(current_call().principal, project, Role.VIEWER if project else Role.ORG_ADMIN)
        query = ["ListTokens", project]
        position = self._cursors.decode(request.page_token, query, (str, str), "page_token")
        after = None if position is None else (datetime.fromisoformat(position[0]), str(position[1]))
        async with self._engine.connect() as connection:
            if project:
                await find_project(connection, project)
            rows = await tokens.list_tokens(connection, project, after, size + 1)
        next_page_token = ""
        if len(rows) > size:
            last = rows[size - 1]
            next_page_token = self._cursors.encode(query, [last["created_at"].isoformat(), last["token_id"]])
        return pb.ListTokensResponse(tokens=map(_token, rows[:size]), next_page_token=next_page_token)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: _Context) -> pb.RevokeTokenResponse:  # noqa: N802 - gRPC's name
        """Ends a token, once per request id: one's own, or one whose role one may give."""
        del context
        request_id = identifier(request.request_id, "request_id")
        token_id = identifier(request.token_id, "token_id")
        call = current_call()
        call.object = token_id

        async def revoke(connection: AsyncConnection) -> pb.RevokeTokenResponse:
            row = await tokens.lock_token(connection, token_id)
            _require_may_revoke(call.principal, row)
            call.project = row["project"] or ""
            return pb.RevokeTokenResponse(token=_token(await tokens.revoke_token(connection, token_id)))

        sha256 = canonical_sha256({"method": "RevokeToken", "token_id": token_id})
        return await once(self._engine, "", request_id, sha256, pb.RevokeTokenResponse, revoke)

    async def IssueAttemptToken(  # noqa: N802 - gRPC's name
        self, request: pb.IssueAttemptTokenRequest, context: _Context
    ) -> pb.IssueAttemptTokenResponse:
        """The credential of the current attempt of a job, for a worker that may speak for it."""
        del context
        job_id = identifier(request.job_id, "job_id")
        if request.attempt < 0:
            raise invalid_field("attempt", f"is {request.attempt}; expected 0 or more")
        call = current_call()
        call.object = job_id
        worker = _worker(call.principal)
        expires_at = datetime.now(UTC) + timedelta(seconds=self._attempt_token_seconds)

        async def issue(connection: AsyncConnection) -> None:
            await refuse_stale(connection, job_id, request.attempt)
            if not await may_speak_for(connection, worker, AttemptBinding(job_id, request.attempt)):
                raise RefusedError(
                    Reason.LEASE_NOT_HELD,
                    f"attempt {request.attempt} of job {job_id} runs under a lease of another worker than {worker}; stop",
                    {"lease_id": "", "state": "GRANTED"},
                )

        await audited(self._engine, issue)
        return pb.IssueAttemptTokenResponse(
            secret=self._attempt_tokens.issue(job_id, request.attempt, expires_at),
            expire_time=timestamp(expires_at.replace(microsecond=0)),
        )


def _scope(project: str) -> str:
    """A project that exists for the caller, as far as their roles tell; or empty: the organisation."""
    if project:
        validated_value(ProjectName, project, "project")
        call = current_call()
        call.project = project
        if not call.principal.sees(project):
            raise project_not_found(project)
    return project


def _require_may_revoke(caller: Principal, row: RowMapping) -> None:
    if caller.credential_id == row["token_id"]:
        return
    project = row["project"] or ""
    # The organisation's tokens exist for its admins only; a project's for those who see the project.
    if not (caller.sees(project) if project else caller.org_admin):
        raise tokens.token_not_found(row["token_id"])
    require_may_give(caller, project, Role(row["role"]))


def _worker(caller: Principal) -> str:
    kind, _, name = caller.subject.partition(":")
    if Role.WORKER not in caller.organisation_roles or kind != "worker":
        raise RefusedError(
            Reason.PERMISSION_DENIED,
            f"{caller.subject} is no worker; credentials of attempts are for workers",
            {"method": current_call().method, "role_required": str(Role.WORKER)},
        )
    return name


def _token(row: RowMapping) -> pb.Token:
    return pb.Token(
        token_id=row["token_id"],
        project=row["project"] or "",
        name=row["name"],
        role=role_number(row["role"]),
        creator=row["creator"],
        create_time=timestamp(row["created_at"]),
        expire_time=timestamp(row["expires_at"]),
        revoke_time=timestamp(row["revoked_at"]),
        last_use_time=timestamp(row["last_used_at"]),
    )
