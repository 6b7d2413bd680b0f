"""What the leader knows between rounds, kept up with what changes. Pure: rows go in, a snapshot comes out.

What is kept is what a query of everything would give: applying the rows that changed leaves the same state as reading all rows
anew, and a test holds the two against each other.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from sys import intern
from typing import NamedTuple

from scheduler.core.backlog import Backlog
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Amounts,
    Brakes,
    Grant,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Pool,
    QueuedJob,
    QueueNode,
    Request,
)
from scheduler.shapes import shape_of

_UNDER_WAY = frozenset({"STARTING", "RUNNING"})
"""A job that is being stopped is given nothing more; its requests end with it. Nor is one that is being paused."""
_IN_WINDOW = frozenset({"STARTING", "RUNNING", "PAUSING", "CANCELLING"})
"""A paused job prepares nothing, so it takes no place in its project's window; resumed, it may overfill it for a while."""


class JobRow(NamedTuple):
    """What scheduling reads of a job. Times are microseconds since 1970."""

    job_id: str
    project: str
    priority: int
    submitted: Micros
    state: str
    job_type: str
    shape: str


class LeaseRow(NamedTuple):
    """What scheduling reads of a lease and its job."""

    lease_id: str
    job_id: str
    project: str
    job_state: str
    state: str
    shape: str
    priority: int
    submitted: Micros
    run_seconds: int
    claim: str | None
    pool: str | None
    placement: str | None
    granted: Micros | None
    expires: Micros | None
    checkpointed: Micros | None
    preempted_for: str | None
    preempted: Micros | None


class WorkerRow(NamedTuple):
    """What scheduling reads of a worker."""

    name: str
    incarnation: str
    kind: str
    accelerators: int
    cpu_millis: int
    memory_mib: int
    pool: str
    spot: bool
    labels: str
    cordoned: bool
    heartbeat: Micros


