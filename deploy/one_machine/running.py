"""The supervisor process: takes the data directory, brings all up, keeps it up until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.one_machine import kept, lock, machine, state
from deploy.one_machine.component import Observer, Progress, State
from deploy.one_machine.layout import Layout
from deploy.one_machine.machine import Machine
from deploy.one_machine.state import MachineState
from deploy.one_machine.supervisor import Supervisor


@dataclass(frozen=True)
class Options:
    """What `headway up` was told."""

    data_dir: Path
    port: int | None = None
    """Of the control plane; None: a free one."""
    settings: Path | None = None
    """JSON with settings that go before the chosen ones."""


Ready = Callable[[MachineState, float], None]
"""Called when all is healthy, with the seconds it took."""


async def run(options: Options, observe: Observer, ready: Ready) -> bool:
    """Runs all of Headway until SIGTERM, SIGINT or SIGHUP; a second one ends it at once. Returns whether it was ready.

    Raises:
        OneMachineError: it cannot be brought up; then nothing is left running.
    """
    layout = Layout.at(options.data_dir)
    layout.prepare()
    with lock.held(layout) as lock_fd:
        layout.turn_over_logs()
        asked = {} if options.port is None else {"control-plane": options.port}
        plan = machine.assemble(layout, kept.choose_ports(layout, asked), options.settings)
        return await _supervise(plan, lock_fd, observe, ready)


async def _supervise(plan: Machine, lock_fd: int, observe: Observer, ready: Ready) -> bool:
    told: dict[str, State] = {}

    def noted(progress: Progress) -> None:
        _write_state(plan, supervisor)
        if told.get(progress.component) is not progress.state:
            told[progress.component] = progress.state
            observe(progress)

    supervisor = Supervisor(plan.components, plan.layout.logs, lock_fd, noted)
    stop = _stop_on_signals(supervisor)
    starting = asyncio.create_task(supervisor.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return False
        starting.result()
        ready(_write_state(plan, supervisor), supervisor.seconds)
        await stop.wait()
        await supervisor.stop()
    finally:
        stopping.cancel()
        plan.layout.state.unlink(missing_ok=True)
    return True


def _write_state(plan: Machine, supervisor: Supervisor) -> MachineState:
    current = plan.state(os.getpid(), [state.describe(one) for one in supervisor.supervised.values()])
    # A full disk must not take down what runs; the file is then as old as the disk is full.
    with contextlib.suppress(OSError):
        state.write(plan.layout, current)
    return current


def _stop_on_signals(supervisor: Supervisor) -> asyncio.Event:
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, asked)
    return stop
