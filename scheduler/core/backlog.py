"""What waits, in lines: kept from round to round, so that a round costs what there is to decide and not what waits."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Generic, TypeAlias, TypeVar

from scheduler.core.types import GroupKey, Micros, QueuedJob, Request, class_of

T = TypeVar("T", Request, QueuedJob)

LineKey: TypeAlias = tuple[int, Micros, str]
"""Virtual time of submission, time of submission, id: the order of a line."""


class Backlog(Generic[T]):
    """Requests or queued jobs by group; each line in order of `line_key`.

    Adding and removing costs O(log n) and moves the pointers behind the place. Nobody changes it while a round looks at it.
    """

    def __init__(self, items: Iterable[T] = (), *, aging_micros: int) -> None:
        """`aging_micros` as in `Limits`: the order depends on it.

        Raises:
            ValueError: an id is there twice.
        """
        self._aging_micros = aging_micros
        self._items: dict[str, T] = {}
        self._lines: dict[GroupKey, list[T]] = {}
        self._claimed: dict[str, T] = {}
        self._fill(items)
        # In order of key. A key costs more to hash than all else of a line, so rounds go through these.
        self._ordered = sorted(self._lines.items(), key=_KEY)

    @property
    def aging_micros(self) -> int:
        """How much waiting a point of priority is worth in its lines."""
        return self._aging_micros

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        for _, line in self._ordered:
            yield from line

    def lines(self) -> Iterator[tuple[GroupKey, Sequence[T]]]:
        """Every group with somebody in it, in order of key, and its line."""
        return iter(self._ordered)

    def get(self, name: str) -> T | None:
        """By request id or job id; None where nobody of that name waits."""
        return self._items.get(name)

    def claimed(self) -> Iterable[T]:
        """Those with a claim."""
        return self._claimed.values()

    def line_key(self, item: T) -> LineKey:
        """What lines are ordered by: first in, first out, where a point of priority is worth `aging_micros` of waiting."""
        return line_key(item, self._aging_micros)

    def add(self, item: T) -> None:
        """Puts it into its line.

        Raises:
            ValueError: one with its id is there.
        """
        self._enter(item)
        key = group_of(item)
        if (line := self._lines.get(key)) is None:
            line = self._lines[key] = [item]
            insort(self._ordered, (key, line), key=_KEY)
        else:
            insort(line, item, key=self.line_key)

    def remove(self, name: str) -> T:
        """Takes it out of its line and returns it.

        Raises:
            KeyError: nobody of that name waits.
        """
        if (item := self._items.pop(name, None)) is None:
            raise KeyError(f"{name} does not wait; expected one of the {len(self._items)} in the backlog")
        self._claimed.pop(name, None)
        key = group_of(item)
        line = self._lines[key]
        del line[bisect_left(line, self.line_key(item), key=self.line_key)]
        if not line:
            del self._lines[key]
            del self._ordered[bisect_left(self._ordered, key, key=_KEY)]
        return item

    def _fill(self, items: Iterable[T]) -> None:
        # A shape costs more to hash than all the rest; items mostly share theirs, and keep them alive while this runs.
        keys: dict[tuple[str, int, int, str], list[T]] = {}
        for item in items:
            alike = (item.queue, item.priority, id(item.shape), _job_type(item))
            if (line := keys.get(alike)) is None:
                line = keys[alike] = self._lines.setdefault(group_of(item), [])
            self._enter(item)
            line.append(item)
        for line in self._lines.values():
            line.sort(key=self.line_key)

    def _enter(self, item: T) -> None:
        name = identity(item)
        if self._items.setdefault(name, item) is not item:
            raise ValueError(f"{name} waits already; expected an id that the backlog does not hold: remove it first")
        if isinstance(item, Request) and item.claim:
            self._claimed[name] = item


_KEY = itemgetter(0)


def identity(item: Request | QueuedJob) -> str:
    """What it is found by: the request id of a request, the job id of a queued job."""
    return item.request_id if isinstance(item, Request) else item.job_id


def group_of(item: Request | QueuedJob) -> GroupKey:
    """The line that it waits in."""
    return GroupKey(item.queue, class_of(item.priority), item.shape, _job_type(item))


def line_key(item: Request | QueuedJob, aging_micros: int) -> LineKey:
    """As `Backlog.line_key`."""
    name = item.request_id if isinstance(item, Request) else item.job_id
    return item.submitted - item.priority * aging_micros, item.submitted, name


def _job_type(item: Request | QueuedJob) -> str:
    return "" if isinstance(item, Request) else item.job_type
