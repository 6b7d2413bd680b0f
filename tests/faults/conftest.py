"""The real servers and the world of the scheduler's tests, for tests that kill."""

from __future__ import annotations

from tests.faults.crashes import start
from tests.integration.conftest import postgres, postgres_dsn, servers_dir, temporal_address
from tests.integration.scheduler.conftest import temporal, world

__all__ = ["postgres", "postgres_dsn", "servers_dir", "start", "temporal", "temporal_address", "world"]
