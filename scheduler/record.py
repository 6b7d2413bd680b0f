"""What a round leaves beside its decisions: its record, to be replayed; past use; and that it took the notes of changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import zstandard
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler.core.types import Micros, Plan
from scheduler.snapshot import PastUse

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ROUND = text(
    """
    INSERT INTO scheduling_rounds (leader_epoch, planned_at, snapshot_sha256, decisions, decision_count, trace_id, inputs)
    VALUES (:epoch, :planned_at, :sha256, :decisions, :count, :trace_id, :inputs)
    """
)
_PAST_USE = text(
    """
    INSERT INTO past_use (project, accelerator_ms, as_of)
    SELECT * FROM unnest(CAST(:projects AS text[]), CAST(:used AS bigint[]), CAST(:as_of AS timestamptz[]))
    ON CONFLICT (project) DO UPDATE SET accelerator_ms = excluded.accelerator_ms, as_of = excluded.as_of
    """
)
_TAKE_NOTES = text("DELETE FROM scheduler_changes WHERE change_id = ANY(CAST(:change_ids AS bigint[]))")


async def write_round(
    connection: AsyncConnection,
    epoch: int,
    now: Micros,
    rows_sha256: str,
    plan: Plan,
    trace_id: str,
    inputs: bytes | None = None,
) -> None:
    """Records what was decided.

    Args:
        connection: in the transaction that carries the plan out.
        epoch: the leader's.
        now: what the plan was made for.
        rows_sha256: of all rows read since the last record.
        plan: the decisions, whether or not they still held.
        trace_id: of the round.
        inputs: all that it was decided on, as `scheduler.inputs` writes it, if that is to be kept.
    """
    parameters = {
        "epoch": epoch,
        "planned_at": _time(now),
        "sha256": rows_sha256,
        "decisions": zstandard.compress(decisions_json(plan)),
        "count": plan.changes,
        "trace_id": trace_id,
        "inputs": inputs,
    }
    await connection.execute(_ROUND, parameters)


async def write_past_use(connection: AsyncConnection, past_use: Mapping[str, PastUse]) -> None:
    """Stores decayed use, by project."""
    if past_use:
        parameters = {
            "projects": list(past_use),
            "used": [use.accelerator_ms for use in past_use.values()],
            "as_of": [_time(use.as_of) for use in past_use.values()],
        }
        await connection.execute(_PAST_USE, parameters)


async def take_notes(connection: AsyncConnection, change_ids: Sequence[int]) -> None:
    """Takes out the notes that a reading took in."""
    if change_ids:
        await connection.execute(_TAKE_NOTES, {"change_ids": list(change_ids)})


def decisions_json(plan: Plan) -> bytes:
    """What was decided, reasons apart; equal decisions are equal bytes."""
    return to_json(_decisions(plan))


def _decisions(plan: Plan) -> dict[str, Any]:
    return {
        "ends": [(end.lease_id, end.cause.name) for end in plan.ends],
        "grants": [
            (grant.request.request_id, grant.pool, grant.placement, grant.incarnations, grant.cost) for grant in plan.grants
        ],
        "refusals": [(refusal.request.request_id, refusal.reason) for refusal in plan.refusals],
        "preemptions": [(each.lease_id, each.request_id, each.lost_ms) for each in plan.preemptions],
        "claims": [(claim.request_id, claim.placement) for claim in plan.claims],
        "reservations": [(kept.request_id, kept.pool, kept.starts, kept.placement) for kept in plan.reservations],
        "admissions": [job.job_id for job in plan.admissions],
    }


def _time(micros: Micros) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
