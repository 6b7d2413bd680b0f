"""Step 5: which jobs may start, and why the others may not yet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice

from scheduler.core.groups import effective_class
from scheduler.core.reasons import AdmissionWindow, ExceedsMaximum, NoWorkflow
from scheduler.core.refusals import Maximum
from scheduler.core.state import State
from scheduler.core.types import GroupKey, PriorityClass, QueuedJob, Waiting


class Admission:
    """Of each queue, the best jobs that its window has room for. Bounded by the windows, so it costs no operations."""

    def __init__(self, state: State, maximum: Maximum) -> None:
        self._state = state
        self._never: dict[GroupKey, NoWorkflow | ExceedsMaximum] = {}
        by_queue: defaultdict[str, list[GroupKey]] = defaultdict(list)
        self._lines: dict[GroupKey, Sequence[QueuedJob]] = dict(state.snapshot.jobs.lines())
        for key in self._lines:
            if (reason := self._why_never(key, maximum)) is None:
                by_queue[key.queue].append(key)
            else:
                self._never[key] = reason
        self.admitted = tuple(job for queue in sorted(by_queue) for job in self._first(queue, by_queue[queue]))

    def waiting(self) -> tuple[Waiting, ...]:
        """Why each group that is left waits."""
        window = self._state.limits.prepare_ahead
        started = Counter(job.queue for job in self.admitted)
        gone = {job.job_id for job in self.admitted}
        under_way = self._state.snapshot.admitted
        return tuple(
            Waiting(key, (self._never.get(key) or AdmissionWindow(under_way.get(key.queue, 0) + started[key.queue], window),))
            for key, line in self._lines.items()
            # Those admitted are the first of their lines.
            if line[-1].job_id not in gone
        )

    def _why_never(self, key: GroupKey, maximum: Maximum) -> NoWorkflow | ExceedsMaximum | None:
        """Why no job of the group is admitted, however long it waits. It stays queued, where its owner can cancel it."""
        known = self._state.limits.job_types
        if known is not None and key.job_type not in known:
            return NoWorkflow(key.job_type, tuple(sorted(known)))
        return maximum.exceeded(self._state.tree.leaf(key.queue), self._state.demand(key.shape))

    def _first(self, queue: str, keys: Sequence[GroupKey]) -> Iterator[QueuedJob]:
        """As many of the queue's jobs as may start: highest class first, then in line order."""
        window = self._state.limits.prepare_ahead - self._state.snapshot.admitted.get(queue, 0)
        classes: defaultdict[PriorityClass, list[Sequence[QueuedJob]]] = defaultdict(list)
        for key in keys:
            classes[effective_class(self._state, key)].append(self._lines[key])
        in_order = (
            job
            for priority_class in sorted(classes, reverse=True)
            for job in merge(*classes[priority_class], key=self._state.snapshot.jobs.line_key)
        )
        return islice(in_order, max(0, window))
