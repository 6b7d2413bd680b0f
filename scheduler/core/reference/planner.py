"""A round, step by step: ends, claims, fill and preempt until nothing changes, admit, explain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from scheduler.core.backlog import group_of
from scheduler.core.reasons import AdmissionWindow, AwaitsPreemption, ExceedsMaximum, NotEvaluated, NoWorkflow, Reason
from scheduler.core.reference.explaining import reasons
from scheduler.core.reference.fitting import lesser, place, times
from scheduler.core.reference.ordering import Turn, first, line_key
from scheduler.core.reference.preempting import evict, lost_ms
from scheduler.core.reference.refusing import exceeds
from scheduler.core.reference.reserving import reserve
from scheduler.core.reference.state import State, amounts_of, pools_for, price_of
from scheduler.core.reference.tree import cells_of
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Brakes,
    Claim,
    EndCause,
    EndLease,
    Grant,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Placement,
    Plan,
    Pool,
    Preempt,
    PriorityClass,
    QueuedJob,
    Refuse,
    Request,
    Shape,
    Waiting,
)

T = TypeVar("T", Request, QueuedJob)


def plan(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
    """What to do now, and why the rest waits. The same as the planner in use answers."""
    return _Round(snapshot, now, limits).plan()


class _Round:
    """The decisions up to now, and the state that they lead to."""

    def __init__(self, snapshot: Snapshot, now: Micros, limits: Limits) -> None:
        self.snapshot, self.now, self.limits = snapshot, now, limits
        self.state = State(snapshot, now, limits, tuple(snapshot.leases), tuple(snapshot.requests))
        self.brakes = snapshot.brakes
        self.operations = 0
        self.ends: list[EndLease] = []
        self.grants: list[Grant] = []
        self.refusals: list[Refuse] = []
        self.preemptions: list[Preempt] = []
        self.dissolved: list[str] = []
        self.claims: list[Claim] = []
        self.parked: list[Request] = []
        """Heads that were looked at in this pass and do not fit, in the order in which that was found."""
        self.closed: set[tuple[Shape, str]] = set()
        """Shapes and the pools where they were found in this pass not to fit, reservations apart."""
        self.backfill_refused = False
        """Whether in this pass something was parked only because of a reservation."""
        self.carried_over: set[GroupKey] = set()
        self.not_reached: set[GroupKey] = set()

    def plan(self) -> Plan:
        """All steps."""
        self.end_leases()
        while self.place_claims():
            pass
        start, granted_on_claims = self.state, len(self.grants)
        self.refuse()
        self.fill_and_preempt()
        admissions = self.admit()
        waiting = {request.request_id for request in self.state.requests}
        claimed = {claim.request_id for claim in self.claims}
        dissolved = [Claim(name, ()) for name in self.dissolved if name in waiting - claimed]
        return Plan(
            ends=tuple(self.ends),
            grants=tuple(self.grants),
            refusals=tuple(self.refusals),
            preemptions=tuple(self.preemptions),
            claims=(*dissolved, *self.claims),
            reservations=self.state.reservations,
            admissions=tuple(admissions),
            waiting_requests=self.explain_requests(start, self.grants[granted_on_claims:]),
            waiting_jobs=self.explain_jobs(admissions),
            carried_over=tuple(sorted(self.carried_over)),
        )

    # 1. Ends

    def end_leases(self) -> None:
        """What has expired or lost a node."""
        for lease in sorted(self.state.leases, key=lambda lease: lease.lease_id):
            if (cause := self.cause_to_end(lease)) is not None:
                self.ends.append(EndLease(lease.lease_id, lease.job_id, cause))
        ended = {end.lease_id for end in self.ends}
        left = tuple(lease for lease in self.state.leases if lease.lease_id not in ended)
        self.state = State(self.snapshot, self.now, self.limits, left, self.state.requests)

    def cause_to_end(self, lease: Lease) -> EndCause | None:
        """None: it goes on."""
        living = {node.name: node.incarnation for node in self.snapshot.nodes if self.state.lives(node)}
        names = [name for name, _ in lease.placement]
        if any(name not in living for name in names):
            return EndCause.NODE_LOST
        if any(living[name] != granted_on for name, granted_on in zip(names, lease.incarnations, strict=True)):
            return EndCause.NODE_RESTARTED
        return EndCause.EXPIRED if lease.expires < self.now else None

    # 2. Claims

    def place_claims(self) -> bool:
        """Grants claims that are free by now and dissolves those that will not be. Whether there were any."""
        before = self.state
        for request in sorted(before.requests, key=lambda r: (-self.state.effective(r), line_key(self.state, r))):
            if not request.claim:
                continue
            pool = self.pool_of_claim(request)
            if pool is not None and self.allows_claim(request, pool):
                self.grant(request, pool, request.claim)
            elif not self.may_come(request, fits=pool is not None):
                self.dissolved.append(request.request_id)
                self.state = self.state.with_claim(request.request_id, ())
        return self.state is not before

    def pool_of_claim(self, request: Request) -> Pool | None:
        """The pool where all that a request claims is free for it now."""
        for pool in pools_for(request.shape, self.snapshot.pools):
            room = self.state.room(request, pool)
            wanted = {name: times(request.shape.member, members) for name, members in request.claim}
            if all(name in room and part == lesser(part, room[name]) for name, part in wanted.items()):
                return pool
        return None

    def allows_claim(self, request: Request, pool: Pool) -> bool:
        """Whether quota and budget do, other claims aside: they may come to nothing."""
        wanted = cells_of(pool.name, amounts_of(request.shape))
        quota_allows = self.state.tree.short(request.queue, wanted, self.state.held) is None
        return quota_allows and self.state.budget_short(request, pool) is None

    def may_come(self, request: Request, *, fits: bool) -> bool:
        """Whether a claim that is not granted waits for somebody who yields: for room, or where it fits, for quota."""
        claimed = {name for name, _ in request.claim}
        living = {node.name for node in self.snapshot.nodes if self.state.lives(node)}
        yielding = [lease for lease in self.state.leases if lease.preempted_for is not None]
        return claimed <= living and any(fits or claimed & {name for name, _ in lease.placement} for lease in yielding)

    def victims_left(self, request: Request) -> int:
        """Leases that are still to yield to the request."""
        return sum(lease.preempted_for == request.request_id for lease in self.state.leases)

    # 3. and 4.

    def fill_and_preempt(self) -> None:
        """Again and again, until nothing changes: preemption may let another of a group come first, and what was granted may
        change what is reserved."""
        carried_first = set(self.snapshot.carried_over)
        while True:
            before, preempted_before = self.decided(), len(self.preemptions)
            if not self.fill(carried_first) or not self.preempt():
                return
            could_change = len(self.preemptions) > preempted_before or self.backfill_refused
            if self.decided() == before or not could_change:
                return
            carried_first = set[GroupKey]()

    def decided(self) -> int:
        """How many decisions there are."""
        return len(self.grants) + len(self.preemptions)

    def fill(self, carried_first: set[GroupKey]) -> bool:
        """Grants what fits, in order; class by class, those carried over first. Whether it got to the end."""
        self.state = State(self.snapshot, self.now, self.limits, self.state.leases, self.state.requests)
        self.parked = []
        self.backfill_refused = False
        self.closed = {
            (head.shape, pool.name)
            for head in self.heads().values()
            for pool in pools_for(head.shape, self.snapshot.pools)
            if place(head.shape, self.state.room(head, pool), self.state.domains(head.shape)) is None
        }
        return all(
            self.fill_class(priority_class, carried_first, carried)
            for priority_class in sorted(PriorityClass, reverse=True)
            for carried in (True, False)
        )

    def refuse(self) -> None:
        """Ends what can never be granted."""
        for group, line in _lines(self.state, (request for request in self.state.requests if not request.claim)):
            if (reason := exceeds(self.state, group.queue, group.shape)) is not None:
                for request in line:
                    self.refusals.append(Refuse(request, reason))
                    self.state = self.state.without_request(request.request_id)

    def fill_class(self, priority_class: PriorityClass, carried_first: set[GroupKey], carried: bool) -> bool:
        """Of one class, those carried over or the others. Whether it got to the end."""

        def turn_of(queue: str) -> Turn | None:
            return self.turn_of(
                head
                for group, head in self.heads().items()
                if head.queue == queue and self.state.effective(head) is priority_class and (group in carried_first) is carried
            )

        queues = {request.queue for request in self.state.requests}
        turns = {queue: turn for queue in queues if (turn := turn_of(queue)) is not None}
        while turns:
            if self.used_up():
                self.not_reached = set(self.heads())
                self.carried_over = set(self.not_reached)
                return False
            queue = first(self.state, turns)
            turn = turns.pop(queue)
            for head in turn.passed:
                self.operations += 1
                self.park(head)
            if turn.tried is not None:
                self.operations += 1
                self.attempt(turn.tried)
            if (following := turn_of(queue)) is not None:
                turns[queue] = following
        return True

    def turn_of(self, heads: Iterable[Request]) -> Turn | None:
        """What is next of these heads of one queue."""
        passed: list[Request] = []
        for head in sorted(heads, key=lambda head: line_key(self.state, head)):
            if open_pools := [pool for pool in self.not_closed(head) if self.quota_and_budget_allow(head, pool)]:
                return Turn(tuple(passed), head, open_pools[0])
            passed.append(head)
        return Turn(tuple(passed), None, next(iter(self.state.allowed(passed[0])), None)) if passed else None

    def not_closed(self, head: Request) -> list[Pool]:
        """The allowed pools that the shape was not yet found not to fit in, best first."""
        return [pool for pool in self.state.allowed(head) if (head.shape, pool.name) not in self.closed]

    def heads(self) -> dict[GroupKey, Request]:
        """The first unclaimed request of each group that is not parked."""
        parked = {group_of(head) for head in self.parked}
        lines = _lines(self.state, (request for request in self.state.requests if not request.claim))
        return {group: line[0] for group, line in lines if group not in parked}

    def used_up(self) -> bool:
        """Whether the round has done as much as it may."""
        return self.operations >= self.limits.operations_max

    def attempt(self, head: Request) -> None:
        """Grants it in the first pool where it can be, or parks it."""
        domains = self.state.domains(head.shape)
        for pool in self.not_closed(head):
            if self.quota_and_budget_allow(head, pool):
                self.operations += sum(node.pool == pool.name for node in self.snapshot.nodes) // 64 + 1
                if (placement := place(head.shape, self.state.unreserved(head, pool), domains)) is not None:
                    self.grant(head, pool, placement)
                    return
                if place(head.shape, self.state.room(head, pool), domains) is None:
                    self.closed.add((head.shape, pool.name))
                else:
                    self.backfill_refused = True
        self.park(head)

    def park(self, head: Request) -> None:
        """Leaves its group for this pass; and if it was blocked for long, keeps room for it."""
        self.parked.append(head)
        shadow = reserve(self.state, head)
        self.operations += shadow.taken_away
        if shadow.reservation is not None:
            self.state = self.state.with_reservation(shadow.reservation)

    def quota_and_budget_allow(self, request: Request, pool: Pool) -> bool:
        """Whether only room may be missing."""
        return self.state.quota_short(request, pool) is None and self.state.budget_short(request, pool) is None

    def grant(self, request: Request, pool: Pool, placement: Placement) -> None:
        """The request becomes a lease."""
        incarnations = tuple(self.state.node(name).incarnation for name, _ in placement)
        self.grants.append(Grant(request, pool.name, placement, incarnations, price_of(request, pool)[0]))
        self.state = self.state.with_lease(
            Lease(
                lease_id=request.request_id,
                job_id=request.job_id,
                queue=request.queue,
                shape=request.shape,
                priority=request.priority,
                submitted=request.submitted,
                run_micros=request.run_micros,
                pool=pool.name,
                placement=placement,
                incarnations=incarnations,
                granted=self.now,
                expires=self.now,
            )
        )

    def preempt(self) -> bool:
        """Makes room for what is parked, in order, as far as the brakes allow. Whether it got to the end."""
        for tried, head in enumerate(self.parked):
            if self.brakes.preemptions_left <= 0:
                return True
            if self.used_up():
                self.carried_over = {group_of(left) for left in self.parked[tried:]}
                return False
            self.operations += 1
            eviction = evict(self.state, head, self.brakes)
            self.operations += eviction.weighed
            if eviction.victims:
                for victim in eviction.victims:
                    lost = lost_ms(victim, self.now)
                    self.preemptions.append(Preempt(victim.lease_id, victim.job_id, head.request_id, lost))
                    self.brakes = Brakes(self.brakes.preemptions_left - 1, self.brakes.waste_ms_left - lost)
                self.claims.append(Claim(head.request_id, eviction.placement))
                victims = {victim.lease_id for victim in eviction.victims}
                self.state = self.state.with_claim(head.request_id, eviction.placement, victims)
        return True

    # 5. Admission

    def admit(self) -> list[QueuedJob]:
        """What may start in each queue, within its window."""
        admitted: list[QueuedJob] = []
        for queue in sorted({job.queue for job in self.snapshot.jobs}):
            window = self.limits.prepare_ahead - self.snapshot.admitted.get(queue, 0)
            ready = [job for job in self.snapshot.jobs if job.queue == queue and self.never_admitted(job) is None]
            ready.sort(key=lambda job: (-self.state.effective(job), line_key(self.state, job)))
            admitted += ready[: max(0, window)]
        return admitted

    def never_admitted(self, job: QueuedJob) -> NoWorkflow | ExceedsMaximum | None:
        """Why a job is not admitted, however long it waits."""
        if self.limits.job_types is not None and job.job_type not in self.limits.job_types:
            return NoWorkflow(job.job_type, tuple(sorted(self.limits.job_types)))
        return exceeds(self.state, job.queue, job.shape)

    # 6. Reasons

    def explain_requests(self, start: State, granted: Sequence[Grant]) -> tuple[Waiting, ...]:
        """One entry for each group that is left."""

        def why(head: Request) -> tuple[Reason, ...]:
            if head.claim:
                return (AwaitsPreemption(self.victims_left(head)),)
            if group_of(head) in self.not_reached:
                return (NotEvaluated(),)
            return reasons(start, self.state, head, granted)

        return tuple(Waiting(group, why(line[0])) for group, line in _lines(self.state, self.state.requests))

    def explain_jobs(self, admissions: Sequence[QueuedJob]) -> tuple[Waiting, ...]:
        """One entry for each group that is left."""
        started = {job.job_id for job in admissions}
        left = _lines(self.state, (job for job in self.snapshot.jobs if job.job_id not in started))

        def why(head: QueuedJob) -> Reason:
            now_admitted = sum(job.queue == head.queue for job in admissions)
            window = AdmissionWindow(self.snapshot.admitted.get(head.queue, 0) + now_admitted, self.limits.prepare_ahead)
            return self.never_admitted(head) or window

        return tuple(Waiting(group, (why(line[0]),)) for group, line in left)


def _lines(state: State, waiting: Iterable[T]) -> list[tuple[GroupKey, list[T]]]:
    """What waits, by group, in order; each line too."""
    lines: dict[GroupKey, list[T]] = {}
    for item in sorted(waiting, key=lambda item: line_key(state, item)):
        lines.setdefault(group_of(item), []).append(item)
    return sorted(lines.items())
