"""What must be true of every plan: a check for each invariant, which raises AssertionError where a plan breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from random import Random
from typing import TypeAlias

from books import Books, books_after, books_at_start, cells_taken, money, taken, total
from clusters import Scenario, shuffled
from truths import holds, short_of

from scheduler.core.apply import apply, lease_of
from scheduler.core.backlog import group_of
from scheduler.core.reasons import NotEvaluated, ReasonCode
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Cell,
    EndCause,
    Grant,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Plan,
    Pool,
    PriorityClass,
    Request,
    Resource,
    TopologyMode,
    Waiting,
)

Planner: TypeAlias = Callable[[Snapshot, Micros, Limits], Plan]


@dataclass(frozen=True)
class Case:
    """A round that was planned."""

    given: Scenario
    planner: Planner

    @cached_property
    def plan(self) -> Plan:
        return self.planner(self.given.snapshot, self.given.now, self.given.limits)

    @property
    def snapshot(self) -> Snapshot:
        return self.given.snapshot

    @cached_property
    def start(self) -> Books:
        """What the round divides."""
        return books_at_start(self.snapshot, self.given.now, self.given.limits, self.plan)

    @cached_property
    def end(self) -> Books:
        """What it leads to."""
        return books_after(self.snapshot, self.given.now, self.given.limits, self.plan)

    @cached_property
    def filled(self) -> list[Grant]:
        """Granted in order, not on a claim."""
        return [grant for grant in self.plan.grants if not grant.request.claim]

    @cached_property
    def pools(self) -> dict[str, Pool]:
        return {pool.name: pool for pool in self.snapshot.pools}

    @cached_property
    def blocked(self) -> list[Request]:
        """The first unclaimed request of every group that was looked at and waits."""
        reached = {waiting.group for waiting in self.plan.waiting_requests} - set(self.plan.carried_over)
        unclaimed = sorted((r for r in self.end.requests if not r.claim), key=self.end.virtual, reverse=True)
        heads = {group_of(request): request for request in unclaimed}
        return [head for group, head in heads.items() if group in reached]


Check: TypeAlias = Callable[[Case], None]


def nothing_is_oversubscribed(case: Case) -> None:
    """No node that something was granted on holds or keeps more than it has; it lives, takes new work, and will do."""
    for grant in case.plan.grants:
        shape, pool = grant.request.shape, case.pools[grant.pool]
        assert shape.kind in ("any", pool.kind), f"{grant} is not of the kind"
        assert shape.spot or not pool.spot, f"{grant} takes no spot"
        for (name, _), incarnation in zip(grant.placement, grant.incarnations, strict=True):
            node = case.end.node_named[name]
            assert node in case.end.taking(shape, pool), f"{grant} is on {node}, which does not do"
            assert node.incarnation == incarnation, f"{grant} names another start of {node}"
            held = total(taken(lease.shape, lease.placement, name) for lease in case.end.leases)
            kept = [0, 0, 0]
            for request in case.end.requests:
                yielding = [z for z in case.end.leases if z.preempted_for == request.request_id]
                still = total(taken(z.shape, z.placement, name) for z in yielding)
                kept = [kept[r] + max(0, taken(request.shape, request.claim, name)[r] - still[r]) for r in Resource]
            assert all(held[r] + kept[r] <= node.total[r] for r in Resource), f"{node} holds {held} and keeps {kept}"


def no_quota_is_exceeded(case: Case) -> None:
    """No node of the tree uses more of a cell than it may, but for what it used before."""
    before = case.start.usage_of((lease.queue, lease.pool, lease.shape) for lease in _left(case))
    after = case.end.usage_of(case.end.held)
    for name in case.end.parents:
        for cell in case.end.named:
            limit = case.end.quota(name, cell).borrowing_limit
            kept = any(case.end.kept[other, cell] for other in case.end.parents if other != case.end.root)
            if limit is not None if name != case.end.root else kept:
                most = case.end.subtree[name, cell] + (limit or 0 if name != case.end.root else 0)
                assert after[name, cell] <= max(most, before[name, cell]), f"{name} uses {after[name, cell]} of {cell}, {most=}"


def no_budget_is_exceeded(case: Case) -> None:
    """What is reserved for leases was left in every budget; and a grant says what it costs."""
    for grant in case.plan.grants:
        assert grant.cost == money(grant.request, case.pools[grant.pool])
        for name in case.end.path(grant.request.queue):
            node = next((node for node in apply(case.snapshot, case.plan, case.given.now).tree if node.name == name), None)
            if node is not None and node.budget is not None:
                assert node.budget.money_left is None or node.budget.money_left >= 0, f"{name} overdrew by {grant}"
                left = node.budget.accelerator_ms_left
                assert left is None or left >= 0 or case.pools[grant.pool].kind == "cpu", f"{name} overdrew by {grant}"


def gangs_are_atomic(case: Case) -> None:
    """All members of what is granted or claimed are placed, once, in one pool, and in one domain where that is required."""
    placements = [(grant.request.request_id, grant.request, grant.placement) for grant in case.plan.grants]
    placements += [
        (claim.request_id, request, claim.placement)
        for claim in case.plan.claims
        if claim.placement and (request := case.snapshot.requests.get(claim.request_id)) is not None
    ]
    assert len({name for name, _, _ in placements}) == len(placements), "something was placed twice"
    for _, request, placement in placements:
        shape, nodes = request.shape, [case.end.node_named[name] for name, _ in placement]
        assert sum(count for _, count in placement) == shape.members, f"{request} is placed in part: {placement}"
        assert len({node.pool for node in nodes}) == 1, f"{request} is in several pools: {placement}"
        # A claim is placed as it was claimed, whatever became of labels since.
        if shape.topology is not None and shape.topology.mode is not TopologyMode.PREFERRED and not request.claim:
            domains = {dict(node.labels).get(shape.topology.level) for node in nodes}
            assert len(domains) == 1, f"{request} is in several domains: {domains}"
            assert None not in domains, f"{request} is in no domain"


def nobody_is_overtaken(case: Case) -> None:
    """Nothing was granted to a request of lower class, or of the same queue and class and later in the line, whose place a
    request that waits could have had. (For rounds without reservations: a backfilled request overtakes, and delays nobody.)"""
    carried = set(case.snapshot.carried_over)
    for head in case.blocked:
        for grant in case.filled:
            other = grant.request
            classes = (case.end.rank(other), case.end.rank(head))
            behind = (
                other.queue == head.queue
                and case.end.virtual(other) > case.end.virtual(head)
                and not (group_of(other) in carried and group_of(head) not in carried)
            )
            if group_of(other) == group_of(head):
                points = other.priority - head.priority
                assert other.submitted - head.submitted <= points * case.given.limits.aging_micros, f"{other} overtook {head}"
            if classes[0] < classes[1] or (classes[0] == classes[1] and behind):
                without = tuple(lease for lease in case.end.leases if lease.lease_id != other.request_id)
                spent = tuple(some for some in case.plan.grants if some is not grant)
                assert not replace(case.end, leases=without, spent=spent).fits(head), f"{other} has the place of {head}"


def work_is_conserved(case: Case) -> None:
    """Nothing waits that fits by quota, budget, capacity and reservations; no window is left open."""
    for head in case.blocked:
        fits = case.end.fits(head)
        assert not fits, f"{head} waits and fits in {fits}"
    admitted = Counter(job.queue for job in case.plan.admissions)
    for waiting in case.plan.waiting_jobs:
        queue = waiting.group.queue
        if waiting.reasons[0].code is ReasonCode.ADMISSION_WINDOW:
            full = case.snapshot.admitted.get(queue, 0) + admitted[queue]
            assert full >= case.given.limits.prepare_ahead, f"{waiting} though {full} are admitted"


@dataclass(frozen=True)
class Displacement:
    """A victim, and the state in which it was chosen: all grants made, earlier victims under way."""

    state: Books
    request: Request
    pool: str
    victim: Lease
    victims: tuple[Lease, ...]
    """All of the request's."""

    @cached_property
    def sides(self) -> tuple[str, str]:
        """The nodes below the lowest that both queues are in: the request's, the victim's."""
        one, other = self.state.path(self.request.queue), self.state.path(self.victim.queue)
        return [name for name in one if name not in other][-1], [name for name in other if name not in one][-1]

    def usage(self, *, with_victim: bool = False) -> dict[tuple[str, Cell], int]:
        """Of every node, once the request is there and its victims (but perhaps this one) are gone."""
        gone = {some.lease_id for some in self.victims if not (with_victim and some is self.victim)}
        return self.state.usage_of([*self.state.settled(gone), (self.request.queue, self.pool, self.request.shape)])

    @property
    def within(self) -> bool:
        """Whether the request's side then uses no more than its quota of what the request takes."""
        return not self.state.over(self.sides[0], cells_taken(self.request.shape, self.pool), self.usage())


