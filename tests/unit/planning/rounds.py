"""Small clusters for tests of rounds, told in few words: whatever a test does not speak of has a default."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from scheduler.core import (
    Backlog,
    Brakes,
    Cell,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Plan,
    Pool,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Resource,
    Shape,
    Snapshot,
    plan,
)

SECOND = 1_000_000
NOW = Micros(1_000_000 * SECOND)
LIMITS = Limits(prepare_ahead=2, cost_buckets=1_000)
POOL = Pool("gpu", "h100")
GPUS: Cell = ("gpu", Resource.ACCELERATORS)
LOW, NORMAL, HIGH, URGENT = 200, 500, 800, 950
FREE_TO_PREEMPT = Brakes(preemptions_left=100, waste_ms_left=10**12)


def shape(accelerators: int = 1, members: int = 1, **fields: Any) -> Shape:
    """Of h100, with neither CPU nor memory."""
    return replace(Shape("h100", (accelerators, 0, 0), members), **fields)


def node(name: str = "n1", accelerators: int = 8, **fields: Any) -> Node:
    """Heard of just now."""
    return replace(Node(name, "1", "gpu", (accelerators, 64_000, 1_024), NOW), **fields)


def queue(name: str, nominal: int | Quota = 0, parent: str | None = "org", **fields: Any) -> QueueNode:
    """With a quota of accelerators."""
    quota = nominal if isinstance(nominal, Quota) else Quota(nominal)
    return replace(QueueNode(name, parent, quotas={GPUS: quota}), **fields)


def request(name: str = "r", of: Shape | int = 1, *, waited: int = 0, run: int = 3_600, **fields: Any) -> Request:
    """Times in seconds."""
    asked = of if isinstance(of, Shape) else shape(of)
    return replace(
        Request(name, f"job-{name}", "q", asked, NORMAL, Micros(NOW - waited * SECOND), run_micros=run * SECOND), **fields
    )


def lease(
    name: str, of: Shape | int = 1, on: str | Placement = "n1", *, ran: int = 600, run: int = 3_600, **fields: Any
) -> Lease:
    """Times in seconds."""
    placement = ((on, 1),) if isinstance(on, str) else on
    began = Micros(NOW - ran * SECOND)
    held = Lease(
        lease_id=name,
        job_id=f"job-{name}",
        queue="q",
        shape=of if isinstance(of, Shape) else shape(of),
        priority=NORMAL,
        submitted=began,
        run_micros=run * SECOND,
        pool="gpu",
        placement=placement,
        incarnations=("1",) * len(placement),
        granted=began,
        expires=Micros(NOW + 60 * SECOND),
    )
    return replace(held, **fields)


def job(name: str = "j", of: Shape | int = 1, *, waited: int = 0, **fields: Any) -> QueuedJob:
    """Times in seconds."""
    asked = of if isinstance(of, Shape) else shape(of)
    return replace(QueuedJob(name, "q", asked, NORMAL, Micros(NOW - waited * SECOND)), **fields)


def snapshot(
    *requests: Request,
    nodes: Iterable[Node] = (node(),),
    leases: Iterable[Lease] = (),
    jobs: Iterable[QueuedJob] = (),
    pools: Iterable[Pool] = (POOL,),
    tree: Iterable[QueueNode] = (),
    limits: Limits = LIMITS,
    **fields: Any,
) -> Snapshot:
    """`tree`: without its root, which is "org"; empty: none."""
    below = tuple(tree)
    return Snapshot(
        requests=Backlog(requests, aging_micros=limits.aging_micros),
        jobs=Backlog(jobs, aging_micros=limits.aging_micros),
        leases=tuple(leases),
        pools=tuple(pools),
        nodes=tuple(nodes),
        tree=(queue("org", parent=None), *below) if below else (),
        **fields,
    )


def granted(done: Plan) -> list[tuple[str, str, Placement]]:
    """Request, pool and placement of each grant, in order."""
    return [(grant.request.request_id, grant.pool, grant.placement) for grant in done.grants]


def names(done: Plan) -> list[str]:
    """Of the requests granted, in order."""
    return [grant.request.request_id for grant in done.grants]


def reasons(done: Plan) -> dict[str, list[object]]:
    """Of what waits, by queue: the reasons of its groups, one after the other."""
    found: dict[str, list[object]] = {}
    for waiting in (*done.waiting_requests, *done.waiting_jobs):
        found.setdefault(waiting.group.queue, []).extend(waiting.reasons)
    return found


def round_of(given: Snapshot, limits: Limits = LIMITS) -> Plan:
    """At `NOW`."""
    return plan(given, NOW, limits)
