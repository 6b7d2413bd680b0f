"""Nodes taken out of service and put back."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.capacity import repository
from control_plane.jobs.lifecycle import PREEMPT, steer
from control_plane.jobs.selection import Selection


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain did: leases that were asked to yield now, and leases that the node holds."""

    asked: int
    held: int


async def cordon(connection: AsyncConnection, node: str) -> None:
    """The node takes nothing new. One that is being drained goes on being drained.

    Raises:
        RefusedError: there is no such node.
    """
    await _set(connection, node, cordoned=True, draining=None)


async def uncordon(connection: AsyncConnection, node: str) -> None:
    """The node takes new work again. What was asked to leave leaves all the same.

    Raises:
        RefusedError: there is no such node.
    """
    await _set(connection, node, cordoned=False, draining=False)


async def drain(connection: AsyncConnection, node: str, reason: str) -> Drained:
    """The node takes nothing new, and what runs on it is asked to checkpoint and yield.

    Args:
        connection: a connection in a transaction.
        node: which.
        reason: why, for the node and the jobs' histories; empty: that it is drained.

    Raises:
        RefusedError: there is no such node.
    """
    await _set(connection, node, cordoned=True, draining=True, drain_reason=reason)
    held = await repository.leases_on(connection, node)
    if not held:
        return Drained(0, 0)
    job_ids = tuple(sorted({job_id for _, job_id in held}))
    outcomes = await steer(connection, PREEMPT, Selection(job_ids=job_ids), reason or f"node {node} is being drained")
    # Their time to yield begins; whoever is found on the node later is asked by the scheduler.
    await repository.begin_to_yield(connection, [lease_id for lease_id, _ in held])
    return Drained(sum(outcome.changed for outcome in outcomes.jobs), len(held))


async def _set(
    connection: AsyncConnection, node: str, *, cordoned: bool, draining: bool | None, drain_reason: str = ""
) -> None:
    await repository.lock_worker(connection, node)
    await repository.set_service(connection, node, cordoned=cordoned, draining=draining, drain_reason=drain_reason)
