"""What there must be before anybody can make anything: the tokens and projects that the settings name."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.identity.service_tokens import BOOTSTRAP_CREATOR
from control_plane.identity.tokens import ensure_bootstrap_token
from control_plane.projects.repository import ensure_projects
from control_plane.settings import IdentitySettings

# Replicas start together; one after the other they find the same.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('headway bootstrap', 0))")


async def bootstrap(engine: AsyncEngine, settings: IdentitySettings) -> None:
    """Makes them be there, and changes nothing when they are."""

    async def ensure(connection: AsyncConnection) -> None:
        await connection.execute(_LOCK)
        await ensure_projects(connection, settings.bootstrap_projects, BOOTSTRAP_CREATOR)
        for token in settings.bootstrap_tokens:
            await ensure_bootstrap_token(connection, token)

    await in_transaction(engine, ensure)
