"""Service tokens as rows. A secret is never among them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, RowMapping, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.events import notify
from control_plane.db.tables import CHANNEL_IDENTITY, tokens
from control_plane.errors import Reason, RefusedError
from control_plane.identity.principal import Role
from control_plane.identity.service_tokens import BOOTSTRAP_CREATOR, bootstrap_token_id
from control_plane.settings import BootstrapToken


def token_not_found(token_id: str) -> RefusedError:
    """The refusal for a token that is not there, and equally for one the caller may not see."""
    return RefusedError(Reason.RESOURCE_NOT_FOUND, f"there is no token {token_id}", {"name": token_id})


async def create_token(
    connection: AsyncConnection,
    token_id: str,
    project: str,
    name: str,
    role: Role,
    secret_sha256: bytes,
    creator: str,
    lifetime: timedelta,
) -> RowMapping:
    """Stores a new token; `project` empty: the organisation's."""
    made = await connection.execute(
        insert(tokens)
        .values(
            token_id=token_id,
            project=project or None,
            name=name,
            role=str(role),
            secret_sha256=secret_sha256,
            creator=creator,
            expires_at=func.now() + lifetime,
        )
        .returning(tokens)
    )
    await notify(connection, CHANNEL_IDENTITY)
    return made.mappings().one()


async def lock_token(connection: AsyncConnection, token_id: str) -> RowMapping:
    """A token, locked until the transaction ends.

    Raises:
        RefusedError: there is none of this id.
    """
    query = select(tokens).where(tokens.c.token_id == token_id).with_for_update()
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise token_not_found(token_id)
    return row


async def revoke_token(connection: AsyncConnection, token_id: str) -> RowMapping:
    """Ends a token, which must exist. One that was revoked before stays revoked since then."""
    changed = await connection.execute(
        update(tokens)
        .where(tokens.c.token_id == token_id)
        .values(revoked_at=func.coalesce(tokens.c.revoked_at, func.now()))
        .returning(tokens)
    )
    await notify(connection, CHANNEL_IDENTITY)
    return changed.mappings().one()


async def list_tokens(
    connection: AsyncConnection, project: str, after: tuple[datetime, str] | None, limit: int
) -> Sequence[RowMapping]:
    """Tokens of a project, or with an empty one of the organisation, newest first, those after `after`."""
    scope: ColumnElement[bool] = tokens.c.project == project if project else tokens.c.project.is_(None)
    query = select(tokens).where(scope)
    if after is not None:
        query = query.where(tuple_(tokens.c.created_at, tokens.c.token_id) < after)
    query = query.order_by(tokens.c.created_at.desc(), tokens.c.token_id.desc()).limit(limit)
    return (await connection.execute(query)).mappings().all()


async def ensure_bootstrap_token(connection: AsyncConnection, token: BootstrapToken) -> None:
    """Makes the token that the settings name be there, with the secret they name.

    With another hash the old secret ends, and a token that was revoked lives again; with the same hash nothing changes, and one
    that was revoked stays so.
    """
    statement = insert(tokens).values(
        token_id=bootstrap_token_id(token.name),
        project=None,
        name=token.name,
        role=token.role,
        secret_sha256=bytes.fromhex(token.secret_sha256),
        creator=BOOTSTRAP_CREATOR,
    )
    new = statement.excluded
    changed = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["token_id"],
            set_={"secret_sha256": new.secret_sha256, "role": new.role, "revoked_at": None},
            where=(tokens.c.secret_sha256 != new.secret_sha256) | (tokens.c.role != new.role),
        )
    )
    if changed.rowcount:
        await notify(connection, CHANNEL_IDENTITY)