def displacements(case: Case) -> Iterator[Displacement]:
    """Every victim, in order. For rounds without reservations and budgets, where all grants come before all preemptions."""
    held = {lease.lease_id: lease for lease in case.snapshot.leases}
    granted = {grant.request.request_id for grant in case.plan.grants}
    leases = (*_left(case), *(lease_of(grant, case.given.now) for grant in case.plan.grants))
    requests = tuple(request for request in case.start.requests if request.request_id not in granted)
    state = replace(case.start, leases=leases, requests=requests)
    claims = {claim.request_id: claim.placement for claim in case.plan.claims if claim.placement}
    for request_id, group in groupby(case.plan.preemptions, key=lambda preemption: preemption.request_id):
        victims = tuple(held[preemption.lease_id] for preemption in group)
        request = next(request for request in state.requests if request.request_id == request_id)
        pool = state.node_named[claims[request_id][0][0]].pool
        yield from (Displacement(state, request, pool, victim, victims) for victim in victims)
        marked = {victim.lease_id for victim in victims}
        state = replace(
            state,
            leases=tuple(replace(z, preempted_for=request_id) if z.lease_id in marked else z for z in state.leases),
            requests=tuple(replace(r, claim=claims[request_id]) if r is request else r for r in state.requests),
        )


def preemptions_are_lawful(case: Case) -> None:
    """A victim is of lower class in the same queue; or its side borrows, and the request's does not; or costs less with the
    request than the victim's without it, which is then not of higher class."""
    for found in displacements(case):
        request, victim, state = found.request, found.victim, found.state
        if victim.queue == request.queue:
            assert state.rank(victim) < state.rank(request), f"{request} displaces {victim} of its own queue and class"
            continue
        mine, theirs = found.sides
        borrowed = state.over(theirs, cells_taken(victim.shape, victim.pool), found.usage(with_victim=True))
        cheaper = state.cost(mine, found.usage()) < state.cost(theirs, found.usage())
        not_above = state.rank(victim) <= state.rank(request)
        lawful = borrowed and (found.within or (not_above and cheaper))
        assert lawful, f"{request} displaces {victim}: {found.within=} {borrowed=} {cheaper=} {not_above=}"


