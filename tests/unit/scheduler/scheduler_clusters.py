"""Small clusters at random, and a second way to count what is held and free in them, written without the planner's code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from scheduler.core import HeldLease, LeaseRequest, Limits, Micros, Plan, QueuedJob, QueueKey, Shape, Snapshot, Worker

NOW = Micros(1_000_000)
LIMITS = Limits(prepare_ahead_per_project=2, worker_lost_micros=100, job_types=frozenset({"fine_tune"}))
PROJECTS: tuple[str, ...] = ("red", "blue")
KINDS: tuple[str, ...] = ("cpu", "h100")
SHAPES = st.builds(Shape, st.integers(1, 5), st.sampled_from((*KINDS, "any")))


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """A cluster of up to four workers whose held leases fit it, with requests, queued jobs and quotas at random."""
    workers = tuple(
        Worker(
            f"w{index}",
            draw(st.sampled_from(("old", "new"))),
            draw(st.sampled_from(KINDS)),
            draw(st.integers(0, 4)),
            Micros(NOW - draw(st.sampled_from((0, 100, 101, 5_000)))),
        )
        for index in range(draw(st.integers(0, 4)))
    )
    return Snapshot(
        queued=tuple(
            QueuedJob(f"j{index}", project, priority, since, shape, draw(st.sampled_from(("fine_tune", "fine_tune", "hpo"))))
            for index, (project, priority, since, shape) in enumerate(draw(st.lists(_waiters(), max_size=8)))
        ),
        requests=tuple(
            LeaseRequest(f"r{index}", f"jr{index}", project, priority, since, shape)
            for index, (project, priority, since, shape) in enumerate(draw(st.lists(_waiters(), max_size=8)))
        ),
        held=tuple(lease for worker in workers for lease in _held_on(draw, worker)),
        workers=workers,
        quotas=draw(st.dictionaries(st.sampled_from(PROJECTS), st.dictionaries(st.sampled_from(KINDS), st.integers(0, 6)))),
        admitted=draw(st.dictionaries(st.sampled_from(PROJECTS), st.integers(0, 3))),
        database_started=Micros(draw(st.sampled_from((0, NOW - 100)))),
    )


def _waiters() -> st.SearchStrategy[tuple[str, int, Micros, Shape]]:
    return st.tuples(st.sampled_from(PROJECTS), st.sampled_from((0, 500, 1000)), st.integers(0, 2).map(Micros), SHAPES)


def _held_on(draw: st.DrawFn, worker: Worker) -> Iterator[HeldLease]:
    free = worker.accelerators
    for index in range(draw(st.integers(0, 2))):
        incarnation = draw(st.sampled_from((worker.incarnation, "before")))
        accelerators = draw(st.integers(1, 3))
        if incarnation == worker.incarnation:
            if accelerators > free:
                return
            free -= accelerators
        expires = Micros(NOW + draw(st.sampled_from((-1, 0, 50))))
        name = f"{worker.name}h{index}"
        project = draw(st.sampled_from(PROJECTS))
        yield HeldLease(name, f"j{name}", project, worker.name, incarnation, worker.kind, accelerators, expires)


def applied(before: Snapshot, done: Plan) -> Snapshot:
    """The state that a plan leads to."""
    projects = {job.job_id: job.project for job in before.queued}
    requests = {request.lease_id: request for request in before.requests}
    gone = {grant.lease_id for grant in done.grants} | {refusal.lease_id for refusal in done.refusals}
    ended = {end.lease_id for end in done.ends}
    started = {admission.job_id for admission in done.admissions}
    granted = tuple(
        HeldLease(
            grant.lease_id,
            grant.job_id,
            requests[grant.lease_id].project,
            grant.worker,
            grant.incarnation,
            grant.kind,
            grant.accelerators,
            Micros(NOW + 30),
        )
        for grant in done.grants
    )
    admitted = dict(before.admitted)
    for job_id in started:
        admitted[projects[job_id]] = admitted.get(projects[job_id], 0) + 1
    return replace(
        before,
        queued=tuple(job for job in before.queued if job.job_id not in started),
        requests=tuple(request for request in before.requests if request.lease_id not in gone),
        held=tuple(lease for lease in before.held if lease.lease_id not in ended) + granted,
        admitted=admitted,
        carried_over=done.carried_over,
    )


@dataclass(frozen=True)
class State:
    """A snapshot, counted the simple way."""

    snapshot: Snapshot

    def alive(self) -> list[Worker]:
        started = self.snapshot.database_started
        return [worker for worker in self.snapshot.workers if NOW - max(worker.heartbeat, started) <= 100]

    def free(self, worker: Worker) -> int:
        return worker.accelerators - sum(lease.accelerators for lease in self.snapshot.held if lease.worker == worker.name)

    def held(self, project: str, kind: str) -> int:
        return sum(lease.accelerators for lease in self.snapshot.held if (lease.project, lease.kind) == (project, kind))

    def limit(self, project: str, kind: str) -> int | None:
        return self.snapshot.quotas.get(project, {}).get(kind)

    def quota_allows(self, project: str, kind: str, accelerators: int) -> bool:
        limit = self.limit(project, kind)
        return limit is None or self.held(project, kind) + accelerators <= limit

    def allowed(self, queue: QueueKey) -> list[Worker]:
        shape = queue.shape
        return [
            worker
            for worker in self.alive()
            if shape.kind in ("any", worker.kind) and self.quota_allows(queue.project, worker.kind, shape.accelerators)
        ]

    def fits(self, queue: QueueKey) -> bool:
        return any(self.free(worker) >= queue.shape.accelerators for worker in self.allowed(queue))

    def quota_is_all_that_stands_in_the_way(self, queue: QueueKey) -> bool:
        matching = [worker for worker in self.alive() if queue.shape.kind in ("any", worker.kind)]
        return bool(matching) and not self.allowed(queue)

    def maximum(self, queue: QueueKey) -> int:
        limits = [
            min(worker.accelerators, limit if (limit := self.limit(queue.project, worker.kind)) is not None else 10**9)
            for worker in self.snapshot.workers
            if queue.shape.kind in ("any", worker.kind)
        ]
        return max(limits, default=0)
