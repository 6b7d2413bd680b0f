"""A slice of the benchmark `kill_anywhere`: jobs under SIGKILLs at any instant come to the undisturbed one's bytes."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from benchmarks import small_training
from benchmarks.agents import World
from benchmarks.kill_anywhere import VARIANTS, campaign
from benchmarks.servers import servers
from control_plane.settings import S3Settings

KILLS = 2


async def test_a_killed_job_comes_to_the_same_bytes(s3_settings: S3Settings, tmp_path: Path) -> None:
    inputs = await small_training.inputs(tmp_path)
    async with servers() as running:
        connection = await asyncpg.connect(running.dsn)
        rows_of = {name: variant.rows for name, variant in VARIANTS.items()}
        world = await World.of(running, s3_settings, connection, tmp_path, inputs, rows_of)
        tally, seconds = await campaign(world, ["dpo"], KILLS, steps=9, seed=1)
        await connection.close()
    assert tally.faults == []
    assert tally.equal == tally.runs >= 2
    assert tally.places.total() >= KILLS
    assert min(seconds.values()) > 0
