"""`python -m scheduler.replay`: decides recorded rounds again from their records, and names those that come out otherwise."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import zstandard
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.engine import create_engine
from control_plane.settings import Settings, require
from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Limits, Micros, Plan
from scheduler.inputs import decode
from scheduler.record import decisions_json

Planner: TypeAlias = Callable[[Snapshot, Micros, Limits], Plan]

_ROUNDS = text(
    """
    SELECT round_id, decisions, inputs FROM scheduling_rounds
    WHERE inputs IS NOT NULL AND (:all OR round_id = ANY(CAST(:round_ids AS bigint[]))) ORDER BY round_id
    """
)


async def replay(engine: AsyncEngine, round_ids: Sequence[int] = (), planner: Planner = plan) -> dict[int, bool]:
    """Whether each round comes out as it is recorded, by its number.

    Args:
        engine: where the records are.
        round_ids: which; none: all of which the inputs are recorded. Those of others, or without inputs, are not in the answer.
        planner: the production one, unless another is to be held against the records.

    Raises:
        InputsError: a record cannot be read.
    """
    found: dict[int, bool] = {}
    async with engine.connect() as connection:
        rounds = await connection.stream(_ROUNDS, {"all": not round_ids, "round_ids": list(round_ids)})
        async for round_id, recorded, inputs in rounds:
            found[round_id] = decisions_json(planner(*decode(inputs))) == zstandard.decompress(recorded)
    return found


async def _main(round_ids: Sequence[int]) -> int:
    engine = create_engine(require(Settings().postgres, "postgres", "scheduler.replay"))
    try:
        found = await replay(engine, round_ids)
    finally:
        await engine.dispose()
    missing = sorted(set(round_ids) - set(found))
    differing = [round_id for round_id, same in found.items() if not same]
    sys.stdout.write(f"{len(found) - len(differing)} of {len(found)} rounds come out as they are recorded\n")
    for round_id in missing:
        sys.stdout.write(f"round {round_id}: its inputs are not recorded; set scheduler.record_inputs_every_rounds\n")
    for round_id in differing:
        sys.stdout.write(f"round {round_id}: comes out otherwise\n")
    return 1 if differing or missing else 0


def main() -> None:
    """Replays the rounds named, or all of which the inputs are recorded; exit status 1 if one comes out otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scheduler.replay", description="Decides recorded rounds again.")
    parser.add_argument(
        "round_ids", nargs="*", type=int, metavar="ROUND", help="of scheduling_rounds; default: all with inputs"
    )
    sys.exit(asyncio.run(_main(parser.parse_args().round_ids)))


if __name__ == "__main__":
    main()
