"""`headway up`, `headway down`, `headway status`: arguments in, exit code out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.one_machine import background, lock
from deploy.one_machine import status as asking
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.layout import Layout
from deploy.one_machine.reports import JsonLines, People
from deploy.one_machine.running import Options, run
from headway_client.cli import failures
from headway_client.cli.exit_codes import ExitCode

_STOP_SECONDS = 90.0
_KILL_SECONDS = 20.0
_EXIT_CODES = {
    Reason.PORT_TAKEN: ExitCode.REFUSED,
    Reason.IN_USE: ExitCode.REFUSED,
    Reason.DAMAGED_STATE: ExitCode.REFUSED,
    Reason.INVALID_SETTINGS: ExitCode.INVALID,
}

DataDir = Annotated[Path, typer.Option("--data-dir", help="Where everything is kept.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def up(
    data_dir: DataDir = Path(".headway"),
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when all is up, and leave it running.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Of the control plane; else a free one.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="JSON with settings that go before the chosen ones, by section.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start all of Headway on this machine.

    Postgres, Temporal, an S3 store, MLflow, the control plane, the scheduler, a CPU worker and a GPU worker, all under
    one supervisor. A later start finds the data of an earlier one.

    \b
    Examples:
      headway up
      headway up --detach --data-dir /var/tmp/headway
      headway up --port 50051
    """
    options = Options(data_dir, port, settings)
    report = JsonLines(sys.stdout) if as_json else People(detached=detach)
    try:
        if detach:
            background.start(options, report)
        elif not asyncio.run(run(options, report.progress, report.ready)):
            raise typer.Exit(ExitCode.INTERRUPTED)
    except OneMachineError as error:
        report.close()
        _refuse(error, as_json)
    finally:
        report.close()


def down(data_dir: DataDir = Path(".headway"), as_json: Json = False) -> None:
    """Stop what `headway up` started; its data stays.

    \b
    Examples:
      headway down
      headway down --data-dir /var/tmp/headway
    """
    layout = Layout.at(data_dir)
    began = time.monotonic()
    was_running = lock.is_held(layout)
    try:
        _stop(layout)
    except OneMachineError as error:
        _refuse(error, as_json)
    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps({"was_running": was_running, "seconds": round(seconds, 3)}))
    else:
        print(f"Headway is down after {seconds:.1f} s" if was_running else f"nothing runs in {layout.root}")


def status(data_dir: DataDir = Path(".headway"), as_json: Json = False) -> None:
    """Show what runs on this machine, where, and how it is. Exit code 0 only if all of it is healthy.

    \b
    Examples:
      headway status
      headway status --json
    """
    layout = Layout.at(data_dir)
    try:
        found = asyncio.run(asking.ask(layout))
    except OneMachineError as error:
        _refuse(error, as_json)
    if as_json:
        print(json.dumps(_as_json(layout, found)))
    elif found.state is None:
        print(f"nothing runs in {layout.root}; `headway up` starts it")
    else:
        _show(layout, found)
    if not found.healthy:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _stop(layout: Layout) -> None:
    for signum, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        pid = lock.supervisor_pid(layout) if lock.is_held(layout) else None
        if pid is not None:
            os.kill(pid, signum)
        # Whoever holds the lock is the supervisor, or the guardian of something it started.
        while lock.is_held(layout) or lock.supervisor_pid(layout) is not None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
    raise OneMachineError(
        Reason.STILL_RUNNING, f"processes of {layout.root} are still running; `fuser {layout.lock}` names them"
    )


def _as_json(layout: Layout, found: asking.Status) -> dict[str, Any]:
    content = found.state.model_dump(mode="json", exclude={"components"}) if found.state else {}
    components = [
        health.component.model_dump(mode="json") | {"healthy": health.healthy, "reason": health.reason}
        for health in found.components
    ]
    running = found.state is not None
    return {"data_dir": str(layout.root), "running": running, "healthy": found.healthy} | content | {"components": components}


def _show(layout: Layout, found: asking.Status) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("component", "health", "address", "pid", "restarts"):
        table.add_column(heading, overflow="fold")
    for health in found.components:
        component = health.component
        how = f"[green]{component.state if not component.address else 'healthy'}[/]"
        if not health.healthy:
            how = f"[red]{escape(health.reason or component.state)}[/]"
        address = component.url or component.address
        table.add_row(component.name, how, address, str(component.pid or ""), str(component.restarts))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    console.print(f"\nlogs: {layout.log('COMPONENT')}", soft_wrap=True)


def _refuse(error: OneMachineError, as_json: bool) -> NoReturn:
    code = _EXIT_CODES.get(error.reason, ExitCode.UNAVAILABLE)
    failures.show(failures.Report(code, code.name, error.message, reason=error.reason), as_json)
    raise typer.Exit(code) from error
