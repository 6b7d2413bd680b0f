"""How long work may really take: what it declares, or what work like it has taken of what it declared.

Observed are the ratios of actual to declared run times, of work that came to its own end, by queue and type of job. Where too
little was observed of a queue's type, the organisation's work of that type says more; then all of the queue, then all of the
organisation; and where there is next to nothing, work is taken to run as long as it declared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from scheduler.core.types import Lease, QueuedJob, Request

Work: TypeAlias = Request | Lease | QueuedJob
RunTimes: TypeAlias = Callable[[Work], Sequence[int]]
"""Of something that waits or runs, the run times that it may have, equally likely, in microseconds."""

OBSERVED_MIN = 20
"""Of fewer, the p90 of what was observed would be no more than its largest or second largest."""
_UNDECLARED_MICROS = 3_600_000_000
"""What a queued job is taken to declare: it does that with its request."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A lease whose work came to its own end."""

    queue: str
    job_type: str
    declared: int
    """Longest run time, in microseconds, above 0."""
    actual: int
    """In microseconds."""


def declared_micros(work: Work) -> int:
    """Longest run time, in microseconds."""
    return _UNDECLARED_MICROS if isinstance(work, QueuedJob) else work.run_micros


def as_declared(work: Work) -> Sequence[int]:
    """As long as it declared: what is assumed where nothing was observed."""
    return (declared_micros(work),)


class ObservedRunTimes:
    """Run times by what was observed of work that is alike."""

    def __init__(self, observations: Iterable[Observation], job_types: Mapping[str, str]) -> None:
        """Args: what was observed; the type of each job that is asked about, by its id, as far as it is known."""
        self._job_types = job_types
        self._ratios: defaultdict[tuple[str | None, str | None], list[float]] = defaultdict(list)
        """By queue and type, None standing for all."""
        for seen in observations:
            ratio = seen.actual / seen.declared
            for like in (
                (seen.queue, seen.job_type),
                (None, seen.job_type),
                (seen.queue, None),
                (None, None),
            ):
                self._ratios[like].append(ratio)

    @property
    def count(self) -> int:
        """How many leases were observed."""
        return len(self._ratios.get((None, None), ()))

    def __call__(self, work: Work) -> Sequence[int]:
        """As `RunTimes`."""
        job_type = work.job_type if isinstance(work, QueuedJob) else self._job_types.get(work.job_id)
        typed = [] if job_type is None else [(work.queue, job_type), (None, job_type)]
        declared = declared_micros(work)
        for like in (*typed, (work.queue, None), (None, None)):
            ratios = self._ratios.get(like, ())
            if len(ratios) >= OBSERVED_MIN:
                return [max(1, round(ratio * declared)) for ratio in ratios]
        return (declared,)
