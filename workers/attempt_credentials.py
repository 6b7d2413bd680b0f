"""The tokens with which the writes of attempts are made: asked for when needed, kept, and renewed before they end."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

_KEPT = 1_024
"""Most attempts whose tokens are kept: more than one worker is ever busy with."""
_RENEWED_AT = 0.8
"""The share of a token's life after which it is replaced, long before it is refused."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token as the control plane gave it."""

    secret: str
    lifetime_seconds: float
    """From when it was asked for."""


Issue = Callable[[str, int], Awaitable[IssuedToken]]
"""Asks for the token of a job's attempt; raises `HeadwayError` when that is refused."""


class AttemptCredentials:
    """The tokens of one worker process, which is one event loop."""

    def __init__(self, issue: Issue, clock: Callable[[], float] = time.monotonic) -> None:
        self._issue = issue
        self._clock = clock
        self._kept: OrderedDict[tuple[str, int], tuple[str, float]] = OrderedDict()
        self._asking: dict[tuple[str, int], asyncio.Task[str]] = {}

    async def token(self, job_id: str, attempt: int) -> str:
        """The token of an attempt. Who asks while it is being asked for waits for the same answer.

        Raises:
            HeadwayError: the control plane does not give it.
        """
        key = (job_id, attempt)
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept[1]:
            self._kept.move_to_end(key)
            return kept[0]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key))
            asking.add_done_callback(lambda task: self._asked(key, task))
        # One caller that gives up must not take the answer from the others.
        return await asyncio.shield(asking)

    def refused(self, job_id: str, attempt: int, token: str) -> None:
        """Forgets a token that the control plane did not accept, unless it has been replaced already."""
        kept = self._kept.get((job_id, attempt))
        if kept is not None and kept[0] == token:
            del self._kept[job_id, attempt]

    def _asked(self, key: tuple[str, int], task: asyncio.Task[str]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # Nobody may be waiting any more, and that is no fault to be reported.

    async def _ask(self, key: tuple[str, int]) -> str:
        asked = self._clock()
        issued = await self._issue(*key)
        self._kept[key] = (issued.secret, asked + _RENEWED_AT * issued.lifetime_seconds)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return issued.secret
