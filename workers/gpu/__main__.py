"""`python -m workers.gpu --health-listen HOST:PORT`: offers this machine's accelerators and runs leased phases on them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from control_plane.settings import Settings, WorkerSettings, require
from headway_client.health import HealthServer
from workers.activities import HEARTBEAT_THROTTLE
from workers.control_plane import ControlPlane
from workers.gpu.activities import AGENT_MARGIN_SECONDS, LeasedActivities
from workers.gpu.capacity import CapacityHeartbeat
from workers.gpu.devices import Accelerators, Devices, detect
from workers.process import connect, main, run_workers, unless_stopped
from workers.scratch import Scratch
from workers.workflows.steps import gpu_queue

_SHUTDOWN_MARGIN_SECONDS = 15.0
_PROCESS = "the GPU worker"


async def serve(settings: Settings, health: HealthServer, stop: asyncio.Event) -> None:
    """Runs the GPU worker until it is asked to stop."""
    temporal = require(settings.temporal, "temporal", _PROCESS)
    require(settings.s3, "s3", _PROCESS)  # For the agents, which would find out much later.
    control_plane = ControlPlane.of(settings, _PROCESS)
    scratch = Scratch(settings.worker.scratch_dir, "gpu", settings.worker.name)
    offered = await asyncio.to_thread(detect, settings.worker.accelerators)
    heartbeat = CapacityHeartbeat(control_plane, settings.worker.name, scratch.incarnation, offered)
    beating = asyncio.create_task(heartbeat.beat())
    try:
        client = await unless_stopped(connect(temporal), stop)
        if client is None:
            return
        await unless_stopped(heartbeat.registered.wait(), stop)
        activities = LeasedActivities(control_plane, scratch, Devices(offered), settings.worker)
        withdrawing = asyncio.create_task(_withdraw(heartbeat, stop))
        try:
            await run_workers([_worker(client, settings.worker, activities, offered)], health, stop)
        finally:
            withdrawing.cancel()
    finally:
        beating.cancel()
        scratch.close()
        await control_plane.close()


async def _withdraw(heartbeat: CapacityHeartbeat, stop: asyncio.Event) -> None:
    await stop.wait()
    heartbeat.withdraw()


def _worker(client: Client, settings: WorkerSettings, activities: LeasedActivities, offered: Accelerators) -> Worker:
    # Longer than a step, a save and an upload: what is running gets to its next checkpoint.
    grace = settings.stop_grace_seconds + AGENT_MARGIN_SECONDS + _SHUTDOWN_MARGIN_SECONDS
    return Worker(
        client,
        task_queue=gpu_queue(settings.name),
        activities=[activities.train, activities.evaluate],
        max_concurrent_activities=max(1, offered.count),
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=timedelta(seconds=grace),
    )


if __name__ == "__main__":
    main("headway-gpu-worker", "Offers accelerators and runs leased phases on them.", serve)
