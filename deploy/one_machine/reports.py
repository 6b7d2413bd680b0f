"""What `headway up` tells while it works: to people as lines, to programs as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import IO, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from deploy.one_machine.component import Progress, State
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.state import MachineState

_STYLES = {
    State.HEALTHY: "green",
    State.DONE: "green",
    State.RESTARTING: "yellow",
    State.FAILED: "red",
    State.STOPPED: "dim",
}
_TELLING = frozenset(_STYLES)


class Report(Protocol):
    """Where the progress of `up` goes."""

    def progress(self, progress: Progress) -> None:
        """A component has come into a state."""

    def ready(self, state: MachineState, seconds: float) -> None:
        """All are healthy."""

    def close(self) -> None:
        """Nothing more comes."""


class People:
    """A live table on a terminal, a line for each event elsewhere."""

    def __init__(self, detached: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._detached = detached
        self._latest: dict[str, Progress] = {}
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def progress(self, progress: Progress) -> None:
        """Shows it."""
        before = self._latest.get(progress.component)
        self._latest[progress.component] = progress
        if self._live is not None:
            self._live.update(_table(self._latest.values()), refresh=True)
        elif progress.state in _TELLING and (before is None or before.state is not progress.state):
            self._console.print(_line(progress))

    def ready(self, state: MachineState, seconds: float) -> None:
        """Says where a person can look."""
        self.close()
        self._console.print(f"\n[bold green]Headway is up[/] after {seconds:.1f} s")
        for what, where in (
            ("control plane", state.control_plane),
            ("admin's token", state.admin_token_file),
            ("MLflow", state.mlflow_url),
            ("traces", state.traces_url.partition("/tr-")[0]),
            ("Temporal", state.temporal_ui_url),
        ):
            self._console.print(f"  {what:<14} {where}")
        end = "`headway down` stops it" if self._detached else "Ctrl-C stops it"
        self._console.print(f"  {end}, `headway status` shows how it is\n")

    def close(self) -> None:
        """Leaves the table as it is; what comes after goes below it, line by line."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _table(latest: Iterable[Progress]) -> Table:
    table = Table.grid(padding=(0, 2))
    for progress in latest:
        style = _STYLES.get(progress.state, "cyan")
        state = f"[{style}]{progress.state}[/]"
        table.add_row(f"  {progress.component}", state, f"{progress.seconds:5.1f} s", escape(progress.detail))
    return table


def _line(progress: Progress) -> str:
    style = _STYLES[progress.state]
    line = f"  {progress.component:<14} [{style}]{progress.state:<11}[/] {progress.seconds:5.1f} s  {escape(progress.detail)}"
    return line.rstrip()


class JsonLines:
    """One JSON object for each event, on one line."""

    def __init__(self, output: IO[str]) -> None:
        self._output: IO[str] | None = output

    def progress(self, progress: Progress) -> None:
        """Writes it."""
        self._write(asdict(progress))

    def ready(self, state: MachineState, seconds: float) -> None:
        """Writes the state."""
        self._write({"ready": state.model_dump(mode="json"), "seconds": round(seconds, 3)})

    def failed(self, error: OneMachineError) -> None:
        """Writes why there will be no state."""
        self._write({"failed": {"reason": error.reason, "message": error.message}})

    def close(self) -> None:
        """Everything is written already."""

    def _write(self, content: dict[str, object]) -> None:
        if self._output is None:
            return
        try:
            print(json.dumps(content), file=self._output, flush=True)
        except OSError:
            self._output = None  # Who wanted to know has left.


def replay(line: str, report: Report) -> bool:
    """Hands a line of `JsonLines` on to another report; whether it was the last one of interest.

    Raises:
        OneMachineError: the line says so.
    """
    content = json.loads(line)
    if "failed" in content:
        failed = content["failed"]
        raise OneMachineError(Reason(failed["reason"]), failed["message"])
    if "ready" in content:
        report.ready(MachineState.model_validate(content["ready"]), content["seconds"])
        return True
    report.progress(Progress(**content | {"state": State(content["state"])}))
    return False
