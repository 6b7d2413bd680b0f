"""A slice of the benchmark `checkpoint_mutations`: damage of every place and kind is noticed, the last good one found."""

from __future__ import annotations

import shutil
from pathlib import Path

import asyncpg
import pytest

from benchmarks import small_training
from benchmarks.checkpoint_mutations import Campaign, job_of
from tests.integration.workers.conftest import World
from workers.control_plane import ControlPlane

MUTATIONS = 60


@pytest.fixture(scope="session")
async def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Those of the first three steps of a small model, trained by the real program."""
    return await small_training.checkpoints(tmp_path_factory.mktemp("training"), 3)


async def test_mutations_are_noticed_and_the_last_good_checkpoint_is_found(
    world: World, postgres_dsn: str, checkpoints: list[Path], tmp_path: Path
) -> None:
    assert world.settings.s3 is not None
    shutil.copytree(checkpoints[0].parent, tmp_path / "checkpoints")
    connection = await asyncpg.connect(postgres_dsn)
    control_plane = ControlPlane.of(world.settings, "the test")
    campaign = Campaign(control_plane, world.settings.s3, connection, job_of(world.job_id, "support"), tmp_path)
    await campaign.commit(checkpoints)
    tally = await campaign.run(MUTATIONS, seed=10_000)
    await control_plane.close()
    await connection.close()
    assert tally.faults == []
    assert (tally.noticed, tally.fell_back) == (MUTATIONS, MUTATIONS)
    assert {kind.partition(":")[0] for kind in tally.kinds} == {"store", "catalogue", "machine"}