def borrowers_displace_no_nominal_work(case: Case) -> None:
    """Whoever would borrow preempts nothing of another side that uses no more than its quota."""
    for found in displacements(case):
        if found.victim.queue != found.request.queue and not found.within:
            cells = cells_taken(found.victim.shape, found.pool)
            borrowed = found.state.over(found.sides[1], cells, found.usage(with_victim=True))
            assert borrowed, f"{found.request} borrows and displaces {found.victim}, which does not"


def no_victim_is_needless(case: Case) -> None:
    """Each could not have kept its place: without the others alone there is no quota or no room for the request."""
    for found in displacements(case):
        fewer = {some.lease_id for some in found.victims if some is not found.victim}
        state, request, pool = found.state, found.request, case.pools[found.pool]
        usage = state.usage_of(state.settled(fewer))
        allowed = all(
            state.cell_allows(request, cell, usage, *state.own_quotas) for cell in cells_taken(request.shape, found.pool)
        )
        roomy = state.holds(request, pool, fewer) == request.shape.members
        assert not (allowed and roomy), f"{found.victim} yields to {request} for nothing"


def brakes_hold(case: Case) -> None:
    """No more is preempted and lost than may be; no lease that has hardly run, none twice; losses are counted right."""
    held = {lease.lease_id: lease for lease in case.snapshot.leases}
    brakes, now = case.snapshot.brakes, case.given.now
    assert len(case.plan.preemptions) <= brakes.preemptions_left, "more are preempted than may be"
    assert sum(some.lost_ms for some in case.plan.preemptions) <= max(0, brakes.waste_ms_left), "more is lost than may be"
    assert len({some.lease_id for some in case.plan.preemptions}) == len(case.plan.preemptions), "preempted twice"
    for some in case.plan.preemptions:
        victim = held[some.lease_id]
        assert victim.preempted_for is None, f"{victim} yields already"
        assert now - victim.granted >= case.given.limits.run_minimum_micros, f"{victim} has not run for long"
        safe = victim.granted if victim.checkpointed is None else max(victim.granted, victim.checkpointed)
        assert some.lost_ms == victim.shape.accelerators * (now - safe) // 1_000, f"{some} is counted wrong"


