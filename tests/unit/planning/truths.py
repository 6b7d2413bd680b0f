"""Whether a reason is true: its numbers are those of the state, and they do forbid what waits."""

from __future__ import annotations

from books import Books, labelled, members_held, money, time_ms

from scheduler.core.backlog import group_of
from scheduler.core.reasons import (
    AdmissionWindow,
    AwaitsPreemption,
    BudgetReached,
    ExceedsMaximum,
    FairShare,
    Fragmented,
    NoCapacity,
    NotEvaluated,
    NoWorkflow,
    QuotaReached,
    Reason,
    Reserved,
)
from scheduler.core.types import Plan, Pool, QueuedJob, Request, Resource

Item = Request | QueuedJob


def holds(reason: Reason, item: Item, start: Books, end: Books, plan: Plan) -> None:
    """Raises AssertionError where a reason of what waits (or was refused) is not true."""
    match reason, item:
        case NoWorkflow(), QueuedJob():
            known = end.limits.job_types
            assert known is not None
            assert reason.job_type == item.job_type
            assert reason.job_type not in reason.known
            assert set(reason.known) == known
        case ExceedsMaximum(), _:
            _exceeds(reason, item, end)
        case AdmissionWindow(), QueuedJob():
            started = sum(job.queue == item.queue for job in plan.admissions)
            assert reason.admitted == end.snapshot.admitted.get(item.queue, 0) + started
            assert reason.maximum == end.limits.prepare_ahead <= reason.admitted
        case BudgetReached(), Request():
            overdrawn = [found for pool in end.allowed(item.shape) for found in end.budgets_short(item, pool)]
            assert (reason.node, reason.unit, reason.requested, reason.left) in overdrawn
            prices = money if reason.unit == "money" else time_ms
            assert reason.requested in {prices(item, pool) for pool in end.allowed(item.shape)}
            assert reason.requested > reason.left
        case QuotaReached(), Request():
            _quota(reason, item, end)
        case FairShare(), Request():
            _fair_share(reason, item, start, end, plan)
        case NoCapacity(), Request():
            _capacity(reason, item, end)
        case Fragmented(), Request():
            _fragmented(reason, item, end)
        case Reserved(), Request():
            kept = [
                some for some in plan.reservations if (some.request_id, some.starts) == (reason.reserved_for, reason.starts)
            ]
            assert len(kept) == 1, f"{reason} names no reservation"
            pool = next(pool for pool in end.allowed(item.shape) if pool.name == kept[0].pool)
            assert end.holds(item, pool, reserved=False) == item.shape.members, f"{item} does not fit anyway"
            assert end.holds(item, pool) < item.shape.members, f"{item} fits beside the reservation"
        case AwaitsPreemption(), Request():
            assert item.claim, f"{item} has no claim"
            assert reason.victims == sum(lease.preempted_for == item.request_id for lease in end.leases)
            assert any(lease.preempted_for is not None for lease in end.leases), f"{item} waits for nobody"
        case NotEvaluated(), Request():
            assert group_of(item) in plan.carried_over
        case _:
            raise AssertionError(f"{reason} cannot be a reason of {item}")


def _amount(item: Item, resource: Resource) -> int:
    return item.shape.member[resource] * item.shape.members


def _exceeds(reason: ExceedsMaximum, item: Item, end: Books) -> None:
    resource = Resource[reason.resource.upper()]
    pools = end.allowed(item.shape)
    assert reason.requested == _amount(item, resource) > reason.maximum > 0, f"{reason} is no contradiction"
    assert reason.kind == item.shape.kind
    empty = {p: [(n, n.total) for n in labelled(item.shape, p, end.snapshot.nodes)] for p in pools}
    holding = [pool for pool in pools if members_held(item.shape, empty[pool]) == item.shape.members]
    if reason.limited_by == "cluster":
        assert not holding, f"{reason} though {holding} could hold it"
        if most := max(members_held(item.shape, nodes) for nodes in empty.values()):
            assert reason.maximum == most * item.shape.member[resource]
        else:
            # The most of this among the nodes that have enough of what was looked at before.
            before = [r for r in Resource if r < resource and item.shape.member[r]]
            left = [n for nodes in empty.values() for n, room in nodes if all(room[r] >= item.shape.member[r] for r in before)]
            assert reason.maximum == max(node.total[resource] for node in left) < item.shape.member[resource]
        return
    assert holding
    subtree, kept = end.quotas(end.snapshot.nodes)
    idle = end.usage_of([])
    for pool in holding:
        cells = [(pool.name, r) for r in Resource if item.shape.member[r]]
        assert not all(end.cell_allows(item, cell, idle, subtree, kept) for cell in cells), f"{pool} would do when idle"
    assert reason.limited_by in end.path(item.queue)
    assert any(_most(item, (pool.name, resource), end) == reason.maximum for pool in holding)


