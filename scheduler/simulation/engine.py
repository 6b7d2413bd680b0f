"""The production planner under a virtual clock.

A discrete-event simulation: the clock jumps from event to event; a round follows what calls for one, after the coalescing
delay, and is given the state of that instant. Grants start jobs and ends free them. Nothing depends on real time, which is
measured for each round and reported beside the result, never in it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import filter as matching
from functools import partial
from typing import TypeAlias

from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import EndLease, Grant, Lease, Limits, Micros, Plan, Preempt, QueuedJob
from scheduler.simulation.jobs import Job, Run
from scheduler.simulation.ledger import BrakeBuckets, Ledger
from scheduler.simulation.timeline import Appointment, Timeline
from scheduler.simulation.world import ALWAYS, BrokenPlanError, World

Planner: TypeAlias = Callable[[Snapshot, Micros, Limits], Plan]

_ROUNDS_PER_INSTANT_MAX = 10_000
_MICROS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Pace:
    """When rounds happen and how long a victim takes, in microseconds."""

    coalesce: int
    """From the first event that calls for a round to the round."""
    poll: int
    """The longest between rounds while something waits."""
    yield_after: int
    """From the demand to yield until the accelerators are free."""
    decay: int
    """How often past use is brought up to date."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round, as it was decided."""

    number: int
    now: Micros
    snapshot: Snapshot
    """As it was given to the planner; its backlogs change after this."""
    decided: Plan
    real_seconds: float
    """What the planner took: information, not part of any result."""


class Observer:
    """Sees what happens, in the order in which it does. By itself it does nothing."""

    def decided(self, past: Round) -> None:
        """A round was decided and is about to be applied."""

    def applied(self, past: Round) -> None:
        """It has been."""

    def started(self, job: Job, lease: Lease, now: Micros) -> None:
        """A lease was granted."""

    def stopped(self, job: Job, lease: Lease, now: Micros) -> None:
        """A lease has ended."""

    def preempted(self, job: Job, now: Micros) -> None:
        """A job was asked to yield."""

    def lost(self, job: Job, accelerator_ms: int) -> None:
        """Work that was done will have to be done again."""

    def final(self, job: Job, now: Micros, *, refused: bool) -> None:
        """A job has done its work, or was refused."""

    def capacity(self, now: Micros) -> None:
        """Nodes were lost, or came back."""


