"""A scheduler in a process of its own, as `python -m benchmarks.scheduling`: leadership and rounds, and nothing is dispatched.

It wakes for rounds as `scheduler/app.py` does, by notifications and coalesced. What it leaves out is Temporal.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from pydantic import SecretStr

from control_plane.collector import spare_collector
from control_plane.db.engine import create_engine
from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_SCHEDULER
from control_plane.settings import PostgresSettings, SchedulerSettings
from headway_client.telemetry import configure_tracing
from scheduler.leader import Leadership
from scheduler.loop import RoundLoop
from scheduler.repeat import repeat

_CAMPAIGNS_PER_TERM = 4


@asynccontextmanager
async def scheduler(dsn: str, rules: Mapping[str, Any], log: Path) -> AsyncGenerator[int]:
    """Runs it with these settings of the section `scheduler`; inside the block it leads. Yields its process id."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.scheduling", dsn, json.dumps(dict(rules))), stdout=output, stderr=output
        )
    try:
        connection = await asyncpg.connect(dsn)
        async with asyncio.timeout(60):
            while not await connection.fetchval("SELECT 1 FROM leaders WHERE expires_at > clock_timestamp()"):
                if process.returncode is not None:
                    raise RuntimeError(f"the scheduler did not start: {log.read_text()[-2_000:]}")
                await asyncio.sleep(0.05)
        await connection.close()
        yield process.pid
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _main(dsn: str, rules: SchedulerSettings) -> None:
    # As the scheduler's own process does.
    spare_collector()
    configure_tracing("benchmark", None, {})
    engine = create_engine(PostgresSettings(dsn=SecretStr(dsn), pool_size=4))
    notifications = Notifications(dsn, [CHANNEL_SCHEDULER])
    await notifications.start()
    leadership = Leadership(engine, f"benchmark/{os.getpid()}", rules.leader_lease_seconds)
    rounds = RoundLoop(engine, leadership, rules, asyncio.Event())
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    with notifications.subscribed(CHANNEL_SCHEDULER) as plan_now:

        async def campaign() -> float:
            led = leadership.epoch is not None
            if await leadership.campaign() and not led:
                plan_now.set()
            return rules.leader_lease_seconds / _CAMPAIGNS_PER_TERM

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(repeat("campaign", campaign, asyncio.Event())),
                group.create_task(repeat("round", rounds.round, plan_now, coalesce_seconds=rules.round_coalesce_ms / 1_000)),
            ]
            await stopped.wait()
            for task in tasks:
                task.cancel()
    await notifications.stop()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], SchedulerSettings.model_validate_json(sys.argv[2])))
