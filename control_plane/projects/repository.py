"""Projects and members as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Table, delete, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_IDENTITY, jobs, members, organisation_members, projects, tokens
from control_plane.errors import Reason, RefusedError
from control_plane.identity.principal import Role
from control_plane.jobs.references import project_not_found
from control_plane.jobs.states import FINAL_STATES
from control_plane.quotas.tree import NodeKind, TreeNode, delete_node

_FINAL = [str(state) for state in FINAL_STATES]


async def find_project(connection: AsyncConnection, project: str) -> RowMapping:
    """A project, deleted or not.

    Raises:
        RefusedError: there is none.
    """
    row = (await connection.execute(select(projects).where(projects.c.project == project))).mappings().one_or_none()
    if row is None:
        raise project_not_found(project)
    return row


async def require_open(connection: AsyncConnection, project: str) -> None:
    """Holds a project open until the transaction ends: what is made in it is made in a project that there is.

    The lock is shared by all who make something; only the project's end waits for them.

    Raises:
        RefusedError: there is no such project, or not any more.
    """
    query = select(projects.c.project).where(projects.c.project == project, projects.c.deleted_at.is_(None))
    if (await connection.execute(query.with_for_update(read=True, key_share=True))).first() is None:
        raise project_not_found(project)


async def list_projects(
    connection: AsyncConnection, visible: frozenset[str] | None, after: str, limit: int
) -> Sequence[RowMapping]:
    """Projects by name, those after `after`; `visible` None: all."""
    query = select(projects).where(projects.c.project > after)
    if visible is not None:
        query = query.where(projects.c.project.in_(visible))
    return (await connection.execute(query.order_by(projects.c.project).limit(limit))).mappings().all()


async def create_project(connection: AsyncConnection, values: Mapping[str, Any]) -> RowMapping:
    """Makes a project.

    Raises:
        RefusedError: the name is taken, by a project that is there or was.
    """
    made = await connection.execute(
        insert(projects).values(**values).on_conflict_do_nothing(index_elements=["project"]).returning(projects)
    )
    row = made.mappings().one_or_none()
    if row is None:
        name = str(values["project"])
        raise RefusedError(
            Reason.NAME_TAKEN,
            f"the name {name} belongs to another project, or did; choose another one",
            {"name": name, "sha256": ""},
        )
    await notify(connection, CHANNEL_IDENTITY)
    return row


async def lock_open(connection: AsyncConnection, project: str, *, against_work: bool = False) -> RowMapping:
    """Locks an open project against every other change of it and of its members.

    Args:
        connection: a connection in a transaction.
        project: the project.
        against_work: whether to lock it also against whatever is made in it.

    Raises:
        RefusedError: there is no such project, or not any more.
    """
    query = select(projects).where(projects.c.project == project, projects.c.deleted_at.is_(None))
    row = (await connection.execute(query.with_for_update(key_share=not against_work))).mappings().one_or_none()
    if row is None:
        raise project_not_found(project)
    return row


async def update_project(connection: AsyncConnection, project: str, values: Mapping[str, Any]) -> RowMapping:
    """Changes a project that the caller holds locked."""
    changed = await connection.execute(
        update(projects)
        .where(projects.c.project == project)
        .values(**values, version=projects.c.version + 1)
        .returning(projects)
    )
    return changed.mappings().one()


async def delete_project(connection: AsyncConnection, project: str) -> RowMapping:
    """Closes a project, revokes its tokens and takes it out of the quota tree. What it made stays, and its members go on seeing
    it.

    Raises:
        RefusedError: there is no such project, or it has jobs that are not final.
    """
    await lock_open(connection, project, against_work=True)
    unfinished = exists().where(jobs.c.project == project, jobs.c.state.not_in(_FINAL))
    if (await connection.execute(select(unfinished))).scalar_one():
        raise RefusedError(
            Reason.STILL_NEEDED,
            f"project {project} has jobs that are not final; cancel them or wait for them, then delete it",
            {"project": project},
        )
    await connection.execute(
        update(tokens).where(tokens.c.project == project, tokens.c.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    await delete_node(connection, TreeNode(NodeKind.PROJECT, project))
    await notify(connection, CHANNEL_IDENTITY)
    return await update_project(connection, project, {"deleted_at": func.now()})


async def list_members(connection: AsyncConnection, project: str, after: str, limit: int) -> Sequence[RowMapping]:
    """Members of a project, or with an empty one of the organisation, by subject, those after `after`."""
    table = _table(project)
    query = select(table).where(table.c.subject > after).order_by(table.c.subject).limit(limit)
    if project:
        query = query.where(members.c.project == project)
    return (await connection.execute(query)).mappings().all()


async def lock_members(connection: AsyncConnection, project: str) -> None:
    """Locks the members of a project, or with an empty one of the organisation, against every other change.

    Raises:
        RefusedError: there is no such project, or not any more.
    """
    if project:
        await lock_open(connection, project)
    else:
        await connection.execute(text("LOCK TABLE organisation_members IN SHARE ROW EXCLUSIVE MODE"))


async def role_of_member(connection: AsyncConnection, project: str, subject: str) -> Role | None:
    """The role a subject has; None: none."""
    table = _table(project)
    found = (await connection.execute(select(table.c.role).where(*_row(project, subject)))).scalar_one_or_none()
    return None if found is None else Role(found)


async def set_member(connection: AsyncConnection, project: str, subject: str, role: Role, grantor: str) -> RowMapping:
    """Gives a subject a role, instead of the one it has. The caller holds the members locked.

    Raises:
        RefusedError: it would leave the project without maintainer, or the organisation without admin.
    """
    if role is not _keeper(project):
        await _require_another_keeper(connection, project, subject)
    table = _table(project)
    given = await connection.execute(
        insert(table)
        .values(subject=subject, role=str(role), grantor=grantor, **({"project": project} if project else {}))
        .on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key],
            set_={"role": str(role), "grantor": grantor, "created_at": func.now()},
        )
        .returning(table)
    )
    await notify(connection, CHANNEL_IDENTITY)
    return given.mappings().one()


async def remove_member(connection: AsyncConnection, project: str, subject: str) -> None:
    """Takes a subject's role. The caller holds the members locked.

    Raises:
        RefusedError: it is the last maintainer, or the last admin.
    """
    await _require_another_keeper(connection, project, subject)
    await connection.execute(delete(_table(project)).where(*_row(project, subject)))
    await notify(connection, CHANNEL_IDENTITY)


async def _require_another_keeper(connection: AsyncConnection, project: str, subject: str) -> None:
    table, keeper = _table(project), _keeper(project)
    query = select(table.c.subject).where(table.c.role == str(keeper)).limit(2)
    if project:
        query = query.where(members.c.project == project)
    if list((await connection.execute(query)).scalars()) == [subject]:
        where = f"project {project}" if project else "the organisation"
        raise RefusedError(
            Reason.STILL_NEEDED,
            f"{subject} is the last {keeper} of {where}; give the role to somebody else first",
            {"project": project},
        )


def _keeper(project: str) -> Role:
    """The role that somebody must hold."""
    return Role.MAINTAINER if project else Role.ORG_ADMIN


def _table(project: str) -> Table:
    return members if project else organisation_members


def _row(project: str, subject: str) -> list[ColumnElement[bool]]:
    if project:
        return [members.c.project == project, members.c.subject == subject]
    return [organisation_members.c.subject == subject]


async def ensure_projects(connection: AsyncConnection, names: Sequence[str], creator: str) -> None:
    """Makes the projects of these names that were never there."""
    for name in names:
        await connection.execute(
            insert(projects).values(project=name, creator=creator).on_conflict_do_nothing(index_elements=["project"])
        )
