"""What is free and what is held, kept as a round goes on, and what that means for one shape of request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from scheduler.core.reasons import ExceedsMaximum, Fragmented, NoCapacity, QuotaReached, Reason
from scheduler.core.types import Grant, HeldLease, LeaseRequest, QueueKey, Shape, Worker


class Capacity:
    """Free accelerators by worker, held accelerators by project and kind. Within a round it only shrinks."""

    def __init__(
        self,
        known: Iterable[Worker],
        alive: Iterable[Worker],
        held: Iterable[HeldLease],
        quotas: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._quotas = quotas
        self._alive = sorted(alive, key=lambda worker: worker.name)
        self._free = {worker.name: worker.accelerators for worker in self._alive}
        self._held: defaultdict[tuple[str, str], int] = defaultdict(int)
        for lease in held:
            self._free[lease.worker] -= lease.accelerators
            self._held[lease.project, lease.kind] += lease.accelerators
        self._largest: dict[str, int] = {}
        for worker in known:
            self._largest[worker.kind] = max(self._largest.get(worker.kind, 0), worker.accelerators)

    @property
    def cost(self) -> int:
        """Operations that one `find` takes: the workers it looks at."""
        return 1 + len(self._alive)

    def find(self, queue: QueueKey) -> Worker | None:
        """The living worker where a request of the queue fits tightest (then the first by name); None if it fits nowhere.

        Tightest first keeps large holes for large shapes.
        """
        fitting = (
            (self._free[worker.name], worker.name, worker)
            for worker in self._allowed(queue)
            if self._free[worker.name] >= queue.shape.accelerators
        )
        return min(fitting, default=(0, "", None), key=lambda candidate: candidate[:2])[2]

    def take(self, request: LeaseRequest, worker: Worker) -> Grant:
        """Takes the request's accelerators from the worker, for the rest of the round."""
        accelerators = request.shape.accelerators
        self._free[worker.name] -= accelerators
        self._held[request.project, worker.kind] += accelerators
        return Grant(request.lease_id, request.job_id, worker.name, worker.incarnation, worker.kind, accelerators)

    def exceeds(self, queue: QueueKey) -> ExceedsMaximum | None:
        """Why no request of the queue can ever be granted, if so.

        Where the maximum is 0 nothing is known yet, or the project is paused: that is waited out, not refused.
        """
        shape = queue.shape
        maximum = max(
            (
                largest if (limit := self._limit(queue.project, kind)) is None else min(largest, limit)
                for kind, largest in self._largest.items()
                if shape.matches(kind)
            ),
            default=0,
        )
        return ExceedsMaximum(shape.accelerators, maximum, shape.kind) if 0 < maximum < shape.accelerators else None

    def explain(self, queue: QueueKey) -> Reason:
        """Why requests of the queue, for which `find` finds nothing, wait: the first reason by precedence that holds."""
        shape = queue.shape
        if (exceeds := self.exceeds(queue)) is not None:
            return exceeds
        allowed = self._allowed(queue)
        if not allowed and (quota := self._quota_reason(queue)) is not None:
            return quota
        free = [max(0, self._free[worker.name]) for worker in allowed]
        if sum(free) >= shape.accelerators:
            return Fragmented(shape.accelerators, sum(free), max(free), shape.kind)
        return NoCapacity(shape.accelerators, sum(free), sum(worker.accelerators for worker in allowed), shape.kind)

    def _allowed(self, queue: QueueKey) -> list[Worker]:
        """The living workers whose kind the shape and the quota allow."""
        return [
            worker
            for worker in self._alive
            if queue.shape.matches(worker.kind) and self._within_quota(queue.project, worker.kind, queue.shape)
        ]

    def _within_quota(self, project: str, kind: str, shape: Shape) -> bool:
        limit = self._limit(project, kind)
        return limit is None or self._held[project, kind] + shape.accelerators <= limit

    def _limit(self, project: str, kind: str) -> int | None:
        return self._quotas.get(project, {}).get(kind)

    def _quota_reason(self, queue: QueueKey) -> QuotaReached | None:
        """The quota that stands in the way; of several kinds the one with most left. None if no quota does."""
        kinds = {worker.kind for worker in self._alive if queue.shape.matches(worker.kind)}
        if queue.shape.kind in self._quotas.get(queue.project, {}):
            # Said also while no worker of the kind is alive: it would stand in the way then, too.
            kinds.add(queue.shape.kind)
        left = [
            (limit - self._held[queue.project, kind], kind, limit)
            for kind in kinds
            if (limit := self._limit(queue.project, kind)) is not None
            and not self._within_quota(queue.project, kind, queue.shape)
        ]
        if not left:
            return None
        _, kind, limit = max(left)
        return QuotaReached(queue.shape.accelerators, self._held[queue.project, kind], limit, kind)
