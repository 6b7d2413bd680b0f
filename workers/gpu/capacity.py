"""Telling the control plane what this worker offers, again and again for as long as it does."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from headway.capacity.v1 import capacity_service_pb2 as pb
from headway_client.errors import HeadwayError
from workers.control_plane import ControlPlane
from workers.gpu.devices import Accelerators

_RETRY_SECONDS = 1.0
_SHARE = 0.6
"""How much of the allowed time passes between two heartbeats."""
_log = structlog.get_logger()


class CapacityHeartbeat:
    """The heartbeat of one start of a worker."""

    def __init__(self, control_plane: ControlPlane, name: str, incarnation: str, offered: Accelerators) -> None:
        self._control_plane = control_plane
        self._worker = pb.Worker(name=name, incarnation=incarnation, accelerator_kind=offered.kind, accelerators=offered.count)
        self._changed = asyncio.Event()
        self.registered = asyncio.Event()
        """Set once the control plane knows this start."""

    async def beat(self) -> None:
        """Registers, then heartbeats for ever; patient with a control plane that is away."""
        while True:
            wait = await self._tell()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            self._changed.clear()

    def withdraw(self) -> None:
        """Offers nothing more, at once: no lease is granted on a worker that stops. What it holds it still holds."""
        self._worker.accelerators = 0
        self._changed.set()

    async def _tell(self) -> float:
        """Sends one heartbeat; returns in how many seconds the next is due."""
        try:
            allowed = await self._control_plane.register_worker(self._worker)
        except HeadwayError as error:
            _log.warning("the control plane does not take this worker's heartbeat yet", error=str(error))
            return _RETRY_SECONDS
        if not self.registered.is_set():
            kind, count = self._worker.accelerator_kind, self._worker.accelerators
            _log.info("worker registered", worker=self._worker.name, kind=kind, accelerators=count)
            self.registered.set()
        return allowed * _SHARE
