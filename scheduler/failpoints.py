"""Named points at which a scheduler can be made to die, as a power cut would: for tests of what a crash leaves behind.

The setting `scheduler.failpoint` names one when the process starts; without it nothing here does anything.
"""

from __future__ import annotations

import os
from enum import StrEnum

EXIT_STATUS = 86
"""With which a process ends at its failpoint."""


class Failpoint(StrEnum):
    """Where: at every boundary of a commit."""

    BEFORE_TAKE_OVER = "before-take-over"
    """A term is claimed, and not committed."""
    AFTER_TAKE_OVER = "after-take-over"
    """The term has begun; nothing has been read under it."""
    BEFORE_COMMIT = "before-commit"
    """A round that decided something is written, and not committed."""
    AFTER_COMMIT = "after-commit"
    """It is committed, and nobody was told."""
    BEFORE_DISPATCH = "before-dispatch"
    """Rows of the outbox are read; Temporal was not called."""
    AFTER_DISPATCH = "after-dispatch"
    """Temporal was called; that is not recorded."""
    BEFORE_FORCED_END = "before-forced-end"
    """A lease that did not yield in time is ended, and that is not committed."""
    AFTER_FORCED_END = "after-forced-end"
    """It is committed, and nobody was told."""
    BEFORE_REPAIR = "before-repair"
    """What the reconciler found is repaired, and that is not committed."""
    AFTER_REPAIR = "after-repair"
    """It is committed."""
    BEFORE_GIVING_UP = "before-giving-up"
    """A job whose intent can never be dispatched is failed, and that is not committed."""
    AFTER_GIVING_UP = "after-giving-up"
    """It is committed."""
    BEFORE_DRAIN = "before-drain"
    """Leases are asked to leave their node, and that is not committed."""
    AFTER_DRAIN = "after-drain"
    """It is committed, and nobody was told."""
    BEFORE_STOP = "before-stop"
    """Leases that their budget does not cover any more are asked to yield, and that is not committed."""
    AFTER_STOP = "after-stop"
    """It is committed, and nobody was told."""
    BEFORE_RAISE = "before-raise"
    """Jobs whose deadline is near are raised, and that is not committed."""
    AFTER_RAISE = "after-raise"
    """It is committed; no round went by it."""


class _Armed:
    """Where this process is to die, if anywhere."""

    point: Failpoint | None = None


def arm(name: str) -> None:
    """Chooses where this process is to die; empty: nowhere.

    Raises:
        ValueError: there is no such point.
    """
    _Armed.point = Failpoint(name) if name else None


def reach(point: Failpoint) -> None:
    """Ends the process without any clean-up if it is to die here."""
    if point is _Armed.point:
        os._exit(EXIT_STATUS)
