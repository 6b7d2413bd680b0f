"""The lines of waiting requests, as a round goes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scheduler.core.backlog import line_key
from scheduler.core.state import State
from scheduler.core.types import GroupKey, PriorityClass, Request


class Group:
    """A line of requests and how far the round has come in it."""

    __slots__ = (
        "_at",
        "_claimant",
        "_line",
        "_state",
        "carried",
        "demand",
        "head",
        "key",
        "leaf",
        "line_key",
        "priority_class",
    )

    def __init__(self, state: State, key: GroupKey, line: Sequence[Request], *, carried: bool) -> None:
        self.key = key
        self.leaf = leaf = state.tree.leaf(key.queue)
        self.demand = state.demand(key.shape)
        self.priority_class = PriorityClass.SCAVENGER if state.tree.demoted(leaf) else key.priority_class
        self.carried = carried
        """Whether the last round did not get to it."""
        self.head: Request | None = line[0]
        """The first that was neither granted nor refused and waits for no victims."""
        self.line_key = line_key(line[0], state.limits.aging_micros)
        """Of the head, or the last there was."""
        self._state = state
        self._line = line
        self._at = 0
        self._claimant: Request | None = None
        if line[0].claim:
            self._find_head()

    @property
    def first(self) -> Request | None:
        """The first that waits, be it for victims; None when nobody is left."""
        return self._claimant or self.head

    def granted(self) -> None:
        """The head was granted: the next in line is the head."""
        self._at += 1
        self._find_head()

    def claimed(self) -> None:
        """The head waits for victims from now on: the next in line is the head."""
        self._claimant = self._claimant or self.head
        self.granted()

    def refuse(self) -> Sequence[Request]:
        """Those who wait for no victims; they leave the line."""
        refused: list[Request] = []
        while self.head is not None:
            refused.append(self.head)
            self.granted()
        return refused

    def _find_head(self) -> None:
        """The next that has not got what it asks for on its claim, and waits for nobody to yield to it."""
        state, line = self._state, self._line
        for at in range(self._at, len(line)):
            request = line[at]
            if request.claim:
                if request.request_id in state.granted:
                    continue
                if request.request_id in state.pending:
                    self._claimant = self._claimant or request
                    continue
                request = replace(request, claim=())
            self._at, self.head, self.line_key = at, request, line_key(request, state.limits.aging_micros)
            return
        self._at, self.head = len(line), None


def effective_class(state: State, key: GroupKey) -> PriorityClass:
    """The class that counts: the lowest for queues that are demoted."""
    return PriorityClass.SCAVENGER if state.tree.demoted(state.tree.leaf(key.queue)) else key.priority_class
