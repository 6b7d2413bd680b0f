"""`python -m scheduler.simulation`: run scenarios, list them, replay audits."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from scheduler.simulation import plots
from scheduler.simulation.audit import AuditError, AuditWriter
from scheduler.simulation.audit import replay as replayed
from scheduler.simulation.results import Results
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import ScenarioError, load_scenario, names

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The production planner under a virtual clock.",
)

_DIFFERS = 1
_INVALID = 2


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A name from `list`, or a .yaml file.")],
    plot: Annotated[Path | None, typer.Option(help="Draw shares over time into this file (.png, .svg, .pdf).")] = None,
    audit: Annotated[Path | None, typer.Option(help="Write every round's record into this file, for `replay`.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Another value in the scenario: seed=7, load.small.count=10.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run a scenario and say what came of it.

    \b
    Examples:
      python -m scheduler.simulation run kueue_baseline
      python -m scheduler.simulation run flapping_priorities --set seed=7 --plot shares.png
      python -m scheduler.simulation run my_cluster.yaml --audit rounds.jsonl --json
    """
    try:
        read = load_scenario(scenario, overrides or ())
        if plot is not None:
            plots.check(plot)
        with ExitStack() as files:
            audits = [AuditWriter(read, files.enter_context(audit.open("w", encoding="utf-8")))] if audit else []
            results = run_scenario(read, tuple(audits))
        if plot is not None:
            plots.draw(results, plot)
    except (ScenarioError, plots.PlotError, OSError) as error:
        _fail(str(error))
    if as_json:
        sys.stdout.write(results.model_dump_json(indent=2) + "\n")
    else:
        _show(results)


@app.command("list")
def list_scenarios() -> None:
    """The scenarios that are known by name."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in names():
        table.add_row(name, load_scenario(name).description)
    Console().print(table)


@app.command()
def replay(file: Annotated[Path, typer.Argument(help="What `run --audit` wrote.")]) -> None:
    """Run an audit's scenario again and name the first difference; exit code 1 if there is one."""
    try:
        difference = replayed(file)
    except (AuditError, ScenarioError, OSError) as error:
        _fail(str(error))
    if difference is None:
        typer.echo("every round is the same")
        return
    typer.echo(f"{file}:{difference.line}: {difference.field or 'round'} differs")
    typer.echo(f"  recorded: {difference.recorded!r:.400}")
    typer.echo(f"  replayed: {difference.replayed!r:.400}")
    raise typer.Exit(_DIFFERS)


def _show(results: Results) -> None:
    console = Console()
    took = results.real_time
    console.print(f"[bold]{results.scenario}[/] seed {results.seed}: {results.finished:,} of {results.jobs:,} jobs finished")
    console.print(
        f"makespan {plots.span(results.makespan_s)}, capacity bound {plots.span(results.bound_s)}, "
        f"{results.capacity_use:.1%} of usable {results.unit} used; "
        f"{results.preemptions:,} preemptions, {results.lost_accelerator_hours:,.2f} accelerator-hours lost"
    )
    console.print(plots.in_terminal(results, console.width))
    if results.unfinished:
        console.print(f"unfinished {results.unfinished:,}; groups waiting by first reason: {results.waiting_reasons}")
    console.print(
        f"[dim]{results.rounds:,} rounds; the planner took {took.total_s:,.1f} s of real time, "
        f"a round {took.round_p50_ms:,.2f} ms (p50), {took.round_p99_ms:,.2f} ms (p99), {took.round_max_ms:,.2f} ms (max)[/]"
    )


def _fail(text: str) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(_INVALID)


if __name__ == "__main__":
    app()