class State:
    """Jobs that wait or are under way, lease requests and held leases."""

    def __init__(self, *, job_types: frozenset[str], limits: Limits) -> None:
        """Begins with nothing.

        Args:
            job_types: the types of job that have a workflow. Queued jobs of others wait for another deployment, and are in
                nobody's way here.
            limits: the rules' parameters.
        """
        self._job_types = job_types
        self._aging_micros = limits.aging_micros
        self._in_window: dict[str, str] = {}
        self._admitted: Counter[str] = Counter()
        self._leases: dict[str, Lease] = {}
        self._expiries: list[tuple[int, str]] = []
        self._preempted: dict[str, Micros] = {}
        self._jobs = Backlog[QueuedJob]((), aging_micros=limits.aging_micros)
        self._requests = Backlog[Request]((), aging_micros=limits.aging_micros)

    def knows(self, job_id: str) -> bool:
        """Whether a job waits or is under way here."""
        return job_id in self._in_window or self._jobs.get(job_id) is not None

    def apply(self, jobs: Iterable[JobRow], leases: Iterable[LeaseRow]) -> None:
        """Takes rows as they are now, of any state.

        Args:
            jobs: those that changed.
            leases: those that changed, and those whose job did.
        """
        for row in jobs:
            if self._jobs.get(row.job_id) is not None:
                self._jobs.remove(row.job_id)
            project = self._in_window.pop(row.job_id, None)
            if project is not None:
                self._admitted[project] -= 1
            job = self.take_job(row)
            if job is not None:
                self._jobs.add(job)
        for lease_row in leases:
            if self._requests.get(lease_row.lease_id) is not None:
                self._requests.remove(lease_row.lease_id)
            self._leases.pop(lease_row.lease_id, None)
            self._preempted.pop(lease_row.lease_id, None)
            request = self.take_lease(lease_row)
            if request is not None:
                self._requests.add(request)

    def carried_out(self, grants: Iterable[Grant], admissions: Iterable[QueuedJob], at: Micros, expires: Micros) -> None:
        """Takes what a round granted and admitted, as reading those rows would.

        Args:
            grants: of requests that waited.
            admissions: of jobs that were queued.
            at: when they were granted.
            expires: when the leases do, unless they are renewed.
        """
        for grant in grants:
            request = grant.request
            self._requests.remove(request.request_id)
            self._hold(
                Lease(
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
                    granted=at,
                    expires=expires,
                )
            )
        for job in admissions:
            self._jobs.remove(job.job_id)
            self._in_window[job.job_id] = job.queue
            self._admitted[job.queue] += 1

    def _hold(self, lease: Lease) -> None:
        self._leases[lease.lease_id] = lease
        heapq.heappush(self._expiries, (lease.expires, lease.lease_id))

    def waiting(self, jobs: Iterable[QueuedJob], requests: Iterable[Request]) -> State:
        """This state, with what waits as a whole."""
        self._jobs = Backlog[QueuedJob](jobs, aging_micros=self._aging_micros)
        self._requests = Backlog[Request](requests, aging_micros=self._aging_micros)
        return self

    def differences(self, other: State) -> list[str]:
        """What two states do not agree on, by id. Renewals are not told of, so expiry may differ."""
        found = [
            f"{what} {name}"
            for what, ours, theirs in (
                ("queued job", _by_id(self._jobs), _by_id(other._jobs)),
                ("request", _by_id(self._requests), _by_id(other._requests)),
                ("lease", _without_expiry(self._leases), _without_expiry(other._leases)),
                ("admitted job", self._in_window, other._in_window),
                ("preempted lease", self._preempted, other._preempted),
            )
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        ]
        counts = +self._admitted, +other._admitted
        return found + ([] if counts[0] == counts[1] else [f"admitted {counts[0]} and {counts[1]}"])

    def take_job(self, row: JobRow) -> QueuedJob | None:
        """Counts a job that is under way; returns one that waits."""
        project = intern(row.project)
        if row.state in _IN_WINDOW:
            self._in_window[row.job_id] = project
            self._admitted[project] += 1
        if row.state != "QUEUED" or row.job_type not in self._job_types:
            return None
        # Of those that have a workflow none differs from another for its type.
        return QueuedJob(row.job_id, project, shape_of(row.shape), row.priority, row.submitted)

    def take_lease(self, row: LeaseRow) -> Request | None:
        """Keeps a lease that is held; returns a request that waits."""
        shape, project, run_micros = shape_of(row.shape), intern(row.project), row.run_seconds * 1_000_000
        if row.state == "REQUESTED" and row.job_state in _UNDER_WAY:
            return Request(
                row.lease_id, row.job_id, project, shape, row.priority, row.submitted, run_micros, _claimed(row.claim)
            )
        if row.state == "GRANTED" and row.granted is not None and row.expires is not None:
            placement, incarnations = _placed(row.placement)
            self._hold(
                Lease(
                    lease_id=row.lease_id,
                    job_id=row.job_id,
                    queue=project,
                    shape=shape,
                    priority=row.priority,
                    submitted=row.submitted,
                    run_micros=run_micros,
                    pool=row.pool or "",
                    placement=placement,
                    incarnations=incarnations,
                    granted=row.granted,
                    expires=row.expires,
                    checkpointed=row.checkpointed,
                    preempted_for=row.preempted_for,
                )
            )
            if row.preempted is not None:
                self._preempted[row.lease_id] = row.preempted
        return None

    def expired(self, now: Micros) -> list[str]:
        """Leases whose known expiry has passed: renewals are not told of, so theirs are to be read again. Each is named once,
        until its row was applied again."""
        found: list[str] = []
        while self._expiries and self._expiries[0][0] < now:
            expires, lease_id = heapq.heappop(self._expiries)
            lease = self._leases.get(lease_id)
            if lease is not None and lease.expires == expires:
                found.append(lease_id)
        return found

    def overdue(self, asked_before: Micros) -> list[Lease]:
        """Held leases that were asked to yield before a time."""
        return [self._leases[lease_id] for lease_id, asked in sorted(self._preempted.items()) if asked < asked_before]

    def next_yield(self) -> Micros | None:
        """When the first of the held leases that were asked to yield was asked."""
        return min(self._preempted.values(), default=None)

    def snapshot(
        self,
        workers: Sequence[WorkerRow],
        prices: Callable[[str, bool], int],
        tree: tuple[QueueNode, ...],
        brakes: Brakes,
        database_started: Micros,
        carried_over: tuple[GroupKey, ...],
    ) -> Snapshot:
        """What a round decides on. It shares the backlogs with this state, so no row may be applied while it is used.

        Args:
            workers: all that ever registered.
            prices: millionths of the currency for an accelerator-hour, of a kind that is spot or not.
            tree: of quotas.
            brakes: of preemption.
            database_started: nobody can have sent a heartbeat before.
            carried_over: from the plan before.
        """
        pools, nodes = pools_and_nodes(workers, prices)
        return Snapshot(
            requests=self._requests,
            jobs=self._jobs,
            leases=tuple(self._leases.values()),
            pools=pools,
            nodes=nodes,
            tree=tree,
            admitted={project: count for project, count in self._admitted.items() if count},
            brakes=brakes,
            database_started=database_started,
            carried_over=carried_over,
        )


