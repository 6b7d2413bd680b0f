"""What a dry run answers beside the job: its plan, with the token counts of earlier jobs on the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets.prices import price_list
from control_plane.jobs import planning
from control_plane.jobs.planning import DataFacts
from control_plane.jobs.resolve import InputKind, inputs_of
from control_plane.jobs.spec import JobSpec
from headway.jobs.v1 import plan_pb2

_FACTS = text(
    """
    SELECT result -> 'prepare' AS found FROM jobs
    WHERE project = :project AND spec -> 'dataset' ->> 'sha256' = :sha256 AND result ? 'prepare'
    ORDER BY created_at DESC LIMIT 1
    """
)


async def plan(engine: AsyncEngine, project: str, spec: JobSpec, currency: str) -> plan_pb2.JobPlan:
    """The plan of a job that is not stored.

    Args:
        engine: where earlier jobs are.
        project: whose data it is.
        spec: resolved.
        currency: of the price list.
    """
    async with engine.connect() as connection:
        data = await _facts(connection, project, spec)
        prices = await price_list(connection, currency)
    return planning.to_proto(planning.plan(spec, data, prices))


async def _facts(connection: AsyncConnection, project: str, spec: JobSpec) -> Mapping[str, DataFacts]:
    facts: dict[str, DataFacts] = {}
    for _, reference in inputs_of(spec):
        if reference.kind is not InputKind.DATASET or not reference.sha256:
            continue
        found: Any = (await connection.execute(_FACTS, {"project": project, "sha256": reference.sha256})).scalar_one_or_none()
        if found is not None:
            facts[reference.name] = DataFacts(
                rows=int(found["train_rows"] + found["eval_rows"]), tokens=int(found["train_tokens"] + found["eval_tokens"])
            )
    return facts
