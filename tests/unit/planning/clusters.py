"""Clusters at random: from a seed, or drawn (and shrunk) by Hypothesis through the same code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from hypothesis import strategies as st

from scheduler.core.backlog import Backlog, group_of
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Amounts,
    Brakes,
    Budget,
    Cell,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Pool,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Resource,
    Shape,
    Topology,
    TopologyMode,
)

SECOND = 1_000_000
NOW = Micros(10_000 * SECOND)
LIMITS = Limits(prepare_ahead=2, job_types=frozenset({"fine_tune"}))

T = TypeVar("T")


@dataclass(frozen=True)
class Scenario:
    """What a round is given."""

    snapshot: Snapshot
    limits: Limits
    now: Micros = NOW


@dataclass(frozen=True)
class Size:
    """The most there is of what a cluster is made of, and which rules come into play."""

    nodes: int = 6
    queues: int = 5
    depth: int = 4
    requests: int = 12
    leases: int = 8
    jobs: int = 6
    shapes: int = 4
    preemption: bool = True
    """Whether there are brakes that allow some, and claims."""
    budgets: bool = True
    reservations: bool = True
    """Whether anybody has waited long enough for one."""
    operations: int | None = None
    """The most a round may have; None: enough."""
    contended: bool = False
    """Whether all is in order, small and of one kind, and little is free: so that queues compete."""


ANYTHING = Size()
CONTENDED = Size(leases=24, shapes=3, budgets=False, contended=True)
BACKFILLED = Size(nodes=3, depth=2, leases=6, budgets=False, preemption=False, contended=True)
SHORT_ROUNDS = Size(operations=30)
CALM = replace(CONTENDED, reservations=False)
LARGE = Size(nodes=30, queues=12, requests=200, leases=60, jobs=60, shapes=8)
WIDE = Size(nodes=140, requests=30, leases=60, preemption=False, operations=80, contended=True)


def clusters(size: Size = ANYTHING) -> st.SearchStrategy[Scenario]:
    """Drawn by Hypothesis."""
    return st.randoms(use_true_random=False).map(lambda random: scenario(random, size))


def seeded(seed: int, size: Size = ANYTHING) -> Scenario:
    """The same for the same seed."""
    return scenario(Random(seed), size)  # noqa: S311 - a cluster that repeats, not a secret


def scenario(random: Random, size: Size) -> Scenario:
    """Anything that can be, and some that should not: lost nodes, quotas below what is held, overdrawn budgets."""
    pools = _pools(random, size)
    nodes = _nodes(random, pools, size)
    tree = _tree(random, pools, size)
    inner = {node.parent for node in tree}
    queues = [*(node.name for node in tree if node.name not in inner and node.parent is not None), "unlisted"]
    shapes = [_shape(random, size) for _ in range(random.randint(1, size.shapes))]
    requests = [_request(random, index, queues, shapes, size) for index in range(random.randint(0, size.requests))]
    leases = _leases(random, pools, nodes, queues, shapes, size)
    if size.preemption:
        requests, leases = _with_claims(random, pools, nodes, requests, leases)
    limits = _limits(random, size)
    snapshot = Snapshot(
        requests=Backlog(requests, aging_micros=limits.aging_micros),
        jobs=Backlog(
            (_job(random, index, queues, shapes) for index in range(random.randint(0, size.jobs))),
            aging_micros=limits.aging_micros,
        ),
        leases=tuple(leases),
        pools=tuple(pools),
        nodes=tuple(nodes),
        tree=tuple(tree),
        admitted={queue: random.randint(0, 3) for queue in queues if _chance(random, 50)},
        brakes=_brakes(random, size),
        database_started=Micros(random.choice((0, NOW - SECOND))),
        carried_over=_carried_over(random, requests),
    )
    return Scenario(snapshot, limits)


def shuffled(snapshot: Snapshot, random: Random) -> Snapshot:
    """The same, in another order."""
    return replace(
        snapshot,
        requests=Backlog(_shuffled(random, list(snapshot.requests)), aging_micros=snapshot.requests.aging_micros),
        jobs=Backlog(_shuffled(random, list(snapshot.jobs)), aging_micros=snapshot.jobs.aging_micros),
        leases=tuple(_shuffled(random, snapshot.leases)),
        pools=tuple(_shuffled(random, snapshot.pools)),
        nodes=tuple(_shuffled(random, snapshot.nodes)),
        tree=tuple(
            replace(node, quotas=dict(_shuffled(random, list(node.quotas.items()))))
            for node in _shuffled(random, snapshot.tree)
        ),
        admitted=dict(_shuffled(random, list(snapshot.admitted.items()))),
        carried_over=tuple(_shuffled(random, snapshot.carried_over)),
    )


def _shuffled(random: Random, items: Sequence[T]) -> list[T]:
    mixed = list(items)
    random.shuffle(mixed)
    return mixed


def _chance(random: Random, percent: int) -> bool:
    # Hypothesis shrinks towards the lowest: towards "no".
    return random.randint(0, 99) >= 100 - percent


def _pools(random: Random, size: Size) -> list[Pool]:
    every = [
        Pool("a100", "a100", price=2_000_000),
        Pool("cpu", "cpu", price=100_000),
        Pool("h100", "h100", price=4_000_000),
        Pool("h100-b", "h100", price=4_000_000),
        Pool("h100-spot", "h100", spot=True, price=1_000_000),
    ]
    if size.contended:
        return [every[2]]
    return [every[2], *(pool for pool in every if pool.name != "h100" and _chance(random, 30))]


def _nodes(random: Random, pools: Sequence[Pool], size: Size) -> list[Node]:
    if size.contended:
        racks = [random.choice("abc") for _ in range(random.randint(1, size.nodes))]
        return [
            Node(f"n{index}", "first", "h100", (4, 32_000, 256_000), NOW, labels=(("rack", rack),))
            for index, rack in enumerate(racks)
        ]

    def node(index: int) -> Node:
        pool = random.choice(pools) if index else pools[0]
        accelerators = random.choice((0, 1)) if pool.kind == "cpu" else random.choice((8, 4, 2))
        labels = [("rack", random.choice("abc"))] if _chance(random, 70) else []
        if _chance(random, 30):
            labels.append(("zone", "z"))
        return Node(
            name=f"n{index}",
            incarnation="first",
            pool=pool.name,
            total=(accelerators, random.choice((64_000, 16_000, 8_000)), random.choice((512_000, 64_000))),
            heartbeat=Micros(NOW - random.choice((0, 0, 0, 0, 15 * SECOND, 16 * SECOND))),
            cordoned=_chance(random, 10),
            labels=tuple(labels),
        )

    return [node(index) for index in range(random.randint(0, size.nodes))]


def _tree(random: Random, pools: Sequence[Pool], size: Size) -> list[QueueNode]:
    if _chance(random, 5):
        return []
    cells = [(pool.name, Resource.ACCELERATORS) for pool in pools]
    cells += [(pool.name, Resource.CPU_MILLIS) for pool in pools if _chance(random, 20)]
    named = [cell for cell in cells if _chance(random, 70)]
    nodes = [QueueNode("org", None, quotas=_quotas(random, named, size), budget=_budget(random, size))]
    level = ["org"]
    for depth in range(1, random.randint(1, size.depth)):
        names = [f"{depth}-{index}" for index in range(random.randint(1, size.queues))]
        nodes += [
            QueueNode(
                name,
                random.choice(level),
                weight=random.choice((1_000, 1_000, 2_000, 500, 1)),
                quotas=_quotas(random, named, size),
                past_use=random.choice((0, 0, 5, 10)),
                budget=_budget(random, size),
                demoted=_chance(random, 10),
            )
            for name in names
        ]
        level = names
    return nodes


def _quotas(random: Random, cells: Sequence[Cell], size: Size) -> dict[Cell, Quota]:
    limits = (None, None, None, None, 2, 4) if size.contended else (None, None, 0, 2, 4)

    def quota(unit: int) -> Quota:
        return Quota(
            nominal=random.choice((0, 2, 4, 8)) * unit,
            borrowing_limit=random.choice(limits),
            lending_limit=random.choice(limits),
        )

    return {cell: quota(1 if cell[1] is Resource.ACCELERATORS else 8_000) for cell in cells if _chance(random, 50)}


def _budget(random: Random, size: Size) -> Budget | None:
    if not size.budgets or not _chance(random, 15):
        return None
    return Budget(
        money_left=random.choice((None, -1, 0, 5_000_000, 20_000_000)),
        accelerator_ms_left=random.choice((None, -1, 0, 3_600_000, 14_400_000)),
    )


def _shape(random: Random, size: Size) -> Shape:
    if size.contended:
        members = random.choice((1, 1, 2))
        topology = Topology("rack", TopologyMode.REQUIRED) if members > 1 and _chance(random, 50) else None
        return Shape("h100", (random.choice((1, 2, 4)), 4_000, 8_000), members, topology=topology)
    members = random.choice((1, 1, 1, 2, 3))
    return Shape(
        kind=random.choice(("h100", "h100", "h100", "any", "a100", "cpu")),
        member=(random.choice((1, 2, 4, 8, 0)), random.choice((1_000, 4_000, 0, 16_000)), random.choice((1_000, 32_000))),
        members=members,
        spot=_chance(random, 40),
        labels=(("zone", "z"),) if _chance(random, 10) else (),
        topology=Topology("rack", random.choice(tuple(TopologyMode))) if members > 1 and _chance(random, 60) else None,
    )


def _priority(random: Random) -> int:
    return random.choice((500, 500, 450, 400, 100, 50, 0, 700, 1_000))


def _request(random: Random, index: int, queues: Sequence[str], shapes: Sequence[Shape], size: Size) -> Request:
    waited = random.choice((600, 60, 59, 1, 0) if size.reservations else (59, 1, 0))
    return Request(
        request_id=f"r{index:03}",
        job_id=f"j-r{index:03}",
        queue=random.choice(queues),
        shape=random.choice(shapes),
        priority=_priority(random),
        submitted=Micros(NOW - waited * SECOND),
        run_micros=random.choice((600, 60, 3_600)) * SECOND,
        preempted=size.preemption and _chance(random, 30),
    )


def _job(random: Random, index: int, queues: Sequence[str], shapes: Sequence[Shape]) -> QueuedJob:
    return QueuedJob(
        job_id=f"j{index:03}",
        queue=random.choice(queues),
        shape=random.choice(shapes),
        priority=_priority(random),
        submitted=Micros(NOW - random.randint(0, 3) * SECOND),
        job_type=random.choice(("fine_tune", "fine_tune", "hpo")),
    )


def _leases(
    random: Random, pools: Sequence[Pool], nodes: Sequence[Node], queues: Sequence[str], shapes: Sequence[Shape], size: Size
) -> list[Lease]:
    leases: list[Lease] = []
    for index in range(random.randint(0, size.leases)):
        shape, pool = random.choice(shapes), random.choice(pools)
        placement = _anywhere(shape, pool, nodes, leases)
        if placement is None:
            continue
        granted = NOW - random.choice((600, 300) if size.contended else (600, 300, 120, 119, 10)) * SECOND
        leases.append(
            Lease(
                lease_id=f"l{index:03}",
                job_id=f"j-l{index:03}",
                queue=random.choice(queues),
                shape=shape,
                priority=_priority(random),
                submitted=Micros(granted - SECOND),
                run_micros=random.choice((600, 60, 3_600)) * SECOND,
                pool=pool.name,
                placement=placement,
                incarnations=tuple("before" if _chance(random, 3) and not size.contended else "first" for _ in placement),
                granted=Micros(granted),
                expires=Micros(NOW + random.choice((30 * SECOND,) if size.contended else (30 * SECOND, 30 * SECOND, 0, -1))),
                checkpointed=random.choice((None, Micros(granted + SECOND), Micros(NOW - SECOND), Micros(granted - SECOND))),
                preempted_for="gone" if _chance(random, 3) else None,
            )
        )
    return leases


def _with_claims(
    random: Random, pools: Sequence[Pool], nodes: Sequence[Node], requests: Sequence[Request], leases: Sequence[Lease]
) -> tuple[list[Request], list[Lease]]:
    """Some requests with leases that yield to them, and what is claimed: by no two the same."""
    claiming, yielding = list(requests), list(leases)
    for index, request in enumerate(requests):
        if not _chance(random, 10):
            continue
        pool = random.choice(pools)
        victims = [z for z in yielding if z.pool == pool.name and z.preempted_for is None and _chance(random, 50)]
        left = [z for z in yielding if z not in victims]
        claims = [r for r in claiming if r.claim]
        if (placement := _anywhere(request.shape, pool, nodes, [*left, *claims])) is None:
            continue
        claiming[index] = replace(request, claim=placement)
        if not _chance(random, 20):
            yielding = [replace(z, preempted_for=request.request_id) if z in victims else z for z in yielding]
    return claiming, yielding


def _anywhere(shape: Shape, pool: Pool, nodes: Sequence[Node], taken: Sequence[Lease | Request]) -> Placement | None:
    """All members on nodes of the pool, in order of name, beside what is taken; whatever else is asked for."""
    placement: list[tuple[str, int]] = []
    left = shape.members
    for node in nodes:
        if node.pool == pool.name and left:
            free = _free(node, taken)
            fits = min(free[r] // shape.member[r] for r in Resource if shape.member[r])
            if (count := max(0, min(left, fits))) > 0:
                placement.append((node.name, count))
                left -= count
    return None if left else tuple(sorted(placement))


def _free(node: Node, taken: Sequence[Lease | Request]) -> Amounts:
    free = list(node.total)
    for item in taken:
        count = dict(item.placement if isinstance(item, Lease) else item.claim).get(node.name, 0)
        for resource in Resource:
            free[resource] -= item.shape.member[resource] * count
    return (free[0], free[1], free[2])


def _brakes(random: Random, size: Size) -> Brakes:
    if size.contended:
        brakes = Brakes(random.choice((100, 100, 100, 2)), random.choice((100_000_000, 100_000_000, 3_000_000)))
        return brakes if size.preemption else Brakes(0, 0)
    return Brakes(random.choice((10, 3, 1, 0)), random.choice((10_000_000, 1_000_000, 0)))


def _limits(random: Random, size: Size) -> Limits:
    return replace(
        LIMITS,
        run_minimum_micros=random.choice((120 * SECOND, 0)),
        cost_buckets=random.choice((LIMITS.cost_buckets, 10)),
        operations_max=1_000_000 if size.operations is None else random.randint(0, size.operations),
        job_types=random.choice((frozenset({"fine_tune"}), None)),
    )


def _carried_over(random: Random, requests: Sequence[Request]) -> tuple[GroupKey, ...]:
    if not _chance(random, 20):
        return ()
    return tuple(sorted({group_of(request) for request in requests if _chance(random, 50)}))
