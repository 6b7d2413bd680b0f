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
