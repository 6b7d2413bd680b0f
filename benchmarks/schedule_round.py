"""Rounds of the scheduler's pure core in a full cluster: 1,000 nodes of 8 accelerators, 200 queues, three levels, all rules on.

Each round some hundred leases end, as many requests are granted, and as many new ones come; victims yield by the next round.
The backlog is kept from round to round as the shell keeps it; what is timed is `plan` alone, by the wall.

Ceiling: sorting as many line keys as requests wait. The ratio of times is ours over theirs.
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

from benchmarks.figure import Figure, percentile
from control_plane.collector import collector_paused
from scheduler.core import (
    Backlog,
    Brakes,
    Budget,
    Lease,
    Limits,
    Micros,
    Node,
    Plan,
    Pool,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Resource,
    Shape,
    Snapshot,
    Topology,
    TopologyMode,
    plan,
)

_SECOND = 1_000_000
_BEGINNING = Micros(1_000_000 * _SECOND)
_ROUND_MICROS = 50 * _SECOND
_CHECKPOINT_MICROS = 300 * _SECOND
_LIMITS = Limits()
_SIZES = {100_000: "100k", 1_000_000: "1m"}
_POOLS = (
    Pool("h100", "h100", price=3_000_000),
    Pool("a100", "a100", price=2_000_000),
    Pool("a100-spot", "a100", spot=True, price=1_000_000),
    Pool("l40", "l40", price=800_000),
)
_NODES = {"h100": 500, "a100": 300, "a100-spot": 100, "l40": 100}
_TEAMS, _PROJECTS = 20, 10
_PRIORITIES = (50, 300, 500, 500, 510, 520, 800)
_BRAKES = Brakes(preemptions_left=10, waste_ms_left=36_000_000)
"""As they are at the beginning of every round."""


def of_size(pending: int) -> Callable[[bool], Awaitable[Figure]]:
    """The benchmark with so many requests pending."""

    async def run(quick: bool) -> Figure:
        # In a process of its own: what it needs in memory is part of the figure.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
            return await asyncio.get_running_loop().run_in_executor(own, _measure, pending, 30 if quick else 150)

    return run


def _measure(pending: int, rounds: int) -> Figure:
    world = _World(pending)
    began = time.perf_counter()
    world.requests = Backlog(world.arrive(pending), aging_micros=_LIMITS.aging_micros)
    backlog_ms = (time.perf_counter() - began) * 1_000
    # What is there for long is not gone through at each collection; the shell does the same.
    gc.collect()
    gc.freeze()
    cold_ms = world.round()
    for _ in range(40):
        world.round()
    world.granted = 0
    milliseconds = [world.round() for _ in range(rounds)]
    return Figure(
        f"schedule_round_{_SIZES[pending]}",
        percentile(milliseconds, 99),
        "ms",
        _sorting_ms(pending),
        f"ms to sort {pending:,} line keys",
        {
            "p50_ms": percentile(milliseconds, 50),
            "p99_ms": percentile(milliseconds, 99),
            "cold_ms": cold_ms,
            "backlog_ms": backlog_ms,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024,
            "grants_a_round": world.granted / rounds,
            "leases": float(len(world.leases)),
            "groups": float(len(list(world.requests.lines()))),
        },
    )


def _sorting_ms(keys: int) -> float:
    rng = random.Random(1)  # noqa: S311 - not a secret
    virtual = [rng.getrandbits(50) for _ in range(keys)]
    began = time.perf_counter()
    virtual.sort()
    return (time.perf_counter() - began) * 1_000


@dataclass
class _World:
    """A cluster and its users, and the shell around the core."""

    pending: int
    rng: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 - not a secret
    now: Micros = _BEGINNING
    granted: int = 0
    leases: dict[str, Lease] = field(default_factory=dict[str, Lease])
    ending: dict[str, Micros] = field(default_factory=dict[str, Micros])
    """When leases end by themselves."""
    requests: Backlog[Request] = field(default_factory=lambda: Backlog[Request](aging_micros=_LIMITS.aging_micros))

    def __post_init__(self) -> None:
        self.tree = _tree(self.rng)
        self.queues = [node.name for node in self.tree if node.name.startswith("project")]
        self.shapes = {queue: self.rng.sample(_shapes(), 5) for queue in self.queues}
        self.nodes = [
            Node(
                name=f"{pool}-{number:03}",
                incarnation="1",
                pool=pool,
                total=(8, 128_000, 1_048_576),
                heartbeat=self.now,
                labels=(("rack", f"{pool}-{number // 16:02}"),),
            )
            for pool, count in _NODES.items()
            for number in range(count)
        ]

    def arrive(self, count: int) -> list[Request]:
        """So many new requests."""
        return [self._request() for _ in range(count)]

    def round(self) -> float:
        """A round; returns how many milliseconds `plan` took."""
        snapshot = Snapshot(
            requests=self.requests,
            jobs=Backlog[QueuedJob](aging_micros=_LIMITS.aging_micros),
            leases=tuple(self._checkpointed(lease) for lease in self.leases.values()),
            pools=_POOLS,
            nodes=tuple(replace(node, heartbeat=self.now) for node in self.nodes),
            tree=self.tree,
            brakes=_BRAKES,
        )
        # As the shell does.
        with collector_paused():
            began = time.perf_counter()
            decided = plan(snapshot, self.now, _LIMITS)
            milliseconds = (time.perf_counter() - began) * 1_000
        if not decided.complete:
            raise RuntimeError(f"a round carried {len(decided.carried_over)} groups over; expected the operations to suffice")
        self._apply(decided)
        self._pass_time()
        return milliseconds

    def _checkpointed(self, lease: Lease) -> Lease:
        ran = (self.now - lease.granted) // _CHECKPOINT_MICROS * _CHECKPOINT_MICROS
        return replace(lease, checkpointed=Micros(lease.granted + ran)) if ran else lease

    def _request(self) -> Request:
        rng = self.rng
        # Some queues ask for far more than others.
        queue = self.queues[int(len(self.queues) * rng.random() ** 1.5)]
        return Request(
            request_id=f"{rng.getrandbits(128):032x}",
            job_id=f"{rng.getrandbits(128):032x}",
            queue=queue,
            shape=rng.choice(self.shapes[queue]),
            priority=rng.choice(_PRIORITIES),
            submitted=Micros(self.now - rng.randrange(600) * _SECOND),
            run_micros=rng.choice((300, 900, 1_800)) * _SECOND,
        )

    def _apply(self, decided: Plan) -> None:
        self.granted += len(decided.grants)
        for grant in decided.grants:
            request = self.requests.remove(grant.request.request_id)
            self.leases[request.request_id] = Lease(
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
                granted=self.now,
                expires=Micros(self.now + 2 * request.run_micros),
            )
            self.ending[request.request_id] = Micros(self.now + int(request.run_micros * self.rng.uniform(0.1, 1)))
        for refusal in decided.refusals:
            self.requests.remove(refusal.request.request_id)
        for preemption in decided.preemptions:
            victim = self.leases[preemption.lease_id]
            self.leases[victim.lease_id] = replace(victim, preempted_for=preemption.request_id)
            self.ending[victim.lease_id] = self.now
        for claim in decided.claims:
            self.requests.add(replace(self.requests.remove(claim.request_id), claim=claim.placement))

    def _pass_time(self) -> None:
        self.now = Micros(self.now + _ROUND_MICROS)
        for lease_id in [lease_id for lease_id, end in self.ending.items() if end <= self.now]:
            victim = self.leases.pop(lease_id)
            del self.ending[lease_id]
            if victim.preempted_for is not None:
                self.requests.add(replace(self._request(), queue=victim.queue, shape=victim.shape, preempted=True))
        for request in self.arrive(self.pending - len(self.requests)):
            self.requests.add(request)


def _shapes() -> list[Shape]:
    def shape(kind: str, accelerators: int, members: int = 1, mode: TopologyMode | None = None, *, spot: bool = False) -> Shape:
        member = (accelerators, 8_000 * accelerators, 65_536 * accelerators)
        return Shape(kind, member, members, spot, topology=Topology("rack", mode) if mode else None)

    return [
        *(shape("h100", accelerators) for accelerators in (1, 2, 4, 8)),
        *(shape("a100", accelerators, spot=True) for accelerators in (1, 2, 4)),
        shape("a100", 1),
        shape("a100", 8),
        shape("l40", 1),
        shape("any", 1),
        shape("h100", 8, 2, TopologyMode.PREFERRED),
        shape("h100", 8, 4, TopologyMode.REQUIRED),
        shape("a100", 8, 2, TopologyMode.BALANCED),
    ]


def _tree(rng: random.Random) -> tuple[QueueNode, ...]:
    """80 % of the accelerators are somebody's own; the rest is lent to all. A tenth of the projects keep a quarter of theirs;
    teams borrow at most twice what they own; a quarter of them has a budget."""
    own = {pool: count * 8 * 8 // 10 // (_TEAMS * _PROJECTS) for pool, count in _NODES.items() if pool != "a100-spot"}
    nodes = [QueueNode("organisation", None)]
    for team in range(_TEAMS):
        borrowing = {
            (pool, Resource.ACCELERATORS): Quota(borrowing_limit=nominal * _PROJECTS * 2) for pool, nominal in own.items()
        }
        budget = Budget(money_left=10**13) if team % 4 == 0 else None
        nodes.append(QueueNode(f"team-{team:02}", "organisation", quotas=borrowing, budget=budget))
        for project in range(_PROJECTS):
            quotas = {
                (pool, Resource.ACCELERATORS): Quota(nominal, lending_limit=None if project else nominal * 3 // 4)
                for pool, nominal in own.items()
            }
            nodes.append(
                QueueNode(
                    f"project-{team:02}-{project}",
                    f"team-{team:02}",
                    weight=rng.choice((500, 1_000, 2_000)),
                    quotas=quotas,
                    past_use=rng.randrange(10**6),
                )
            )
    return tuple(nodes)
