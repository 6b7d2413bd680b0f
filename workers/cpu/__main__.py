"""`python -m workers.cpu --health-listen HOST:PORT`: workflows, CPU phases, and what is told to the control plane."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from control_plane.settings import Settings, require
from headway_client.health import HealthServer
from workers.activities import HEARTBEAT_THROTTLE
from workers.control_plane import ControlPlane
from workers.cpu.base_models import BaseModels
from workers.cpu.bookkeeping import BookkeepingActivities
from workers.cpu.gate import GateActivity
from workers.cpu.mlflow_mirror import MlflowMirror
from workers.cpu.package import PackageActivity
from workers.cpu.prepare import PrepareActivity
from workers.cpu.register import RegisterActivity
from workers.file_cache import FileCache
from workers.process import connect, main, run_workers, unless_stopped
from workers.scratch import Scratch
from workers.storage import ObjectStore
from workers.workflows.fine_tune import FineTuneWorkflow
from workers.workflows.steps import CPU_PHASE_QUEUE, CPU_QUEUE

_GRACE = timedelta(seconds=15)
"""CPU phases keep nothing: they stop at once and are run again elsewhere."""
_PROCESS = "the CPU worker"


async def serve(settings: Settings, health: HealthServer, stop: asyncio.Event) -> None:
    """Runs the CPU worker until it is asked to stop."""
    temporal = require(settings.temporal, "temporal", _PROCESS)
    control_plane = ControlPlane.of(settings, _PROCESS)
    scratch = Scratch(settings.worker.scratch_dir, "cpu", settings.worker.name)
    try:
        if client := await unless_stopped(connect(temporal), stop):
            await run_workers(_workers(client, settings, control_plane, scratch), health, stop)
    finally:
        scratch.close()
        await control_plane.close()


def _workers(client: Client, settings: Settings, control_plane: ControlPlane, scratch: Scratch) -> list[Worker]:
    store = ObjectStore(require(settings.s3, "s3", _PROCESS))
    mirror = MlflowMirror(require(settings.mlflow, "mlflow", _PROCESS).tracking_uri)
    base_models = BaseModels(store, FileCache(scratch.cache_dir, store, settings.worker.cache_bytes_max))
    bookkeeping = BookkeepingActivities(control_plane)
    telling = Worker(
        client,
        task_queue=CPU_QUEUE,
        workflows=[FineTuneWorkflow],
        activities=[
            bookkeeping.request_lease,
            bookkeeping.release_lease,
            bookkeeping.confirm_pause,
            bookkeeping.finish_job,
            GateActivity(control_plane).gate,
        ],
        graceful_shutdown_timeout=_GRACE,
    )
    phases = Worker(
        client,
        task_queue=CPU_PHASE_QUEUE,
        activities=[
            PrepareActivity(control_plane, store, base_models, scratch, settings.telemetry).prepare,
            PackageActivity(control_plane, store, scratch).package,
            RegisterActivity(control_plane, mirror).register,
        ],
        max_concurrent_activities=settings.worker.cpu_slots,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=_GRACE,
    )
    return [telling, phases]


if __name__ == "__main__":
    main("headway-cpu-worker", "Runs workflows and the phases that hold no lease.", serve)
