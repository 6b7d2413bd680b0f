"""How long `headway up` takes from nothing to all healthy, and what memory all of it holds then.

Ceiling: the slowest third-party server (MLflow) started alone on the same machine, before and after.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.figure import Figure
from deploy.one_machine import ports, servers
from deploy.one_machine.supervisor import Supervisor


async def run(quick: bool) -> Figure:
    """Starts everything in an empty directory, `quick` once, else three times, and takes the median."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        alone = await _mlflow_alone(root / "alone")
        measured = [await asyncio.to_thread(_up, root / f"up-{turn}") for turn in range(1 if quick else 3)]
    seconds, megabytes, restart = sorted(measured)[len(measured) // 2]
    return Figure(
        "one_machine_start",
        seconds,
        "s",
        alone,
        "MLflow's server started alone",
        {"rss_mb": megabytes, "restart_s": restart},
    )


def _up(data_dir: Path) -> tuple[float, float, float]:
    command = [sys.executable, "-m", "headway_client.cli"]
    options = ["--data-dir", str(data_dir)]
    began = time.monotonic()
    subprocess.run([*command, "up", "--detach", *options], check=True, capture_output=True)
    seconds = time.monotonic() - began
    megabytes = sum(_proportional_bytes(process) for process in psutil.process_iter() if _belongs(process, data_dir)) / 2**20
    subprocess.run([*command, "down", *options], check=True, capture_output=True)
    began = time.monotonic()
    subprocess.run([*command, "up", "--detach", *options], check=True, capture_output=True)
    restart = time.monotonic() - began
    subprocess.run([*command, "down", *options], check=True, capture_output=True)
    return seconds, megabytes, restart


def _belongs(process: psutil.Process, data_dir: Path) -> bool:
    try:
        family = [process, *process.parents()]
        return any(str(data_dir) in " ".join(one.cmdline()) for one in family if one.pid != 1)
    except psutil.Error:
        return False


def _proportional_bytes(process: psutil.Process) -> int:
    """Memory with what is shared counted once, by shares (PSS)."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


async def _mlflow_alone(directory: Path) -> float:
    directory.mkdir(parents=True)
    chosen = ports.choose(["mlflow"], {}, {})
    supervisor = Supervisor([servers.mlflow(directory / "mlflow", chosen["mlflow"])], directory, None, lambda _: None)
    await supervisor.start()
    seconds = supervisor.seconds
    await supervisor.stop()
    return seconds
