"""Python's collector of cycles, for processes that make many objects at once and keep many for long."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


def spare_collector() -> None:
    """Keeps the collector away from what lives as long as the process, and from working at every burst.

    An event for a thousand watchers, or a round of a thousand grants, makes thousands of objects within milliseconds, none of
    them garbage yet; with Python's own thresholds looking for cycles among them takes up to a third of the process's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@contextmanager
def collector_paused() -> Generator[None]:
    """Keeps the collector from working inside the block, which makes many objects and no cycles. Blocks do not nest."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
