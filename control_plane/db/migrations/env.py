"""How Alembic reaches the database: in a thread of its own loop, under an advisory lock, in one transaction."""

from __future__ import annotations

import asyncio
import threading

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from control_plane.db.scheduling_tables import metadata

# Any constant will do, as long as nothing else in the database uses it.
_MIGRATION_LOCK = 0x48454144


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        # Held until the transaction ends, so that a second migrator waits and then finds nothing to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        context.run_migrations()


async def _run() -> None:
    engine = create_async_engine(context.config.attributes["url"], poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
            await connection.commit()
    finally:
        await engine.dispose()


def _run_in_thread() -> None:
    """Runs the migration whether or not the caller has an event loop already."""
    failure: list[BaseException] = []

    def target() -> None:
        try:
            asyncio.run(_run())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="alembic")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


_run_in_thread()