class Engine:
    """Runs a world forward."""

    def __init__(
        self,
        world: World,
        ledger: Ledger,
        brakes: BrakeBuckets,
        limits: Limits,
        pace: Pace,
        observers: tuple[Observer, ...],
        start: Micros,
        planner: Planner = plan,
    ) -> None:
        """Args: the state, which the engine changes; who sees what happens; when virtual time begins; what decides."""
        self.world = world
        self.ledger = ledger
        self.timeline = Timeline(start)
        self.jobs: dict[Job, None] = {}
        """All that have arrived and are not final, in that order."""
        self.runs: dict[str, Run] = {}
        """By lease."""
        self.to_come = 0
        """Jobs that have not arrived yet."""
        self.rounds = 0
        self._brakes = brakes
        self._limits = limits
        self._pace = pace
        self._observers = observers
        self._planner = planner
        self._pools = {pool.name: pool for pool in world.pools}
        self._round_due: Appointment | None = None
        self._poll_due: Appointment | None = None
        self._rounds_at = (start, 0)
        self._waiting: dict[str, Job] = {}
        """By request, or of queued jobs by job."""
        self._priorities: dict[str, int] = {}
        """Of sets that were given another."""
        self._used: Counter[str] = Counter()
        """Accelerator-microseconds by queue, since `_used_since`, of leases that have ended."""
        self._used_since = start
        self._arm_decay()

    @property
    def now(self) -> Micros:
        """Virtual time."""
        return self.timeline.now

    def run(self, until: int | None = None, enough: Callable[[], bool] = lambda: False) -> None:
        """Goes on until all work is done, nothing more can happen, or what comes next is later than `until`.

        Args:
            until: Micros.
            enough: asked before every event; if so it stops.

        Raises:
            BrokenPlanError: a plan did what its rules forbid.
            OverdrawnError: a plan spent what a budget has not.
        """
        while (self.jobs or self.to_come) and not self.timeline.quiet and not enough():
            following = self.timeline.next_at
            if following is None or (until is not None and following > until):
                return
            self.timeline.step()

    def wake(self) -> None:
        """Something happened that a round should see."""
        if self._round_due is None:
            self._round_due = self.timeline.round_at(self.now + self._pace.coalesce, self._round)

    def arrive(self, job: Job) -> None:
        """A job comes, as a queued one or, if it needs no preparation, with its request."""
        job.priority = self._priorities.get(job.set_name, job.priority)
        self.jobs[job] = None
        if job.prepare is None:
            self.world.admitted[job.queue] += 1
            self._request(job)
        else:
            self.world.jobs.add(job.queued())
            self._waiting[job.job_id] = job
            self.wake()

    def adopt(self, job: Job) -> None:
        """A job that waits in the world already: under its request's id, or without one for admission."""
        self.jobs[job] = None
        self._waiting[job.request_id or job.job_id] = job

    def adopt_lease(self, job: Job, lease: Lease) -> None:
        """A job that runs in the world already; all it has to do it began at `lease.granted`."""
        self.jobs[job] = None
        self._run(job, lease)

    def reprioritise(self, set_name: str, priority: int) -> None:
        """What waits and runs of a set has another priority from now on."""
        self._priorities[set_name] = priority
        world = self.world
        for job in self.jobs:
            if job.set_name != set_name or job.priority == priority:
                continue
            job.priority = priority
            if world.jobs.get(job.job_id) is not None:
                world.jobs.remove(job.job_id)
                world.jobs.add(job.queued())
            elif job.request_id is None:
                continue  # It prepares itself, and asks with its new priority.
            elif (request := world.requests.get(job.request_id)) is not None:
                world.replace_request(replace(request, priority=priority))
            elif (lease := world.leases.get(job.request_id)) is not None:
                world.leases[lease.lease_id] = replace(lease, priority=priority)
        self.wake()

    def lose(self, pattern: str) -> None:
        """Living nodes of matching names fall silent; a round comes when they count as lost."""
        names = {name for name in matching(self.world.nodes, pattern) if not self.world.silent(name)}
        for name in names:
            self.world.put_node(replace(self.world.nodes[name], heartbeat=self.now))
        for run in self.runs.values():
            if run.stopped is None and any(name in names for name, _ in self.world.leases[run.lease_id].placement):
                run.stopped = self.now
                self._cancel(run)
        if names:
            self._capacity_changed()
            self.timeline.at(self.now + self._limits.node_lost_micros + 1, self.wake)

    def bring_back(self, pattern: str) -> None:
        """Silent nodes of matching names are there again, started anew."""
        for name in matching(self.world.nodes, pattern):
            node = self.world.nodes[name]
            if self.world.silent(name):
                self.world.put_node(replace(node, heartbeat=ALWAYS, incarnation=node.incarnation + "+"))
        self._capacity_changed()
        self.wake()

    def cordon(self, pattern: str, *, cordoned: bool) -> None:
        """Nodes of matching names take nothing new, or do again."""
        for name in matching(self.world.nodes, pattern):
            self.world.put_node(replace(self.world.nodes[name], cordoned=cordoned))
        self.wake()

    def _capacity_changed(self) -> None:
        for observer in self._observers:
            observer.capacity(self.now)

    def _round(self) -> None:
        self._round_due = None
        self.rounds += 1
        instant, before = self._rounds_at
        self._rounds_at = (self.now, before + 1 if instant == self.now else 1)
        if self._rounds_at[1] > _ROUNDS_PER_INSTANT_MAX:
            raise BrokenPlanError(f"{_ROUNDS_PER_INSTANT_MAX} rounds at {self.now}, and each left something over")
        snapshot = self.world.snapshot(self.ledger.tree, self._brakes.brakes(self.now))
        began = time.perf_counter()
        decided = self._planner(snapshot, self.now, self._limits)
        past = Round(self.rounds, self.now, snapshot, decided, time.perf_counter() - began)
        for observer in self._observers:
            observer.decided(past)
        self._apply(decided)
        for observer in self._observers:
            observer.applied(past)
        if not decided.complete:
            self._round_due = self.timeline.round_at(self.now, self._round)
        elif self._poll_due is None and (len(self.world.requests) or len(self.world.jobs)):
            self._poll_due = self.timeline.at(self.now + self._pace.poll, self._poll, background=True)

    def _apply(self, decided: Plan) -> None:
        for end in decided.ends:
            self._end(end)
        for grant in decided.grants:
            self._grant(grant)
        for refusal in decided.refusals:
            self.world.requests.remove(refusal.request.request_id)
            self._final(self._waiting.pop(refusal.request.request_id), refused=True)
        for claim in decided.claims:
            self.world.claim(claim.request_id, claim.placement)
        for preemption in decided.preemptions:
            self._preempt(preemption)
        self._brakes.take(len(decided.preemptions), sum(each.lost_ms for each in decided.preemptions))
        for admission in decided.admissions:
            self._admit(admission)
        self.world.carried_over = decided.carried_over

    def _grant(self, grant: Grant) -> None:
        lease = self.world.grant(grant, self.now)
        self.ledger.reserve(lease.queue, grant.cost, self._accelerator_ms(lease, lease.run_micros))
        job = self._waiting.pop(lease.lease_id)
        self._run(job, lease)
        for observer in self._observers:
            observer.started(job, lease, self.now)

    def _run(self, job: Job, lease: Lease) -> None:
        run = Run(job, lease.lease_id, lease.granted, None, checkpointed=lease.checkpointed)
        self.runs[lease.lease_id] = run
        if lease.granted == self.now and any(self.world.silent(name) for name, _ in lease.placement):
            # Of that node's silence no round could know yet: nothing of the job starts, and its lease ends with the node.
            run.stopped = self.now
            return
        run.end = self.timeline.at(lease.granted + job.work, partial(self._finish, run))
        if job.checkpoint_every is not None and job.checkpoint_every < job.work:
            run.checkpoint = self.timeline.at(
                lease.granted + job.checkpoint_every, partial(self._checkpoint, run), background=True
            )
        if lease.preempted_for is not None:
            self._ask(run)

    def _preempt(self, preemption: Preempt) -> None:
        run = self.runs[preemption.lease_id]
        self.world.preempt(preemption.lease_id, preemption.request_id)
        for observer in self._observers:
            observer.preempted(run.job, self.now)
        self._ask(run)

    def _ask(self, run: Run) -> None:
        """A victim that is done before it would have yielded just ends; a silent one is past asking."""
        run.asked = self.now
        if run.end is not None and run.end.when > self.now + self._pace.yield_after:
            self.timeline.cancel(run.end)
            run.end = self.timeline.at(self.now + self._pace.yield_after, partial(self._yield, run))

    def _yield(self, run: Run) -> None:
        self._lose_work(run, run.progress(self.now) if run.job.on_demand else run.safe())
        self._again(run)

    def _end(self, end: EndLease) -> None:
        run = self.runs[end.lease_id]
        if run.stopped is None:
            run.stopped = self.now
        self._lose_work(run, run.safe())
        self._again(run)

    def _again(self, run: Run) -> None:
        self._release(run)
        self._request(run.job)

    def _lose_work(self, run: Run, kept: int) -> None:
        lost_ms = run.job.shape.accelerators * (run.progress(self.now) - kept) // 1_000
        if lost_ms:
            for observer in self._observers:
                observer.lost(run.job, lost_ms)
        run.job.keep(kept)

    def _finish(self, run: Run) -> None:
        self._release(run)
        self._final(run.job, refused=False)
        self.wake()

    def _final(self, job: Job, *, refused: bool) -> None:
        del self.jobs[job]
        self.world.admitted[job.queue] -= 1
        for observer in self._observers:
            observer.final(job, self.now, refused=refused)

    def _release(self, run: Run) -> None:
        self._cancel(run)
        del self.runs[run.lease_id]
        lease = self.world.release(run.lease_id)
        self._used[lease.queue] += self._use(lease)
        held = self.now - lease.granted
        unspent = self._price(lease, lease.run_micros) - self._price(lease, held)
        unused = self._accelerator_ms(lease, lease.run_micros) - self._accelerator_ms(lease, held)
        self.ledger.settle(lease.queue, unspent, unused)
        for observer in self._observers:
            observer.stopped(run.job, lease, self.now)

    def _cancel(self, run: Run) -> None:
        for appointment in (run.end, run.checkpoint):
            if appointment is not None:
                self.timeline.cancel(appointment)
        run.end = run.checkpoint = None

    def _checkpoint(self, run: Run) -> None:
        every = run.job.checkpoint_every
        if every is None or (run.asked is not None and run.job.on_demand):
            return
        run.checkpointed = self.now
        self.world.leases[run.lease_id] = replace(self.world.leases[run.lease_id], checkpointed=self.now)
        if run.safe() + every < run.job.work:
            run.checkpoint = self.timeline.at(self.now + every, partial(self._checkpoint, run), background=True)

    def _admit(self, admission: QueuedJob) -> None:
        self.world.admit(admission)
        job = self._waiting.pop(admission.job_id)
        self.timeline.at(self.now + (job.prepare or 0), partial(self._request, job))

    def _request(self, job: Job) -> None:
        request = job.request()
        self.world.requests.add(request)
        self._waiting[request.request_id] = job
        self.wake()

    def _poll(self) -> None:
        self._poll_due = None
        self.wake()

    def _arm_decay(self) -> None:
        self.timeline.at(self.now + self._pace.decay, self._decay, background=True)

    def _decay(self) -> None:
        for lease in self.world.leases.values():
            self._used[lease.queue] += self._use(lease)
        self.ledger.decay(self._used)
        self._used.clear()
        self._used_since = self.now
        self._arm_decay()

    def _use(self, lease: Lease) -> int:
        return lease.shape.accelerators * (self.now - max(lease.granted, self._used_since))

    def _price(self, lease: Lease, micros: int) -> int:
        """In millionths, rounded up as in a grant."""
        return -(-lease.shape.accelerators * micros * self._pools[lease.pool].price // _MICROS_PER_HOUR)

    def _accelerator_ms(self, lease: Lease, micros: int) -> int:
        return 0 if self._pools[lease.pool].kind == "cpu" else lease.shape.accelerators * micros // 1_000
