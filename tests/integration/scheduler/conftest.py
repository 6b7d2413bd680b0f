"""A database of its own for each test of the scheduler: a round looks at everything there is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from temporalio.client import Client

from control_plane.db.engine import create_engine
from control_plane.settings import PostgresSettings, TemporalSettings
from scheduler.app import connect_temporal
from scheduler.leader import Leadership
from tests.integration.scheduler.scheduler_world import World


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[World]:
    """An empty database with the schema."""
    engine = create_engine(PostgresSettings(dsn=SecretStr(postgres_dsn), pool_size=8))
    yield World(engine, postgres_dsn)
    await engine.dispose()


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