def room_is_made_for_each(case: Case) -> None:
    """What is claimed is free once the claim's own victims are gone."""
    for claim in case.plan.claims:
        victims = {some.lease_id for some in case.plan.preemptions if some.request_id == claim.request_id}
        request = case.snapshot.requests.get(claim.request_id)
        assert request is not None, f"{claim} is nobody's"
        for name, _ in claim.placement:
            needed = taken(request.shape, claim.placement, name)
            free = case.end.free(case.end.node_named[name], claim.request_id, victims)
            assert all(needed[r] <= free[r] for r in Resource), f"{claim} does not fit on {name} when {victims} are gone"
        if claim.placement:
            assert victims, f"{claim} is made without a victim"


def claims_wait_for_somebody(case: Case) -> None:
    """What stays claimed is on living nodes, and somebody yields: there; or anywhere, if only quota or budget is missing."""
    for request in case.end.requests:
        if request.claim:
            names = {name for name, _ in request.claim}
            assert all(name in case.end.node_named and case.end.lives(case.end.node_named[name]) for name in names)
            yielding = [lease for lease in case.end.leases if lease.preempted_for is not None]
            there = [lease for lease in yielding if names & {name for name, _ in lease.placement}]
            free = all(
                needed <= free
                for name in names
                for needed, free in zip(
                    taken(request.shape, request.claim, name),
                    case.end.free(case.end.node_named[name], request.request_id),
                    strict=True,
                )
            )
            assert there or (free and yielding), f"{request} claims and nobody yields"


def everything_is_answered(case: Case) -> None:
    """Every request is granted, refused or waits in a group with reasons; every job is admitted or waits with a reason."""
    asked = {request.request_id for request in case.snapshot.requests}
    answered = [decision.request.request_id for decision in (*case.plan.grants, *case.plan.refusals)]
    assert len(set(answered)) == len(answered), "answered twice"
    assert set(answered) <= asked, "answered though not asked"
    left = {group_of(request) for request in case.snapshot.requests if request.request_id not in answered}
    _assert_explained(left, case.plan.waiting_requests)
    admitted = {job.job_id for job in case.plan.admissions}
    assert len(admitted) == len(case.plan.admissions), "admitted twice"
    _assert_explained({group_of(job) for job in case.snapshot.jobs if job.job_id not in admitted}, case.plan.waiting_jobs)
    not_reached = {
        waiting.group for waiting in case.plan.waiting_requests if waiting.reasons[0].code is ReasonCode.NOT_EVALUATED
    }
    assert not_reached <= set(case.plan.carried_over), "not reached and not carried over"


def _assert_explained(left: set[GroupKey], waiting: tuple[Waiting, ...]) -> None:
    assert {some.group for some in waiting} == left, "groups that wait are missing, or are there and do not wait"
    assert len(waiting) == len(left), "a group is explained twice"
    order = list(ReasonCode)
    for some in waiting:
        codes = [order.index(reason.code) for reason in some.reasons]
        assert codes, f"{some.group} waits without a reason"
        assert codes == sorted(set(codes)), f"{some} is not in order of precedence"


def reasons_are_true(case: Case) -> None:
    """Every reason, of what waits and of what was refused, holds with its numbers."""
    for waiting in case.plan.waiting_requests:
        head = min((r for r in case.end.requests if group_of(r) == waiting.group), key=case.end.virtual)
        for reason in waiting.reasons:
            holds(reason, head, case.start, case.end, case.plan)
    admitted = {job.job_id for job in case.plan.admissions}
    for waiting in case.plan.waiting_jobs:
        line = [job for job in case.snapshot.jobs if group_of(job) == waiting.group and job.job_id not in admitted]
        for reason in waiting.reasons:
            holds(reason, min(line, key=case.end.virtual), case.start, case.end, case.plan)
    for refusal in case.plan.refusals:
        holds(refusal.reason, refusal.request, case.start, case.end, case.plan)


