"""ProjectService: projects, and who may do what in them."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import grpc
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.call import current_call
from control_plane.db.mutations import once
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.identity.principal import Principal, Role
from control_plane.identity.roles import MEMBER_ROLES, require_may_give, role_number, role_of, roles_and_where
from control_plane.jobs.references import project_not_found
from control_plane.jobs.spec import ProjectName, canonical_sha256
from control_plane.projects import repository
from control_plane.rpc.convert import identifier, timestamp, validated_value
from control_plane.rpc.pages import Cursors, page_size
from headway.projects.v1 import project_service_pb2 as pb
from headway.projects.v1 import project_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_TITLE_MAX = 128
_PRIORITY_MAX = 1_000
_SUBJECT_MAX = 200
# Workers and attempts are what their credentials say; nobody makes them members. ASCII only, and all of it (`fullmatch`).
_SUBJECT = re.compile(r"(?:user|service):[A-Za-z0-9._@/:+-]+")


class ProjectServicer(project_service_pb2_grpc.ProjectServiceServicer):
    """Projects and their members, and the members of the organisation."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors) -> None:
        self._engine = engine
        self._cursors = cursors

    async def CreateProject(self, request: pb.CreateProjectRequest, context: _Context) -> pb.CreateProjectResponse:  # noqa: N802 - gRPC's name
        """Makes a project, once per request id. Its creator gets no role in it by that."""
        del context
        request_id = identifier(request.request_id, "request_id")
        asked = request.project
        name = validated_value(ProjectName, asked.name, "project.name")
        priority_max = asked.priority_max if asked.HasField("priority_max") else _PRIORITY_MAX
        values = {
            "project": name,
            "title": _title(asked.title, "project.title"),
            "priority_max": _priority(priority_max, "project.priority_max"),
        }
        call = current_call()
        call.project = call.object = name

        async def create(connection: AsyncConnection) -> pb.CreateProjectResponse:
            row = await repository.create_project(connection, {**values, "creator": call.principal.subject})
            return pb.CreateProjectResponse(project=_project(row))

        sha256 = canonical_sha256({"method": "CreateProject", **values})
        return await once(self._engine, "", request_id, sha256, pb.CreateProjectResponse, create)

    async def GetProject(self, request: pb.GetProjectRequest, context: _Context) -> pb.GetProjectResponse:  # noqa: N802 - gRPC's name
        """One project, deleted or not."""
        del context
        name = _visible(request.name, "name")
        async with self._engine.connect() as connection:
            return pb.GetProjectResponse(project=_project(await repository.find_project(connection, name)))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: _Context) -> pb.ListProjectsResponse:  # noqa: N802 - gRPC's name
        """The projects the caller may see, by name."""
        del context
        size = page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListProjects"]
        after = self._cursors.decode(request.page_token, query, (str,), "page_token") or [""]
        caller = current_call().principal
        # Not only those whose jobs they may read: an approver knows the project too.
        visible = None if caller.sees_every_project else frozenset(caller.project_roles)
        async with self._engine.connect() as connection:
            rows = await repository.list_projects(connection, visible, after[0], size + 1)
        token = self._cursors.encode(query, [rows[size - 1]["project"]]) if len(rows) > size else ""
        return pb.ListProjectsResponse(projects=map(_project, rows[:size]), next_page_token=token)

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: _Context) -> pb.UpdateProjectResponse:  # noqa: N802 - gRPC's name
        """Changes title or priority ceiling, once per request id. The ceiling binds maintainers, so they cannot raise it."""
        del context
        request_id = identifier(request.request_id, "request_id")
        name = _visible(request.name, "name")
        values: dict[str, Any] = {}
        if request.HasField("title"):
            values["title"] = _title(request.title, "title")
        if request.HasField("priority_max"):
            values["priority_max"] = _priority(request.priority_max, "priority_max")
            _require_admin("change the priority ceiling of a project")

        async def change(connection: AsyncConnection) -> pb.UpdateProjectResponse:
            row = await repository.lock_open(connection, name)
            if request.etag and request.etag != _etag(row):
                raise RefusedError(
                    Reason.ETAG_MISMATCH,
                    f"project {name} changed since etag {request.etag[:64]!r} was read; read it again",
                    {"etag": _etag(row)},
                )
            if any(row[column] != value for column, value in values.items()):
                row = await repository.update_project(connection, name, values)
            return pb.UpdateProjectResponse(project=_project(row))

        sha256 = canonical_sha256({"method": "UpdateProject", "project": name, "etag": request.etag, "values": values})
        return await once(self._engine, name, request_id, sha256, pb.UpdateProjectResponse, change)

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: _Context) -> pb.DeleteProjectResponse:  # noqa: N802 - gRPC's name
        """Closes a project, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        name = _visible(request.name, "name")

        async def delete(connection: AsyncConnection) -> pb.DeleteProjectResponse:
            return pb.DeleteProjectResponse(project=_project(await repository.delete_project(connection, name)))

        sha256 = canonical_sha256({"method": "DeleteProject", "project": name})
        return await once(self._engine, name, request_id, sha256, pb.DeleteProjectResponse, delete)

    async def SetMember(self, request: pb.SetMemberRequest, context: _Context) -> pb.SetMemberResponse:  # noqa: N802 - gRPC's name
        """Gives a role, once per request id. Who may not take the role that is there may not replace it either."""
        del context
        request_id = identifier(request.request_id, "request_id")
        project = _scope(request.member.project, "member.project")
        subject = _subject(request.member.subject, "member.subject")
        role = role_of(request.member.role, "member.role", MEMBER_ROLES[bool(project)])
        call = _acting_on(project, subject)
        require_may_give(call, project, role)

        async def give(connection: AsyncConnection) -> pb.SetMemberResponse:
            await repository.lock_members(connection, project)
            present = await repository.role_of_member(connection, project, subject)
            if present is not None:
                require_may_give(call, project, present)
            row = await repository.set_member(connection, project, subject, role, call.subject)
            return pb.SetMemberResponse(member=_member(row, project))

        sha256 = canonical_sha256({"method": "SetMember", "project": project, "subject": subject, "role": str(role)})
        return await once(self._engine, project, request_id, sha256, pb.SetMemberResponse, give)

    async def RemoveMember(self, request: pb.RemoveMemberRequest, context: _Context) -> pb.RemoveMemberResponse:  # noqa: N802 - gRPC's name
        """Takes a role, once per request id."""
        del context
        request_id = identifier(request.request_id, "request_id")
        project = _scope(request.project, "project")
        subject = _subject(request.subject, "subject")
        call = _acting_on(project, subject)
        require_may_give(call, project, Role.VIEWER if project else Role.ORG_ADMIN)

        async def take(connection: AsyncConnection) -> pb.RemoveMemberResponse:
            await repository.lock_members(connection, project)
            present = await repository.role_of_member(connection, project, subject)
            if present is None:
                raise RefusedError(
                    Reason.RESOURCE_NOT_FOUND,
                    f"{subject} has no role in {f'project {project}' if project else 'the organisation'}",
                    {"name": subject},
                )
            require_may_give(call, project, present)
            await repository.remove_member(connection, project, subject)
            return pb.RemoveMemberResponse()

        sha256 = canonical_sha256({"method": "RemoveMember", "project": project, "subject": subject})
        return await once(self._engine, project, request_id, sha256, pb.RemoveMemberResponse, take)

    async def ListMembers(self, request: pb.ListMembersRequest, context: _Context) -> pb.ListMembersResponse:  # noqa: N802 - gRPC's name
        """The members of a project or of the organisation, by subject."""
        del context
        size = page_size(request.page_size, default=50, maximum=1_000)
        project = _scope(request.project, "project")
        query = ["ListMembers", project]
        after = self._cursors.decode(request.page_token, query, (str,), "page_token") or [""]
        async with self._engine.connect() as connection:
            if project:
                await repository.find_project(connection, project)
            rows = await repository.list_members(connection, project, after[0], size + 1)
        token = self._cursors.encode(query, [rows[size - 1]["subject"]]) if len(rows) > size else ""
        return pb.ListMembersResponse(members=[_member(row, project) for row in rows[:size]], next_page_token=token)


def _visible(name: str, path: str) -> str:
    """The name of a project that exists for the caller, as far as their roles tell."""
    validated_value(ProjectName, name, path)
    call = current_call()
    call.project = call.object = name
    if not call.principal.sees(name):
        raise project_not_found(name)
    return name


def _scope(project: str, path: str) -> str:
    """A project that exists for the caller, or empty: the organisation."""
    return _visible(project, path) if project else ""


def _acting_on(project: str, subject: str) -> Principal:
    call = current_call()
    call.project, call.object = project, subject
    return call.principal


def _require_admin(what: str) -> None:
    call = current_call()
    if not call.principal.org_admin:
        raise RefusedError(
            Reason.PERMISSION_DENIED,
            f"{call.principal.subject} may not {what}; it takes the role {roles_and_where([Role.ORG_ADMIN], call.project)}",
            {"method": call.method, "role_required": str(Role.ORG_ADMIN), "project": call.project},
        )


def _subject(subject: str, path: str) -> str:
    if len(subject) > _SUBJECT_MAX or not _SUBJECT.fullmatch(subject):
        raise invalid_field(
            path,
            f"is {subject[:80]!r}; expected `user:` or `service:` and characters of [A-Za-z0-9._@/:+-], {_SUBJECT_MAX} in all",
        )
    return subject


def _title(title: str, path: str) -> str:
    # Not printable are, besides line ends and NUL, the characters that turn or hide text.
    if len(title) > _TITLE_MAX or not title.isprintable():
        raise invalid_field(path, f"has {len(title)} characters; expected at most {_TITLE_MAX}, all printable")
    return title


def _priority(priority: int, path: str) -> int:
    if not 0 <= priority <= _PRIORITY_MAX:
        raise invalid_field(path, f"is {priority}; expected 0 to {_PRIORITY_MAX:,}")
    return priority


def _etag(row: RowMapping) -> str:
    return str(row["version"])


def _project(row: RowMapping) -> pb.Project:
    return pb.Project(
        name=row["project"],
        title=row["title"],
        priority_max=row["priority_max"],
        create_time=timestamp(row["created_at"]),
        delete_time=timestamp(row["deleted_at"]),
        creator=row["creator"],
        etag=_etag(row),
    )


def _member(row: RowMapping, project: str) -> pb.Member:
    return pb.Member(
        project=project,
        subject=row["subject"],
        role=role_number(row["role"]),
        grantor=row["grantor"],
        create_time=timestamp(row["created_at"]),
    )
