"""How the components of this machine are: what the supervisor last wrote, and what they answer now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.one_machine import lock, machine, state
from deploy.one_machine.component import Probe, State
from deploy.one_machine.layout import Layout
from deploy.one_machine.probes import NotHealthyError
from deploy.one_machine.state import ComponentState, MachineState


@dataclass(frozen=True)
class Health:
    """A component and how it is now."""

    component: ComponentState
    healthy: bool
    reason: str = ""
    """Why not."""


@dataclass(frozen=True)
class Status:
    """How all of them are."""

    state: MachineState | None
    """None: nothing runs."""
    components: list[Health]

    @property
    def healthy(self) -> bool:
        """Whether all are."""
        return self.state is not None and all(health.healthy for health in self.components)


async def ask(layout: Layout) -> Status:
    """Asks every component now.

    Raises:
        OneMachineError: the state kept in the data directory is damaged.
    """
    if not lock.is_held(layout) or (known := state.read(layout)) is None:
        return Status(None, [])
    probes = machine.probes(layout)
    supervised = lock.supervisor_pid(layout) is not None
    return Status(known, await asyncio.gather(*(_ask(one, probes, supervised) for one in known.components)))


async def _ask(component: ComponentState, probes: Mapping[str, Probe], supervised: bool) -> Health:
    probe = probes.get(component.name)
    if not supervised:
        return Health(component, healthy=False, reason="the supervisor is gone")
    if probe is None:
        return Health(component, component.state is State.DONE, "" if component.state is State.DONE else component.state)
    if component.pid is None:
        return Health(component, healthy=False, reason=component.state)
    try:
        await probe()
    except NotHealthyError as error:
        return Health(component, healthy=False, reason=str(error))
    return Health(component, healthy=True)
