"""What is still to happen, in order of virtual time. Nothing here knows real time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

from scheduler.core.types import Micros

Action: TypeAlias = Callable[[], None]

_EVENT, _ROUND = 0, 1


@dataclass(slots=True, order=True)
class Appointment:
    """Something that happens at `when`: of the same instant events come before the round, and earlier made ones first."""

    when: Micros
    rank: int
    number: int
    action: Action | None = field(compare=False)
    background: bool = field(compare=False)


class Timeline:
    """Appointments and the virtual clock, which jumps from one to the next."""

    def __init__(self, start: Micros) -> None:
        self.now = start
        self._heap: list[Appointment] = []
        self._numbers = count()
        self._foreground = 0

    def at(self, when: int, action: Action, *, background: bool = False) -> Appointment:
        """Makes an appointment, no earlier than now.

        Args:
            when: Micros.
            action: called then.
            background: it alone is no reason to go on: a poll, book-keeping.
        """
        return self._add(when, _EVENT, action, background)

    def round_at(self, when: int, action: Action) -> Appointment:
        """As `at`; it sees all events of its instant."""
        return self._add(when, _ROUND, action, background=False)

    def cancel(self, appointment: Appointment) -> None:
        """It will not happen; one that has happened is left alone."""
        if appointment.action is not None:
            appointment.action = None
            self._foreground -= not appointment.background

    @property
    def quiet(self) -> bool:
        """Whether nothing is to happen but what is in the background."""
        return self._foreground == 0

    @property
    def next_at(self) -> Micros | None:
        """When the next appointment is; None: there is none."""
        while self._heap and self._heap[0].action is None:
            heapq.heappop(self._heap)
        return self._heap[0].when if self._heap else None

    def step(self) -> None:
        """Goes to the next appointment, of which there is one, and keeps it."""
        appointment = heapq.heappop(self._heap)
        action = appointment.action
        if action is None:
            return
        appointment.action = None
        self._foreground -= not appointment.background
        self.now = appointment.when
        action()

    def _add(self, when: int, rank: int, action: Action, background: bool) -> Appointment:
        appointment = Appointment(Micros(max(when, self.now)), rank, next(self._numbers), action, background)
        heapq.heappush(self._heap, appointment)
        self._foreground += not background
        return appointment
