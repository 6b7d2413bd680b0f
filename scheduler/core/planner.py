"""The rules of a round. docs/explanation/scheduling.md tells them in words.

1. Held leases that expired, or whose worker is lost or restarted, end.
2. Lease requests are granted: highest priority first, then the longest waiting, then by id. Each (project, shape) is a queue
   of its own, so that a head that fits nowhere parks its own queue and no other.
3. Jobs of a type that has a workflow are admitted, in the same order, while their project's prepare-ahead window has room.
4. Whatever still waits gets its reason, computed after all decisions, so that it is true of the state they lead to.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable
from itertools import chain

from scheduler.core.capacity import Capacity
from scheduler.core.reasons import AdmissionWindow, NotEvaluated, NoWorkflow, Reason
from scheduler.core.types import (
    Admit,
    EndCause,
    EndLease,
    Grant,
    HeldLease,
    LeaseRequest,
    Limits,
    Micros,
    Plan,
    QueuedJob,
    QueueKey,
    Refuse,
    Snapshot,
    Waiting,
    Worker,
)


def plan(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
    """What to do about `snapshot` at `now`, and why everything that waits does."""
    alive = {worker.name: worker for worker in snapshot.workers if _alive(worker, snapshot, now, limits)}
    ends = _ends(snapshot.held, alive, now)
    ended = {end.lease_id for end in ends}
    held = [lease for lease in snapshot.held if lease.lease_id not in ended]
    capacity = Capacity(snapshot.workers, alive.values(), held, snapshot.quotas)

    leases = _LeaseRound(snapshot, capacity, limits.operations_max)
    leases.run()
    jobs = _AdmissionRound(snapshot, capacity, limits)
    jobs.run()
    return Plan(
        ends=ends,
        grants=tuple(leases.grants),
        refusals=tuple(leases.refusals),
        admissions=tuple(jobs.admissions),
        waiting_leases=leases.waiting(),
        waiting_jobs=jobs.waiting(),
        carried_over=leases.carried_over(),
        complete=not leases.carried_over() and jobs.complete,
    )


def _alive(worker: Worker, snapshot: Snapshot, now: Micros, limits: Limits) -> bool:
    # While the database was down no heartbeat could be stored: that silence is not the worker's.
    heard = max(worker.heartbeat, snapshot.database_started)
    return now - heard <= limits.worker_lost_micros


def _ends(held: Iterable[HeldLease], alive: dict[str, Worker], now: Micros) -> tuple[EndLease, ...]:
    """The leases to end. Not bounded by the budget: there are at most as many as accelerators."""
    causes = ((lease, _end_cause(lease, alive, now)) for lease in sorted(held, key=lambda lease: lease.lease_id))
    return tuple(EndLease(lease.lease_id, lease.job_id, cause) for lease, cause in causes if cause is not None)


def _end_cause(lease: HeldLease, alive: dict[str, Worker], now: Micros) -> EndCause | None:
    worker = alive.get(lease.worker)
    if worker is None:
        return EndCause.WORKER_LOST
    if worker.incarnation != lease.incarnation:
        return EndCause.WORKER_RESTARTED
    return EndCause.EXPIRED if lease.expires < now else None


def _job_order(job: QueuedJob) -> tuple[int, int, str]:
    return -job.priority, job.submitted, job.job_id


def _request_order(request: LeaseRequest) -> tuple[int, int, str]:
    return -request.priority, request.requested, request.lease_id


class _LeaseRound:
    """Grants and refuses lease requests, one queue per project and shape, best head first."""

    def __init__(self, snapshot: Snapshot, capacity: Capacity, operations: int) -> None:
        self._capacity = capacity
        self._operations = operations
        self._queues: defaultdict[QueueKey, deque[LeaseRequest]] = defaultdict(deque)
        for request in sorted(snapshot.requests, key=_request_order):
            self._queues[request.queue].append(request)
        # Queues that the last round did not reach come before those it did: the round goes on where it stopped.
        self._first = frozenset(snapshot.carried_over) & self._queues.keys()
        self._heads: list[tuple[bool, tuple[int, int, str], QueueKey]] = []
        self._unreached: frozenset[QueueKey] = frozenset()
        self.grants: list[Grant] = []
        self.refusals: list[Refuse] = []

    def run(self) -> None:
        for queue in self._queues:
            self._push(queue)
        while self._heads and self._operations > 0:
            _, _, queue = heapq.heappop(self._heads)
            self._operations -= self._capacity.cost
            if (exceeds := self._capacity.exceeds(queue)) is not None:
                requests = self._queues.pop(queue)
                self.refusals.extend(Refuse(request.lease_id, request.job_id, exceeds) for request in requests)
            elif (worker := self._capacity.find(queue)) is not None:
                self.grants.append(self._capacity.take(self._queues[queue].popleft(), worker))
                self._push(queue)
            # Else the queue is parked: capacity and quota only shrink, so nothing in it can fit in this round any more.
        self._unreached = frozenset(queue for _, _, queue in self._heads)

    def carried_over(self) -> tuple[QueueKey, ...]:
        """The queues that no round of this pass has got to yet; the pass is over when there are none.

        A round that goes on with a pass leaves out, if it must, what the rounds before it got to.
        """
        return tuple(sorted(self._unreached & self._first if self._first else self._unreached))

    def waiting(self) -> tuple[Waiting, ...]:
        """Everything not granted and not refused, by queue."""
        return tuple(chain.from_iterable(self._waiting_in(queue) for queue in sorted(self._queues)))

    def _waiting_in(self, queue: QueueKey) -> list[Waiting]:
        requests = self._queues[queue]
        if not requests:
            return []
        reason: Reason = NotEvaluated() if queue in self._unreached else self._capacity.explain(queue)
        return [Waiting(request.lease_id, request.job_id, reason, ahead) for ahead, request in enumerate(requests)]

    def _push(self, queue: QueueKey) -> None:
        if requests := self._queues[queue]:
            heapq.heappush(self._heads, (queue not in self._first, _request_order(requests[0]), queue))


class _AdmissionRound:
    """Admits queued jobs while their project's prepare-ahead window has room."""

    def __init__(self, snapshot: Snapshot, capacity: Capacity, limits: Limits) -> None:
        self._capacity = capacity
        self._window = limits.prepare_ahead_per_project
        self._job_types = limits.job_types
        self._operations = limits.operations_max
        self._admitted = defaultdict[str, int](int, snapshot.admitted)
        self._jobs = sorted(snapshot.queued, key=_job_order)
        self._left: list[tuple[QueuedJob, Reason | None]] = []
        self.admissions: list[Admit] = []
        self.complete = True

    def run(self) -> None:
        for job in self._jobs:
            if self._job_types is not None and job.job_type not in self._job_types:
                # A deployment that has the workflow may come; until then it takes no place in the window from others.
                self._left.append((job, NoWorkflow(job.job_type, tuple(sorted(self._job_types)))))
            elif (exceeds := self._capacity.exceeds(QueueKey(job.project, job.shape))) is not None:
                # It would prepare for nothing. It stays queued, where its owner can see why and cancel it.
                self._left.append((job, exceeds))
            elif self._admitted[job.project] >= self._window:
                self._left.append((job, None))
            elif self._operations <= 0:
                self._left.append((job, NotEvaluated()))
                self.complete = False
            else:
                self._operations -= 1
                self._admitted[job.project] += 1
                self.admissions.append(Admit(job.job_id))

    def waiting(self) -> tuple[Waiting, ...]:
        """Every job not admitted, in order."""
        ahead: defaultdict[str, int] = defaultdict(int)
        waiting: list[Waiting] = []
        for job, reason in self._left:
            window = AdmissionWindow(self._admitted[job.project], self._window)
            waiting.append(Waiting(job.job_id, job.job_id, reason or window, ahead[job.project]))
            ahead[job.project] += 1
        return tuple(waiting)