def all_reasons_are_given(case: Case) -> None:
    """Each of what forbids it is among the reasons: quota, budget and room, in whichever pool."""
    for waiting in case.plan.waiting_requests:
        head = min((r for r in case.end.requests if group_of(r) == waiting.group), key=case.end.virtual)
        codes = {reason.code for reason in waiting.reasons}
        if head.claim or waiting.group in case.plan.carried_over:
            continue
        pools = case.end.allowed(head.shape)
        rooms = [case.end.holds(head, pool, reserved=False) == head.shape.members for pool in pools]
        assert (ReasonCode.BUDGET in codes) == any(case.end.budgets_short(head, pool) for pool in pools)
        forbidding = [pool for pool in pools if not case.end.quota_allows(head, pool)]
        # Where all use what there is, capacity is the reason.
        assert ReasonCode.QUOTA in codes or all(short_of(head, pool, case.end) for pool in forbidding)
        assert ReasonCode.QUOTA not in codes or forbidding
        assert bool(codes & {ReasonCode.CAPACITY, ReasonCode.PLACEMENT}) == (not any(rooms))
        assert (ReasonCode.RESERVED in codes) == bool(case.end.fits(head, reserved=False))


def ends_are_due(case: Case) -> None:
    """A lease ends if and only if it expired, or a node of it is silent or was restarted."""
    ended = {end.lease_id: end.cause for end in case.plan.ends}
    for lease in case.snapshot.leases:
        nodes = [case.end.node_named.get(name) for name, _ in lease.placement]
        if any(node is None or not case.end.lives(node) for node in nodes):
            assert ended.get(lease.lease_id) is EndCause.NODE_LOST
        elif any(node and node.incarnation != known for node, known in zip(nodes, lease.incarnations, strict=True)):
            assert ended.get(lease.lease_id) is EndCause.NODE_RESTARTED
        else:
            assert ended.get(lease.lease_id) is (EndCause.EXPIRED if lease.expires < case.given.now else None)


def replanning_changes_nothing(case: Case) -> None:
    """At the same moment, once the plan is done."""
    if case.plan.complete:
        after = apply(case.snapshot, case.plan, case.given.now)
        again = case.planner(after, case.given.now, case.given.limits)
        assert again.changes == 0, f"decides again: {again}"


def a_round_goes_on(case: Case) -> None:
    """What was carried over comes first in its class: nothing else of the class is looked at while some of it is not."""
    again = Case(replace(case.given, snapshot=apply(case.snapshot, case.plan, case.given.now)), case.planner)
    if case.plan.complete or again.plan.grants or again.plan.preemptions:
        return
    assert len(case.plan.carried_over) == len(set(case.plan.carried_over))
    reached = [head for head in again.blocked if group_of(head) not in case.plan.carried_over]
    skipped = [
        waiting.group
        for waiting in again.plan.waiting_requests
        if waiting.reasons == (NotEvaluated(),) and waiting.group in case.plan.carried_over
    ]
    for group in skipped:
        rank = PriorityClass.SCAVENGER if case.end.demoted(group.queue) else group.priority_class
        assert all(case.end.rank(head) is not rank for head in reached), f"{group} was carried over, and does not come first"


def order_of_input_means_nothing(case: Case) -> None:
    """The same snapshot in another order gives the same plan."""
    other = shuffled(case.snapshot, Random(0))  # noqa: S311 - an order that repeats, not a secret
    assert case.planner(other, case.given.now, case.given.limits) == case.plan, "another order, another plan"


def _left(case: Case) -> tuple[Lease, ...]:
    ended = {end.lease_id for end in case.plan.ends}
    return tuple(lease for lease in case.snapshot.leases if lease.lease_id not in ended)


ALWAYS: tuple[Check, ...] = (
    nothing_is_oversubscribed,
    no_quota_is_exceeded,
    no_budget_is_exceeded,
    gangs_are_atomic,
    work_is_conserved,
    brakes_hold,
    room_is_made_for_each,
    claims_wait_for_somebody,
    everything_is_answered,
    reasons_are_true,
    all_reasons_are_given,
    ends_are_due,
    replanning_changes_nothing,
    a_round_goes_on,
    order_of_input_means_nothing,
)
"""What holds in every round."""
WITHOUT_RESERVATIONS: tuple[Check, ...] = (
    nobody_is_overtaken,
    preemptions_are_lawful,
    borrowers_displace_no_nominal_work,
    no_victim_is_needless,
)
"""What holds in rounds where nobody has waited for long and no budget is short; in others the order of decisions matters."""
