"""Whose leases yield to a request (rule 9)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from scheduler.core.cluster import Cluster
from scheduler.core.eviction import Search
from scheduler.core.quota import QuotaTree
from scheduler.core.settled import Settled
from scheduler.core.types import Brakes, Claim, Lease, Limits, Micros, Preempt, Request
from scheduler.core.victims import Victim


class Eviction(NamedTuple):
    """Who yields, in the order in which they were chosen, and what the request is then placed on."""

    pool: str
    preemptions: tuple[Preempt, ...]
    claim: Claim


class Preemption:
    """Step 4 of a pass, made after its fill and asked for one blocked head after the other.

    Evictions decided are in the cluster at once: the victims yield, the claim is kept. Nothing else of the caller's changes.
    """

    def __init__(
        self,
        cluster: Cluster,
        tree: QuotaTree,
        leases: Collection[Lease],
        claimed: Iterable[Request],
        brakes: Brakes,
        limits: Limits,
        now: Micros,
    ) -> None:
        """What holds after fill.

        Args:
            cluster: with all leases taken, and all pending claims kept.
            tree: with the use of all leases, without claims; it is copied.
            leases: all that are held, with those that were granted in this round, without those that ended.
            claimed: the requests with a pending claim.
            brakes: how much preemption there may be.
            limits: the rules' parameters.
            now: the time of the round.
        """
        self._settled = Settled(cluster, tree, leases, claimed, brakes, limits, now)

    @property
    def brakes(self) -> Brakes:
        """What is left of them."""
        return self._settled.brakes

    @property
    def weighed(self) -> int:
        """Candidates weighed so far; each is an operation."""
        return self._settled.weighed

    def evict(self, request: Request, pools: Iterable[str]) -> Eviction | None:
        """Makes room in the first of the pools where it can be made. None: in none; or it fits by itself.

        Args:
            request: a head that fill found no place for.
            pools: those that its shape and budgets allow, in the order of rule 5.
        """
        for pool in pools:
            if not self._settled.candidates(pool):
                continue
            search = Search(self._settled, request, pool)
            if not search.fits() and (victims := search.victims()):
                return self._decide(search, victims)
        return None

    def _decide(self, search: Search, victims: list[Victim]) -> Eviction:
        """The victims, which the search left out of the cluster, are there again and yield; the request gets a claim."""
        request, cluster = search.request, self._settled.cluster
        placement = search.place()
        if placement is None:
            raise ValueError(
                f"request {request.request_id} fits into {search.pool} by count and not by place; expected both to agree"
            )
        for victim in victims:
            cluster.take_lease(replace(victim.lease, preempted_for=request.request_id))
        cluster.claim(request.request_id, placement, request.shape.member)
        self._settled.decided(request, search.pool, victims)
        preemptions = (Preempt(of.lease_id, of.lease.job_id, request.request_id, of.lost_ms) for of in victims)
        return Eviction(search.pool, tuple(preemptions), Claim(request.request_id, placement))
