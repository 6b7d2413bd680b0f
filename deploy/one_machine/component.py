"""What the supervisor runs, as data."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

Probe = Callable[[], Awaitable[None]]
"""Asks a component whether it does its work; raises if not, and the error says why."""


class State(StrEnum):
    """Where a component is in its life."""

    WAITING = "waiting"
    """For the components it needs."""
    STARTING = "starting"
    HEALTHY = "healthy"
    DONE = "done"
    """A task that ran to its end."""
    RESTARTING = "restarting"
    """It died, and is started again."""
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Component:
    """A process, or a task that ends by itself, and how the supervisor treats it."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    address: str = ""
    """host:port; empty for a task."""
    url: str = ""
    """Where a person can look, if anywhere."""
    probe: Probe | None = None
    """None for a task: it is ready when it has ended with exit code 0."""
    needs: frozenset[str] = frozenset()
    """Names of the components that must have been ready once before this one starts."""
    uses: frozenset[str] = frozenset()
    """Names of components that it can start without, but that must not stop before it."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Run once before the first start; must be safe to repeat."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_seconds: float = 10.0
    """From the stop signal to killing its tree."""
    start_seconds_max: float = 90.0
    """From its start to its first good probe."""


@dataclass(frozen=True)
class Progress:
    """A component has come into a state."""

    component: str
    state: State
    seconds: float
    """Since the supervisor began."""
    detail: str = field(default="")
    """Why, where there is something to say."""


Observer = Callable[[Progress], None]
