"""A round: ends, claims, fill, preemption, admission, reasons. docs/explanation/scheduling.md tells the rules in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scheduler.core.admission import Admission
from scheduler.core.claims import place_claims
from scheduler.core.explain import Explanation, Start
from scheduler.core.fill import Pass
from scheduler.core.groups import Group
from scheduler.core.preemption import Preemption
from scheduler.core.refusals import Maximum, refuse
from scheduler.core.snapshot import Snapshot
from scheduler.core.state import State
from scheduler.core.types import Claim, Limits, Micros, Plan, Reservation


def plan(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
    """What to do about `snapshot` at `now`, and why everything that waits does.

    Raises:
        ValueError: the tree of the snapshot is none; or its backlogs are in another order than the limits ask for.
    """
    _check(snapshot, limits)
    state = State(snapshot, now, limits)
    place_claims(state)
    carried = frozenset(snapshot.carried_over)
    groups = [Group(state, key, line, carried=bool(carried) and key in carried) for key, line in snapshot.requests.lines()]
    maximum = Maximum(state)
    refuse(state, groups, maximum)
    filled = _fill_and_preempt(state, groups)
    admission = Admission(state, maximum)
    explanation = Explanation(state, filled.start, filled.not_reached)
    return Plan(
        ends=state.ends,
        grants=tuple(state.grants),
        refusals=tuple(state.refusals),
        preemptions=tuple(state.preemptions),
        claims=(*_dissolved(state), *state.claims),
        reservations=tuple(filled.reservations),
        admissions=admission.admitted,
        waiting_requests=explanation.waiting(groups),
        waiting_jobs=admission.waiting(),
        carried_over=tuple(sorted(group.key for group in filled.carried_over)),
    )


class _Filled(NamedTuple):
    """What came of steps 3 and 4, beside decisions."""

    start: Start
    reservations: Sequence[Reservation]
    not_reached: Sequence[Group]
    carried_over: Sequence[Group]


def _fill_and_preempt(state: State, groups: Sequence[Group]) -> _Filled:
    """Steps 3 and 4, again until nothing changes: what one pass grants may change what the next one reserves, and what is
    reserved decides who fits. So the plan of an applied plan is empty."""
    filling = Pass(state, groups, carried_first=True)
    start = Start(state)
    while True:
        # Refusals come before the first pass; they change nothing for the others.
        before = state.decided
        if not filling.run():
            return _Filled(start, filling.reservations, filling.not_reached, filling.not_reached)
        preempted = len(state.preemptions)
        untried = _preempt(state, filling.parked)
        preempted = len(state.preemptions) - preempted
        if untried or state.decided == before or not (preempted or filling.held_back):
            return _Filled(start, filling.reservations, (), untried)
        filling = Pass(state, groups, carried_first=False)


def _preempt(state: State, parked: Sequence[Group]) -> Sequence[Group]:
    """Makes room for what is blocked, in the order in which that was found. Returns what was not got to when the operations
    were used up."""
    if not parked or state.brakes.preemptions_left <= 0:
        return ()
    preemption = _preemption(state)
    for tried, group in enumerate(parked):
        if preemption.brakes.preemptions_left <= 0:
            return ()
        if state.operations >= state.limits.operations_max:
            return parked[tried:]
        state.operations += 1
        if (request := group.head) is None:
            continue
        pools = [
            pool.name
            for pool in state.in_order(group.leaf, group.demand, group.demand.pools)
            if state.budgets.short(group.leaf, request.shape, request.run_micros, pool) is None
        ]
        weighed = preemption.weighed
        eviction = preemption.evict(request, pools)
        state.operations += preemption.weighed - weighed
        if eviction is not None:
            state.preempt(request, eviction)
            state.brakes = preemption.brakes
            group.claimed()
    return ()


def _preemption(state: State) -> Preemption:
    return Preemption(
        state.cluster,
        state.tree,
        tuple(state.held()),
        tuple(state.pending.values()),
        state.brakes,
        state.limits,
        state.now,
    )


def _dissolved(state: State) -> Sequence[Claim]:
    """The claims that their requests are to lose; those that got something else lose them by that."""
    gone = {*state.granted, *state.pending, *(refusal.request.request_id for refusal in state.refusals)}
    return [Claim(request_id, ()) for request_id in state.dissolved if request_id not in gone]


def _check(snapshot: Snapshot, limits: Limits) -> None:
    for name, backlog in (("requests", snapshot.requests), ("jobs", snapshot.jobs)):
        if backlog.aging_micros != limits.aging_micros:
            raise ValueError(
                f"the backlog of {name} is in order of aging_micros={backlog.aging_micros}; expected that of the limits, "
                f"{limits.aging_micros}: build the backlog anew when the limit changes"
            )
