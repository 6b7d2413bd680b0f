"""What queues held over time, as a picture and in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scheduler.simulation.results import Results, Shares

_SPANS = (("h", 3_600, 7_200), ("min", 60, 120), ("s", 1, 1), ("ms", 0.001, 0))
"""Unit, its seconds, from how many seconds on it is used."""

_FORMATS = (".png", ".svg", ".pdf")
_LEVELS = " ▁▂▃▄▅▆▇█"


class PlotError(Exception):
    """There is nothing to draw with, or no way to write it; the text says what would do."""


def check(path: Path) -> None:
    """Whether `draw` will be able to, asked before a long run.

    Raises:
        PlotError: matplotlib is not installed, or the ending of the path is of no format that is written.
    """
    if path.suffix not in _FORMATS:
        raise PlotError(f"{path}: the ending says the format; expected one of {', '.join(_FORMATS)}")
    if find_spec("matplotlib") is None:
        raise PlotError("matplotlib is not installed; install headway[simulation], or leave out --plot")


def draw(results: Results, path: Path) -> None:
    """Writes a stacked area per queue, and above it what could be held.

    Raises:
        PlotError: as of `check`.
        OSError: the file cannot be written.
    """
    check(path)
    # The optional extra, and a second of start-up.
    from matplotlib.figure import Figure  # noqa: PLC0415  As said above.

    shares = results.shares
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    unit, scale = _time_unit(shares)
    times = [index * scale for index in range(len(shares.usable) + 1)]
    if shares.held:
        # Steps: a value stands for its whole stretch.
        series = [[*held, held[-1]] for held in shares.held.values()]
        axes.stackplot(times, series, labels=list(shares.held), step="post", alpha=0.85)
    axes.step(times, [*shares.usable, shares.usable[-1]], where="post", color="black", linewidth=1, label="usable")
    axes.set(
        title=f"{results.scenario}, seed {results.seed}: {results.capacity_use:.1%} of capacity used",
        xlabel=f"virtual time ({unit})",
        ylabel=f"{results.unit} held",
        xlim=(0, times[-1]),
    )
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)


def _time_unit(shares: Shares) -> tuple[str, float]:
    """A unit that suits the length, and one stretch in it."""
    length = shares.stretch_s * len(shares.usable)
    unit, seconds = next(
        (u, s) for u, s in (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("s", 1)) if length >= 3 * s or s == 1
    )
    return unit, shares.stretch_s / seconds


def in_terminal(results: Results, width: int) -> RenderableType:
    """A line per queue whose height is its share of what could be held, and the numbers.

    Args:
        width: columns of the terminal.
    """
    shares = results.shares
    unit, scale = _time_unit(shares)
    most = max(shares.usable, default=0.0) or 1.0
    names = max([len(name) for name in shares.held] + [len("all queues")])
    columns = max(10, min(len(shares.usable), width - names - 12))
    lines = Table.grid(padding=(0, 1))
    lines.add_column(width=names)
    lines.add_column(width=columns)
    lines.add_column(justify="right")
    together = [sum(values) for values in zip(*shares.held.values(), strict=True)] or [0.0] * len(shares.usable)
    for name, held in (*shares.held.items(), ("all queues", together)):
        mean = sum(held) / len(held)
        style = "bold" if name == "all queues" else "cyan"
        lines.add_row(Text(name, style), Text(_line(held, columns, most), style), f"{mean / most:.1%}")
    end = f"{scale * len(shares.usable):.3g} {unit}"
    lines.add_row("", Text("0" + end.rjust(columns - 1), "dim"), "")
    return Group(lines, _table(results))


def _line(values: Sequence[float], columns: int, most: float) -> str:
    stretches = [
        values[len(values) * column // columns : max(1, len(values) * (column + 1) // columns)] for column in range(columns)
    ]
    return "".join(_LEVELS[_level(sum(stretch) / max(1, len(stretch)) / most)] for stretch in stretches)


def _level(share: float) -> int:
    """Anything but nothing shows."""
    return min(len(_LEVELS) - 1, max(1, round(share * (len(_LEVELS) - 1)))) if share > 0 else 0


def span(seconds: float) -> str:
    """A length of time for people: "250 ms", "12.5 s", "8.1 min", "3.2 h"."""
    unit, length = next((unit, length) for unit, length, least in _SPANS if seconds >= least)
    return f"{seconds / length:,.3g} {unit}" if seconds < 1_000 * length else f"{seconds / length:,.0f} {unit}"


def _table(results: Results) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("set", no_wrap=True)
    for heading in ("finished", "refused", "wait mean", "p50", "p99", "preempted", "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in results.sets:
        waits = [span(seconds) for seconds in (part.waits.mean_s, part.waits.p50_s, part.waits.p99_s)]
        counts = [f"{count:,}" for count in (part.finished, part.refused)]
        table.add_row(part.name, *counts, *waits, f"{part.preemptions:,}", f"{part.lost_accelerator_hours:,.1f} h")
    return table