class StateLoader:
    """Makes a state of all there is, given bit by bit, so that rows need not all be there at once."""

    def __init__(self, *, job_types: frozenset[str], limits: Limits) -> None:
        self._state = State(job_types=job_types, limits=limits)
        self._jobs: list[QueuedJob] = []
        self._requests: list[Request] = []

    def take(self, jobs: Iterable[JobRow] = (), leases: Iterable[LeaseRow] = ()) -> None:
        """Takes rows; of each job and each lease one, and of those that are over none."""
        self._jobs += [job for row in jobs if (job := self._state.take_job(row)) is not None]
        self._requests += [request for row in leases if (request := self._state.take_lease(row)) is not None]

    def state(self) -> State:
        """All that was taken."""
        return self._state.waiting(self._jobs, self._requests)


def pools_and_nodes(
    workers: Sequence[WorkerRow], prices: Callable[[str, bool], int]
) -> tuple[tuple[Pool, ...], tuple[Node, ...]]:
    """What there is to place leases on, in order of name.

    Workers of one pool are alike; one that says otherwise than the first of its name is a pool of its own.
    """
    pools: dict[str, Pool] = {}
    nodes: list[Node] = []
    for row in sorted(workers):
        own = f"{row.kind}-spot" if row.spot else row.kind
        name = row.pool or own
        pool = pools.setdefault(name, Pool(name, row.kind, row.spot, prices(row.kind, row.spot)))
        if (pool.kind, pool.spot) != (row.kind, row.spot):
            name = f"{name}/{own}"
            pools.setdefault(name, Pool(name, row.kind, row.spot, prices(row.kind, row.spot)))
        total: Amounts = (row.accelerators, row.cpu_millis, row.memory_mib)
        nodes.append(Node(row.name, row.incarnation, name, total, row.heartbeat, row.cordoned, _labels(row.labels)))
    return tuple(pools[name] for name in sorted(pools)), tuple(nodes)


@lru_cache(maxsize=65_536)
def _labels(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((label, str(value)) for label, value in json.loads(text).items()))


def _by_id(backlog: Iterable[QueuedJob | Request]) -> dict[str, QueuedJob | Request]:
    return {item.job_id if isinstance(item, QueuedJob) else item.request_id: item for item in backlog}


def _without_expiry(leases: Mapping[str, Lease]) -> dict[str, Lease]:
    return {lease_id: replace(lease, expires=Micros(0)) for lease_id, lease in leases.items()}


def _claimed(text: str | None) -> Placement:
    return () if text is None else tuple((node, members) for node, members in json.loads(text))


def _placed(text: str | None) -> tuple[Placement, tuple[str, ...]]:
    placed = [] if text is None else json.loads(text)
    return tuple((node, members) for node, members, _ in placed), tuple(incarnation for _, _, incarnation in placed)
