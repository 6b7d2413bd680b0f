"""How long after its start a scheduler has decided its first round, with a million jobs waiting."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path

import asyncpg

from benchmarks.figure import Figure
from benchmarks.servers import PROJECT, database

_SPEC = json.dumps({"type": "fine_tune", "resources": {"accelerators": 1, "accelerator_kind": "any", "max_run_seconds": 3600}})
_BARE_LOAD = "SELECT job_id, project, priority, created_at, state, type, shape FROM jobs"


async def run(quick: bool) -> Figure:
    """Seconds from the start of the process to the commit of its first round."""
    count = 200_000 if quick else 1_000_000
    async with database() as dsn:
        connection = await asyncpg.connect(dsn, command_timeout=600)
        await _queued(connection, count)
        await connection.execute("VACUUM ANALYZE jobs")
        began = time.monotonic()
        await connection.copy_from_query(_BARE_LOAD, output=os.devnull, format="binary")
        bare = time.monotonic() - began
        with tempfile.TemporaryDirectory() as folder:
            seconds, rss_mib = await _first_round(connection, dsn, Path(folder))
        await connection.close()
    details = {"pending": float(count), "resident_mib": rss_mib}
    return Figure("scheduler_recovery", seconds, "s", bare, "s for COPY of the same rows alone", details)


async def _queued(connection: asyncpg.Connection, count: int) -> None:
    columns = ["job_id", "project", "name", "type", "spec", "spec_sha256", "inputs", "priority", "state"]
    for first in range(0, count, 50_000):
        records = [
            (uuid.uuid4(), f"{PROJECT}-{number % 50}", "bench", "fine_tune", _SPEC, "", "{}", number % 1000, "QUEUED")
            for number in range(first, min(count, first + 50_000))
        ]
        await connection.copy_records_to_table("jobs", columns=columns, records=records)


async def _first_round(connection: asyncpg.Connection, dsn: str, folder: Path) -> tuple[float, float]:
    settings = folder / "settings.json"
    settings.write_text(json.dumps({"postgres": {"dsn": dsn, "pool_size": 4}, "temporal": {"address": "127.0.0.1:1"}}))
    with (folder / "log").open("wb") as log:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scheduler", "--health-listen", "127.0.0.1:0"),
            env={**os.environ, "HEADWAY_SETTINGS": str(settings)},
            stderr=log,
        )
    try:
        async with asyncio.timeout(300):
            while not await connection.fetchval("SELECT count(*) FROM scheduling_rounds"):  # noqa: ASYNC110 - polls a database
                await asyncio.sleep(0.02)
        seconds = time.monotonic() - began
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return seconds, int(peak.split()[1]) / 1024
    finally:
        process.kill()
        await process.wait()
