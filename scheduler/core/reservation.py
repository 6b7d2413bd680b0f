"""Room kept for the first request of a pool that has been blocked for long, and what may be filled in beside it (rule 8).

EASY backfill (Lifka, 1995): one reservation a pool, at the time by which declared longest run times make it fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from scheduler.core.cluster import Cluster
from scheduler.core.types import Lease, Micros, Reservation, Shape


class Shadow(NamedTuple):
    """What `reserve` found."""

    reservation: Reservation | None
    taken_away: int
    """Leases that had to be thought away; each is an operation."""


def reserve(cluster: Cluster, request_id: str, shape: Shape, pool: str, leases: Iterable[Lease]) -> Shadow:
    """Reserves where and when a shape fits at the latest, if run times hold; quota apart. Otherwise the cluster stays as it is.

    Args:
        cluster: without a reservation in the pool.
        request_id: whose it is to be.
        shape: what does not fit now.
        pool: where.
        leases: all that are held in the pool, those granted in this round too.
    """
    ending = sorted((cluster.ends_at(lease), lease.lease_id, lease) for lease in leases if lease.pool == pool)
    ended: list[Lease] = []
    found: Reservation | None = None
    taken_away = 0
    for ends, _, lease in ending:
        if found is None:
            taken_away += 1
        elif ends > found.starts:
            break
        cluster.give_lease(lease)
        ended.append(lease)
        if found is None and cluster.fits(shape, pool):
            placement = cluster.place_plainly(shape, pool)
            found = Reservation(request_id, pool, ends, placement or ())
    if found is not None:
        cluster.reserve(found, shape)
    for lease in ended:
        cluster.take_lease(lease)
    return Shadow(found, taken_away)


def runs_into(reservation: Reservation | None, request_id: str, run_micros: int, now: Micros) -> bool:
    """Whether a request must be placed beside what is reserved: it may run on when the reservation of another starts."""
    return reservation is not None and reservation.request_id != request_id and now + run_micros > reservation.starts
