"""Waiting for what nobody signals: that another process, or the database, has come to something by itself."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

_LOOK_AGAIN_SECONDS = 0.02


async def until(
    holds: Callable[[], bool | Awaitable[bool]], what: str | Callable[[], object] = "what was waited for", seconds: float = 20.0
) -> None:
    """Returns as soon as it holds.

    Args:
        holds: asked again and again.
        what: what was expected, or how things are instead.
        seconds: the longest it may take.

    Raises:
        AssertionError: it took longer.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = holds()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s: {what if isinstance(what, str) else what()}"
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