def _most(item: Item, cell: tuple[str, Resource], end: Books) -> int:
    """The most of a cell that the quota gives the queue when nothing is used: found by trying."""
    subtree, kept = end.quotas(end.snapshot.nodes)
    most: int | None = None
    for name in reversed(end.path(item.queue)):
        if most is None:
            most = subtree[name, cell] if any(kept[other, cell] for other in end.parents if other != name) else 10**18
        else:
            limit = end.quota(name, cell).borrowing_limit
            most = kept[name, cell] + min(most, subtree[name, cell] - kept[name, cell] + (10**18 if limit is None else limit))
    assert most is not None
    return max(0, most)


def _quota(reason: QuotaReached, item: Request, end: Books) -> None:
    cell = (reason.pool, Resource[reason.resource.upper()])
    assert reason.pool in {pool.name for pool in end.allowed(item.shape)}
    short = [usage for usage in end.uses if not end.cell_allows(item, cell, usage, *end.own_quotas)]
    assert reason.used in [usage[reason.node, cell] for usage in short], f"{reason} though the quota allows it"
    assert reason.node in end.path(item.queue)
    limit = None if reason.node == end.root else end.quota(reason.node, cell).borrowing_limit
    assert reason.node == end.root or limit is not None, f"{reason} names a node that limits nothing"
    assert reason.requested == _amount(item, cell[1])
    assert reason.nominal == end.subtree[reason.node, cell]
    assert reason.maximum == reason.nominal + (limit or 0)
    assert reason.used + reason.requested > reason.maximum, f"{reason} is no contradiction"


def _fair_share(reason: FairShare, item: Request, start: Books, end: Books, plan: Plan) -> None:
    assert start.fits(item), f"{reason} though there was no room for {item} at the start"
    assert not end.fits(item, reserved=False), f"{reason} though there is room for {item}"
    assert reason.queue == item.queue != reason.ahead_queue
    pools = {pool.name for pool in end.allowed(item.shape)}
    took = [grant for grant in plan.grants if not grant.request.claim and grant.pool in pools]
    assert reason.ahead_queue == [some.request.queue for some in took if some.request.queue != item.queue][-1]
    assert reason.ahead_cost == end.cost(reason.ahead_queue, end.uses[1])
    with_it = {end.cost(item.queue, end.usage_of([*end.settled(), (item.queue, name, item.shape)])) for name in pools}
    assert reason.cost in with_it


def _rooms(item: Request, pool: Pool, end: Books) -> tuple[list[int], list[int]]:
    nodes = end.taking(item.shape, pool)
    free = [sum(end.free(node, item.request_id)[r] for node in nodes) for r in Resource]
    return free, [sum(node.total[r] for node in nodes) for r in Resource]


def short_of(item: Request, pool: Pool, end: Books) -> bool:
    """Whether too little is free in a pool, wherever."""
    return any(_amount(item, r) > _rooms(item, pool, end)[0][r] for r in Resource)


def _capacity(reason: NoCapacity, item: Request, end: Books) -> None:
    resource = Resource[reason.resource.upper()]
    pools = end.allowed(item.shape)
    assert reason.kind == item.shape.kind
    assert reason.requested == _amount(item, resource) > reason.free, f"{reason} is no contradiction"
    if not pools:
        assert (reason.free, reason.total) == (0, 0)
        return
    rooms = [_rooms(item, pool, end) for pool in pools]
    for free, _ in rooms:
        assert any(_amount(item, r) > free[r] for r in Resource), f"{reason} though enough is free: {free}"
    assert (reason.free, reason.total) in [(free[resource], total[resource]) for free, total in rooms]


def _fragmented(reason: Fragmented, item: Request, end: Books) -> None:
    pools = end.allowed(item.shape)
    placeable = [end.holds(item, pool, reserved=False) for pool in pools]
    assert reason.kind == item.shape.kind
    assert reason.requested == item.shape.members > reason.placeable == max(placeable), f"{reason} is no contradiction"
    frees = [_rooms(item, pool, end)[0] for pool in pools]
    enough = [free for free in frees if all(_amount(item, r) <= free[r] for r in Resource)]
    assert reason.free in [free[Resource.ACCELERATORS] for free in enough], f"{reason}: {enough} is free"
