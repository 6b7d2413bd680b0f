"""What the database says of callers: their tokens, their roles, and the leases their workers hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, null, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.tables import leases, members, organisation_members, tokens, workers
from control_plane.identity.principal import AttemptBinding, Role

# Whoever knocks without being known costs a look each time; they must not take the connections that calls need.
_LOOKS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as stored.

    Attributes:
        live: it has neither ended nor been revoked, by the database's clock.
        seconds_left: until it ends; infinite: never.
    """

    project: str | None
    name: str
    role: Role
    creator: str
    secret_sha256: bytes
    expires_at: datetime | None
    seconds_left: float
    live: bool

    @property
    def subject(self) -> str:
        """Whom it stands for."""
        if self.role is Role.WORKER:
            return f"worker:{self.name}"
        return f"service:{self.name}" if self.project is None else f"service:{self.project}/{self.name}"


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles that a subject was given."""

    projects: Mapping[str, Role]
    organisation: frozenset[Role]


class Directory:
    """Looks callers up."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turns = asyncio.Semaphore(_LOOKS_AT_ONCE)

    async def token(self, token_id: str) -> StoredToken | None:
        """The token of this id, whatever has become of it."""
        seconds_left = func.coalesce(func.extract("epoch", tokens.c.expires_at - func.now()), float("inf"))
        query = select(tokens, seconds_left.label("seconds_left")).where(tokens.c.token_id == token_id)
        async with self._connection() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        return StoredToken(
            project=row.project,
            name=row.name,
            role=Role(row.role),
            creator=row.creator,
            secret_sha256=bytes(row.secret_sha256),
            expires_at=row.expires_at,
            seconds_left=float(row.seconds_left),
            live=row.revoked_at is None and row.seconds_left > 0,
        )

    async def roles(self, subject: str) -> Roles:
        """The roles of a subject, of which there may be none."""
        query = union_all(
            select(members.c.project, members.c.role).where(members.c.subject == subject),
            select(null(), organisation_members.c.role).where(organisation_members.c.subject == subject),
        )
        async with self._connection() as connection:
            rows = (await connection.execute(query)).all()
        return Roles(
            {project: Role(role) for project, role in rows if project is not None},
            frozenset(Role(role) for project, role in rows if project is None),
        )

    async def may_speak_for(self, worker: str, binding: AttemptBinding) -> bool:
        """As `may_speak_for` below, on a connection of its own."""
        async with self._connection() as connection:
            return await may_speak_for(connection, worker, binding)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection]:
        async with self._turns, self._engine.connect() as connection:
            yield connection


async def may_speak_for(connection: AsyncConnection, worker: str, binding: AttemptBinding) -> bool:
    """Whether a worker may speak for an attempt: it holds the attempt's lease, or nobody does, or it offers no accelerators.

    Workers that offer none (CPU workers) never hold a lease, and look after the leases of others: they give back the lease of a
    worker that is gone.
    """
    held_by_another = select(leases.c.lease_id).where(
        leases.c.job_id == binding.job_id,
        leases.c.attempt == binding.attempt,
        leases.c.state == "GRANTED",
        leases.c.worker != worker,
    )
    offers = select(workers.c.name).where(workers.c.name == worker)
    return not (await connection.execute(select(held_by_another.exists() & offers.exists()))).scalar_one()
