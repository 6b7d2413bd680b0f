"""Answers that are believed for a while without looking again."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Believed(Generic[_T]):
    """Keeps what looks found, for a bounded time and in bounded number. What raises is not kept: strangers fill no memory."""

    def __init__(self, seconds: float, most: int = 10_000) -> None:
        """Args:
        seconds: how long an answer is believed at most.
        most: answers kept; the oldest goes first.
        """
        self._seconds = seconds
        self._most = most
        self._answers: OrderedDict[Hashable, tuple[_T, float]] = OrderedDict()
        self._looking: dict[Hashable, asyncio.Task[_T]] = {}
        self._generation = 0

    def forget(self) -> None:
        """Looks again for everything; looks under way are not believed either, since they may have begun before the change."""
        self._generation += 1
        self._answers.clear()
        self._looking.clear()

    async def get(self, key: Hashable, look: Callable[[], Awaitable[tuple[_T, float]]]) -> _T:
        """The answer for `key`.

        Args:
            key: what is asked.
            look: finds the answer, and for how many seconds it can hold at most. Of many who ask at once, one looks.

        Raises:
            Exception: whatever `look` raised.
        """
        answer = self._answers.get(key)
        if answer is not None and answer[1] > time.monotonic():
            return answer[0]
        looking = self._looking.get(key)
        if looking is None:
            looking = asyncio.create_task(self._look(key, look))
            self._looking[key] = looking
            looking.add_done_callback(lambda done: self._looked(key, done))
        # Shielded: a caller that goes away must not take the answer from the others.
        return await asyncio.shield(looking)

    async def _look(self, key: Hashable, look: Callable[[], Awaitable[tuple[_T, float]]]) -> _T:
        generation, began = self._generation, time.monotonic()
        answer, holds_seconds = await look()
        if generation == self._generation:
            self._answers[key] = (answer, began + min(self._seconds, holds_seconds))
            self._answers.move_to_end(key)
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)
        return answer

    def _looked(self, key: Hashable, done: asyncio.Task[_T]) -> None:
        if self._looking.get(key) is done:
            del self._looking[key]
        if not done.cancelled():
            done.exception()  # Whoever still waits is told; if nobody does, that is no fault.
