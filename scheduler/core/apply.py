"""What a plan leads to: the next snapshot, for simulation and tests. In production PostgreSQL says what became of a plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from scheduler.core.backlog import Backlog
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Brakes, Budget, Grant, Lease, Micros, Plan, QueuedJob, QueueNode, Request

LEASE_MICROS = 60_000_000
"""How long a lease is granted for, unless it is renewed."""


def apply(snapshot: Snapshot, plan: Plan, now: Micros, *, lease_micros: int = LEASE_MICROS) -> Snapshot:
    """The state once all of a plan is done, at the moment that it was made for.

    Leases are granted and ended, victims marked (they hold what they hold until they yield), claims set and dissolved, jobs
    admitted; budgets and brakes are reduced by what is reserved and spent. The requests of an admitted job are its workflow's
    to make. The snapshot given is not changed: what waits is put into a new backlog, which costs as much as what waits.
    """
    return replace(
        snapshot,
        requests=_requests_after(snapshot, plan),
        jobs=_jobs_after(snapshot, plan),
        leases=_leases_after(snapshot, plan, now, lease_micros),
        tree=_tree_after(snapshot, plan),
        admitted=Counter(snapshot.admitted) + Counter(job.queue for job in plan.admissions),
        brakes=Brakes(
            snapshot.brakes.preemptions_left - len(plan.preemptions),
            snapshot.brakes.waste_ms_left - sum(preemption.lost_ms for preemption in plan.preemptions),
        ),
        carried_over=plan.carried_over,
    )


def lease_of(grant: Grant, now: Micros, *, lease_micros: int = LEASE_MICROS) -> Lease:
    """What a request is once it is granted."""
    request = grant.request
    return Lease(
        lease_id=request.request_id,
        job_id=request.job_id,
        queue=request.queue,
        shape=request.shape,
        priority=request.priority,
        submitted=request.submitted,
        run_micros=request.run_micros,
        pool=grant.pool,
        placement=grant.placement,
        incarnations=grant.incarnations,
        granted=now,
        expires=Micros(now + lease_micros),
    )


def _requests_after(snapshot: Snapshot, plan: Plan) -> Backlog[Request]:
    gone = {decision.request.request_id for decision in (*plan.grants, *plan.refusals)}
    claims = {claim.request_id: claim.placement for claim in plan.claims}
    left = (request for request in snapshot.requests if request.request_id not in gone)
    return Backlog(
        (replace(request, claim=claims[request.request_id]) if request.request_id in claims else request for request in left),
        aging_micros=snapshot.requests.aging_micros,
    )


def _jobs_after(snapshot: Snapshot, plan: Plan) -> Backlog[QueuedJob]:
    admitted = {job.job_id for job in plan.admissions}
    left = (job for job in snapshot.jobs if job.job_id not in admitted)
    return Backlog(left, aging_micros=snapshot.jobs.aging_micros)


def _leases_after(snapshot: Snapshot, plan: Plan, now: Micros, lease_micros: int) -> tuple[Lease, ...]:
    ended = {end.lease_id for end in plan.ends}
    yielding = {preemption.lease_id: preemption.request_id for preemption in plan.preemptions}
    return (
        *(
            replace(lease, preempted_for=yielding[lease.lease_id]) if lease.lease_id in yielding else lease
            for lease in snapshot.leases
            if lease.lease_id not in ended
        ),
        *(lease_of(grant, now, lease_micros=lease_micros) for grant in plan.grants),
    )


def _tree_after(snapshot: Snapshot, plan: Plan) -> tuple[QueueNode, ...]:
    """With every budget on the way from a granted request's queue to the root reduced by what it reserves."""
    parents = {node.name: node.parent for node in snapshot.tree}
    root = next((name for name, parent in parents.items() if parent is None), None)
    uncounted = {pool.name for pool in snapshot.pools if pool.kind == "cpu"}
    money, accelerator_ms = Counter[str](), Counter[str]()
    for grant in plan.grants:
        request = grant.request
        used_ms = 0 if grant.pool in uncounted else request.shape.accelerators * request.run_micros // 1_000
        # A queue that is not in the tree is below the root.
        node = request.queue if request.queue in parents else root
        while node is not None:
            money[node] += grant.cost
            accelerator_ms[node] += used_ms
            node = parents[node]

    def reduced(budget: Budget, name: str) -> Budget:
        return Budget(
            None if budget.money_left is None else budget.money_left - money[name],
            None if budget.accelerator_ms_left is None else budget.accelerator_ms_left - accelerator_ms[name],
        )

    return tuple(
        node if node.budget is None else replace(node, budget=reduced(node.budget, node.name)) for node in snapshot.tree
    )
