"""Runs components: what can start at once starts at once, who dies is restarted, and all end in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.one_machine.component import Component, Observer, Progress
from deploy.one_machine.supervised import Supervised


class Supervisor:
    """All components of one machine. Use `start`, then `stop`, in one event loop."""

    def __init__(self, components: Sequence[Component], logs: Path, hold_fd: int | None, observe: Observer) -> None:
        self._began = time.monotonic()
        self._observe = observe
        self.supervised = {
            component.name: Supervised(component, logs / f"{component.name}.log", hold_fd, self._on_change)
            for component in components
        }
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    async def start(self) -> None:
        """Returns when all are healthy; if one cannot be brought up, all are stopped.

        Raises:
            OneMachineError: which one, why, and what its log says.
        """
        try:
            for name, supervised in self.supervised.items():
                needs = [self.supervised[need].ready for need in supervised.component.needs]
                self._tasks[name] = asyncio.create_task(supervised.run(needs), name=name)
            await self._all_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops all; each only after those that need or use it."""
        gone = {name: asyncio.Event() for name in self._tasks}
        async with asyncio.TaskGroup() as group:
            for name in self._tasks:
                dependants = [gone[other] for other in gone if self._depends(other, name)]
                group.create_task(self._stop(name, dependants, gone[name]))

    def kill(self) -> None:
        """Ends all at once; a `stop` that is under way then returns soon."""
        for supervised in self.supervised.values():
            supervised.kill()

    def _depends(self, one: str, other: str) -> bool:
        component = self.supervised[one].component
        return other in component.needs | component.uses

    async def _all_ready(self) -> None:
        ready = asyncio.create_task(self._wait_for_all())
        waiting = {ready, *self._tasks.values()}
        try:
            while not ready.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            ready.cancel()

    async def _wait_for_all(self) -> None:
        for supervised in self.supervised.values():
            await supervised.ready.wait()

    async def _stop(self, name: str, dependants: Sequence[asyncio.Event], gone: asyncio.Event) -> None:
        for dependant in dependants:
            await dependant.wait()
        self._tasks[name].cancel()
        await asyncio.wait({self._tasks[name]})
        gone.set()

    def _on_change(self, supervised: Supervised, detail: str) -> None:
        self._observe(Progress(supervised.component.name, supervised.state, self.seconds, detail))
