"""A database of its own for each test of the scheduler: a round looks at everything there is."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import SecretStr
from scheduler_world import World
from temporalio.client import Client

from control_plane.db.engine import create_engine
from control_plane.db.tables import metadata
from control_plane.settings import PostgresSettings, TemporalSettings
from scheduler.app import connect_temporal
from scheduler.leader import Leadership


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[World]:
    """An empty database with the schema."""
    name = f"scheduler_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres_dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    dsn = f"{postgres_dsn.rpartition('/')[0]}/{name}"
    engine = create_engine(PostgresSettings(dsn=SecretStr(dsn), pool_size=8))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield World(engine, dsn)
    await engine.dispose()
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def leader(world: World) -> Leadership:
    """The leader, elected."""
    leadership = Leadership(world.engine, "the leader", lease_seconds=60)
    assert await leadership.campaign()
    return leadership


@pytest.fixture
async def temporal(temporal_address: str) -> Client:
    """A client made as the scheduler makes it."""
    return await connect_temporal(TemporalSettings(address=temporal_address))
